"""The parts of a data recipe: what a source, drafts, reflections, targets, thinking or a judge has to offer.

A part is a frozen dataclass with the field ``kind: Literal["name"]`` and the settings of that kind. It subclasses the
class of its role below and makes its own stage. The kinds of this package and those of plug-ins (the group ``irg.data``
of :mod:`irg.registry`) are the same to everybody else.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from irg.curation.content import content
from irg.curation.resources import Resources
from irg.curation.stages import Grader, Stage
from irg.endpoints import Endpoint

Strategy = Literal["refine", "independent"]


@dataclass(frozen=True)
class Prompt:
    """A prompt as a source gives it.

    Attributes:
        source: where it is from, for the dataset card.
        request: its objects, counts, colors and relations, as JSON in GenEval's form; None if not known.
        turns: 1 or 2; None: the recipe's share decides.
    """

    prompt: str
    source: str
    license: str
    request: str | None = None
    turns: int | None = None


class Source:
    """Where prompts come from."""

    def content(self) -> Any:
        """What decides the prompts, as plain JSON. A source that reads a file adds a hash of it.

        Raises:
            ValueError: a file is missing, or the settings can't be met.
        """
        return content(self)

    def endpoints(self) -> list[Endpoint]:
        """Endpoints that are called for prompts."""
        return []

    def prompts(self, seed: int, resources: Resources) -> AsyncIterator[Prompt]:
        """The prompts, in the same order for the same settings and seed.

        Raises:
            ValueError: the source can't be read.
        """
        raise NotImplementedError


class Part:
    """A step of a recipe that makes columns of rows."""

    def check(self, parts: "Parts") -> None:
        """Refuse a recipe that this part does not fit into.

        Raises:
            ValueError: it does not fit; the message says what to change.
        """

    def stage(self, parts: "Parts") -> Stage:
        """The stage. Its name, its turns and, unless it says otherwise, what it reads are set by the recipe's plan."""
        raise NotImplementedError


class Drafts(Part):
    """T1 and I1 of two-turn rows: the columns ``thinking`` and ``image``."""


class Reflections(Part):
    """T2: the column ``reflection``. Rows have the draft's columns and, where targets come first, ``improved``."""


class Targets(Part):
    """I2, or the one image of one-turn rows: the column ``improved``.

    Rows have the draft's columns and ``reflection``, unless the strategy is ``independent``.
    """


class Thinking(Part):
    """T1 of one-turn rows: the column ``thought``. Rows have ``improved``."""


class RowJudge(Part):
    """Scores of a row: the columns of :func:`irg.curation.stages.score_columns`. Its field ``name`` begins them.

    Rows have the columns of draft and target.
    """

    def grader(self) -> Grader:
        """What grades single images, for targets that are the best of several.

        Raises:
            ValueError: this judge has none.
        """
        raise ValueError(f"a judge of kind {getattr(self, 'kind', '?')} can't grade single images")


@dataclass(frozen=True)
class Parts:
    """The parts of one recipe, and the order in which reflections and targets are made."""

    strategy: Strategy
    draft: Drafts | None
    reflect: Reflections | None
    target: Targets | None
    think: Thinking | None
    judges: tuple[RowJudge, ...]

    def __iter__(self) -> Iterator[Part]:
        every = (self.draft, self.reflect, self.target, self.think, *self.judges)
        return (part for part in every if part is not None)
