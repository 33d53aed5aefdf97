"""What the model answers in a run by reward: prompts, and for reflections the first turn that is given.

A source gives the prompts of a step from (seed, step) alone, so a run has nothing to remember about them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from irg.learning.data.rows import TRAJECTORY, data_files, open_parquet
from irg.learning.data.schema import TrajectoryRow
from irg.learning.recipe import Draw
from irg.randomness import numpy_generator
from irg.text_files import lines_of, parse_json, read_text


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        truth: what its source knows of it, for rewards: plain JSON values.
        thinking, image: a first turn that is given, the image as an encoded file.
    """

    text: str
    truth: Mapping[str, Any] = field(default_factory=dict)
    thinking: str | None = None
    image: bytes | None = field(default=None, repr=False)


class PromptSource(ABC):
    """Where prompts come from. A plug-in of the group ``irg.prompts`` is a frozen dataclass that subclasses this, with
    a field ``kind: Literal["name"]``."""

    @abstractmethod
    def draw(self, seed: int, step: int, count: int) -> list[Prompt]:
        """The ``count`` prompts of a step.

        Raises:
            ValueError: there are none, or they can't be read.
        """

    def check(self, first_turn: bool) -> None:
        """Look the source over before a run. ``first_turn``: its prompts must have a first turn.

        Raises:
            ValueError: it does not do.
        """
        (prompt,) = self.draw(0, 0, 1)
        if first_turn and (prompt.thinking is None or prompt.image is None):
            raise ValueError("prompts: a reflection looks at a first image: use kind trajectories, or another source")


class _Listed(PromptSource):
    """Prompts of a finite list, in an order of their own every time through."""

    def __len__(self) -> int:
        raise NotImplementedError

    def at(self, index: int) -> Prompt:
        """The prompt of a number."""
        raise NotImplementedError

    def draw(self, seed: int, step: int, count: int) -> list[Prompt]:
        orders: dict[int, Sequence[int]] = {}
        found = []
        for place in range(step * count, (step + 1) * count):
            epoch, index = divmod(place, len(self))
            if epoch not in orders:
                orders[epoch] = numpy_generator(seed, Draw.PROMPTS, epoch).permutation(len(self)).tolist()
            found.append(self.at(orders[epoch][index]))
        return found


@dataclass(frozen=True)
class FilePrompts(_Listed):
    """A prompt a line; or JSON lines, where ``prompt`` is the text and everything else is what rewards may know."""

    kind: Literal["file"]
    path: str

    def __len__(self) -> int:
        return len(_lines(self.path))

    def at(self, index: int) -> Prompt:
        return _lines(self.path)[index]


@cache
def _lines(path: str) -> list[Prompt]:
    try:
        lines = [line for _, line in lines_of(read_text(path))]
    except ValueError as error:
        raise ValueError(f"prompts: {path} can't be read: {error}") from None
    if not lines:
        raise ValueError(f"prompts: {path} has no lines")
    return [_of_line(path, number, line) for number, line in enumerate(lines, 1)]


def _of_line(path: str, number: int, line: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return Prompt(line.strip())
    try:
        data = parse_json(line)
        return Prompt(str(data.pop("prompt")), data)
    except (ValueError, KeyError) as error:
        reason = "it has no prompt" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"prompts: {path}, line {number}: {reason}") from None


@dataclass(frozen=True)
class TrajectoryPrompts(_Listed):
    """The prompts of training rows (``docs/training.md``), each with its first turn."""

    kind: Literal["trajectories"]
    path: tuple[str, ...]

    def __len__(self) -> int:
        return len(_rows(self.path))

    def at(self, index: int) -> Prompt:
        return _rows(self.path)[index]


@cache
def _rows(paths: tuple[str, ...]) -> list[Prompt]:
    found = []
    for file in data_files(paths, "prompts"):
        for batch in open_parquet(file, TRAJECTORY).iter_batches(64, columns=list(TRAJECTORY)):
            for values in batch.to_pylist():
                row = TrajectoryRow.from_columns(values)
                found.append(Prompt(row.prompt, {}, row.thinking, row.image))
    if not found:
        raise ValueError(f"prompts: {', '.join(paths)} has no rows")
    return found
