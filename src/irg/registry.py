"""Plug-ins by name: entry points of installed packages (``importlib.metadata``), loaded when they are asked for.

``docs/plugins.md`` tells what each group takes and shows one that works. The laboratory ``irg_mini`` comes in the same
way.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from irg.recipes import choose

COMMANDS = "irg.commands"
"""Subcommands. The name is ``GROUP.NAME`` (``bench.mini``), the object is ``main(argv) -> exit code``; the first line
of its docstring is what ``irg GROUP --help`` says."""
JUDGES = "irg.judges"
"""Judges of ``--judge NAME[:REST]``. The object is ``make(rest, options) -> Judge``
(:mod:`irg.evaluation.judges.base`)."""
CRITICS = "irg.critics"
"""Critics of ``--critic NAME[:REST]``. The object is ``make(rest, options) -> Critic`` (:mod:`irg.critics`)."""
PROTOCOLS = "irg.protocols"
"""Protocols of ``--protocol NAME``. The object is a subclass of :class:`irg.reasoning.protocols.base.Protocol`."""
REWARDS = "irg.rewards"
"""Rewards of training recipes of the kind ``rl``. The object is a callable ``(prompt, trajectory) -> number or Score``,
or a frozen dataclass of such (:mod:`irg.learning.rl.rewards`)."""
PROMPTS = "irg.prompts"
"""Sources of prompts of such recipes. The object is a frozen dataclass with the field ``kind: Literal["name"]`` that
subclasses ``PromptSource`` (:mod:`irg.learning.rl.prompts`)."""
PROMPT_NOTES = "irg.prompt_notes"
"""What a model can't do with a prompt. The object is ``notes(prompt) -> list of lines``; a model's ``irg.json`` names
it (:mod:`irg.reasoning.prompt_notes`)."""
DATA = "irg.data"
"""Parts of data recipes (:mod:`irg.curation.parts`). The object is a frozen dataclass with the field
``kind: Literal["name"]`` that subclasses ``Source``, ``Drafts``, ``Reflections``, ``Targets``, ``Thinking`` or
``RowJudge``. The entry point's name is free; recipes say the kind."""


@cache
def _found(group: str) -> dict[str, EntryPoint]:
    """By name, sorted; where two packages have a plug-in of the same name, this package's own one is taken."""

    def order(point: EntryPoint) -> tuple[str, bool]:
        return point.name, point.dist is not None and point.dist.name == "irg"

    return {point.name: point for point in sorted(entry_points(group=group), key=order)}


def names(group: str) -> tuple[str, ...]:
    """Names of a group's plug-ins, sorted; none of them is imported."""
    return tuple(_found(group))


def check(group: str, name: str, what: str) -> None:
    """Check that there is a plug-in of a name; it is not imported.

    Args:
        what: what the message calls it.

    Raises:
        ValueError: there is none; the message says which there are.
    """
    if name not in (known := names(group)):
        raise ValueError(f"no {what} {name!r}{choose(name, known)}; there are {', '.join(known)}")


def load(group: str, name: str) -> Any:
    """The object behind a name.

    Raises:
        ValueError: nothing of that name is installed, or its package can't be imported (the message says why).
    """
    points = _found(group)
    if name not in points:
        raise ValueError(
            f"no plug-in {name!r} in {group}{choose(name, points)}; there are {', '.join(points) or 'none'}"
        )
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"plug-in {name!r} of {group} ({points[name].value}) can't be loaded: {error}") from error


@dataclass(frozen=True)
class Plugins:
    """Marks a recipe's field as open to plug-ins.

    ``Annotated[A | B, Plugins("irg.data", Drafts)]`` takes the dataclasses ``A`` and ``B`` and those subclasses of
    ``Drafts`` that installed packages register in the group, told apart by their field ``kind``.
    """

    group: str
    base: type = object

    def kinds(self) -> list[type]:
        """The dataclasses that installed packages register."""
        found = (load(self.group, name) for name in names(self.group))
        return [kind for kind in found if issubclass(kind, self.base)]


def summary(group: str, name: str) -> str:
    """The first line of a plug-in's docstring, or why it can't be loaded."""
    try:
        return (load(group, name).__doc__ or "").strip().partition("\n")[0].rstrip(".")
    except ValueError as error:
        return str(error)
