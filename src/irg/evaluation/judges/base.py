"""Judges: they take jobs (a question about an image) and give one answer for each, in any order, as they come.

Every judge is an entry point of the group ``irg.judges``, the built-in ones too: ``make(rest, options) -> Judge``,
where ``rest`` is what follows the colon in ``--judge NAME:REST``. The first line of the function's docstring is its
help. A judge's module is imported when it is named.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image

from irg import registry
from irg.endpoints import EndpointOptions, refuses
from irg.evaluation.benchmarks.base import Question
from irg.evaluation.image_folders import ImageFile
from irg.promptsets import BenchPrompt
from irg.recipes import choose

Failure = Literal["refused", "outage", "bad_answer", "budget", "unreadable"]
"""Why there is no answer: the judge refuses, can't be reached, gave nothing usable, or would exceed the budget; or the
image can't be read."""
RETRYABLE: tuple[Failure, ...] = ("outage", "budget")
"""Failures that are tried again when scoring is run again."""


@dataclass(frozen=True)
class Job:
    """One question about one image of a prompt; ``turn`` 1 is the first image."""

    prompt: BenchPrompt
    sample: int
    turn: int
    image: ImageFile
    question: Question

    @property
    def key(self) -> str:
        """A hash of the question and the image's content, not of its path."""
        parts = [self.prompt.id, self.question.kind, self.question.name, self.question.text, self.image.sha256]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Answer:
    """A judge's raw answer as plain JSON, or why there is none.

    Attributes:
        raw: ``detect``: {"boxes": {class: [[x1, y1, x2, y2, score], ...]}, "colors": {class: [name, ...]}}; ``chat``
            and ``ocr``: a text; the others: a number. On a failure the answers that were unusable, if any.
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


def pixels_or_failure(job: Job) -> Image.Image | Answer:
    """The job's image (RGB), or an :class:`Answer` with the failure ``unreadable``."""
    try:
        return job.image.pixels()
    except ValueError as error:
        return Answer(None, "unreadable", str(error))


def check_text(job: Job, text: str) -> None:
    """Raises:
    ValueError: the answer is a refusal, or not in the form that the question asks for.
    """
    if refuses(text):
        raise ValueError("it is a refusal")
    if job.question.check is not None:
        job.question.check(text)


@dataclass(frozen=True)
class JudgeOptions(EndpointOptions):
    """How judges work; most belong to one kind of judge."""

    cache_dir: str | None = None
    """For openai: where answers are kept (default: judge-answers in $IRG_CACHE, else in ~/.cache/irg)."""
    no_self_test: bool = False
    """For geneval: judge even when the detector fails on images whose content is known; the label says so."""
    device: str | None = None
    """For local models (default: cuda if there is one)."""


def make_judges(specs: Sequence[str], options: JudgeOptions) -> list[Judge]:
    """The judges of a list such as ``["openai:gpt-4o", "ocr"]``; a question goes to the first that answers its kind.

    Raises:
        ValueError: there is no such judge, or something that it needs is missing.
    """
    known = registry.names(registry.JUDGES)
    if not specs:
        each = "; ".join(f"{name} ({registry.summary(registry.JUDGES, name)})" for name in known)
        raise ValueError(f"a judge is needed: --judge with one or several of {each}")
    judges = []
    for spec in specs:
        name, _, rest = spec.partition(":")
        if name not in known:
            raise ValueError(f"no judge {name!r}{choose(name, known)}; there are {', '.join(known)}")
        judges.append(registry.load(registry.JUDGES, name)(rest, options))
    return judges


def require_rest(name: str, rest: str, what: str) -> str:
    """``rest``, which a judge can't do without.

    Raises:
        ValueError: it is empty.
    """
    if not rest:
        raise ValueError(f"the judge {name} needs more: {name}:{what}")
    return rest
