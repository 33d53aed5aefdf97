"""What every judge is: it takes jobs and gives answers, one for each, in any order, as they come."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from irg.evaluation.benchmarks.benchmark import Ask
from irg.evaluation.image_folders import ImageFile
from irg.promptsets import BenchPrompt

Failure = Literal["refused", "outage", "bad_answer", "budget", "unreadable"]
"""Why there is no answer: the judge won't, can't be reached, gave nothing usable, is too dear; or no readable file."""
PASSING: tuple[Failure, ...] = ("outage", "budget")
"""Failures that another try may mend: they are asked again when scoring is run again."""


@dataclass(frozen=True)
class Job:
    """One question about one image of a prompt; ``turn`` 1 is the first image."""

    prompt: BenchPrompt
    sample: int
    turn: int
    image: ImageFile
    ask: Ask

    @property
    def key(self) -> str:
        """The same for the same question about the same image, wherever it lies."""
        told = [self.prompt.id, self.ask.kind, self.ask.name, self.ask.text, self.image.sha256]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Answer:
    """A judge's raw answer as plain JSON, or why there is none.

    Attributes:
        raw: ``detect``: {"boxes": {class: [[x1, y1, x2, y2, score], ...]}, "colors": {class: [name, ...]}}; ``chat``
            and ``ocr``: a text; the others: a number. On a failure whatever was said, if anything.
    """

    raw: Any
    failure: Failure | None = None
    message: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    cached: bool = False


class Judge(Protocol):
    """A judge.

    Attributes:
        label: how tables name it.
        kinds: the kinds of questions it answers.
    """

    label: str
    kinds: frozenset[str]

    def identity(self) -> dict[str, Any]:
        """Everything that its answers depend on: model, revision or weights, settings, versions of its packages."""
        ...

    def covers(self, prompt: BenchPrompt) -> bool:
        """Whether it can judge images of this prompt at all."""
        ...

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        """One answer for each job, in any order, each as soon as it is there.

        Raises:
            ValueError: the judge can't work at all (a package, weights or a key is missing; its self-test fails).
        """
        ...


def pixels_or_failure(job: Job) -> Any:
    """The job's image, or the answer that says that it can't be read."""
    try:
        return job.image.pixels()
    except ValueError as error:
        return Answer(None, "unreadable", str(error))
