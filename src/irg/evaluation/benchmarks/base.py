"""What a benchmark is: its questions about an image, how answers are graded, and how grades become numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from irg.evaluation.benchmarks.geneval_rules import COUNTING_SCORE_ABOVE
from irg.evaluation.image_folders import LAYOUTS, ImageFolderLayout
from irg.promptsets import SOURCES, BenchPrompt

Kind = Literal["detect", "chat", "yes", "ocr", "reasoning", "style", "diversity"]
"""Kinds of questions: boxes with colors, a text, P("Yes"), the text in an image, or a number of OneIG's own judges."""
WiseParse = Literal["strict", "tolerant", "bagel"]


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        name: which of the benchmark's questions it is, unique for an image.
        text: for ``chat`` and ``yes`` the question, for ``ocr`` the instruction to a chat model.
        check: raises ValueError when an answer can't be used; a chat judge then repeats the question, a bounded number
            of times.
    """

    kind: Kind
    name: str
    text: str = ""
    check: Callable[[str], Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Grade:
    """What the answers about one image come to.

    Attributes:
        score: of this image, 0..1.
        right: what repair and damage are counted over: one value an image, or one a question.
        detail: shown in the report.
        facts: what sums need beside the score.
    """

    score: float
    right: tuple[bool, ...]
    detail: str = ""
    facts: Any = None


@dataclass(frozen=True)
class GradedImage:
    """An image that counts; ``grade`` is None when it is missing and counts as all wrong."""

    prompt: BenchPrompt
    sample: int
    grade: Grade | None

    @property
    def score(self) -> float:
        """0 for a missing image."""
        return self.grade.score if self.grade else 0.0


@dataclass(frozen=True)
class ScoringOptions:
    """Choices that a protocol leaves open."""

    wise_parse: WiseParse = "tolerant"
    geneval_counting_above: float = COUNTING_SCORE_ABOVE
    rubric: str | None = None
    """Text of WISE's judging instruction with {prompt} and {explanation}; None: ours."""
    tiif_text: bool = False
    """Also read the text in TIIF's images of text, for GNED and recall."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        questions: the questions about one image of a prompt.
        grade: the raw answers by name -> their grade; ValueError when they can't be read.
        summarize: all images -> the benchmark's numbers, of which ``columns`` are its table.
        unit: what one of ``Grade.right`` is.
        headline: the columns that a model is named by.
    """

    name: str
    columns: tuple[str, ...]
    questions: Callable[[BenchPrompt, ScoringOptions], list[Question]]
    grade: Callable[[BenchPrompt, dict[str, Any], ScoringOptions], Grade]
    summarize: Callable[[Sequence[GradedImage]], dict[str, float]]
    unit: str = "image"
    headline: tuple[str, ...] = ("overall",)

    @property
    def title(self) -> str:
        return SOURCES[self.name].title

    @property
    def layout(self) -> ImageFolderLayout:
        return LAYOUTS[self.name]
