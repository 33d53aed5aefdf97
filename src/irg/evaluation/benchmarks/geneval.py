"""GenEval: a detector's boxes and colors -> the official verdict, and the shares of right images.

A judge's answer is ``{"boxes": {class: [[x1, y1, x2, y2, score], ...]}, "colors": {class: [name, ...]}}``: boxes in
pixels, before any threshold, and where a prompt states a color, the color of each box in the same order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irg.evaluation.benchmarks import geneval_rules as rules
from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage, Question, ScoringOptions
from irg.promptsets import BenchPrompt

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Boxes = Mapping[str, Sequence[Sequence[float]]]
Colors = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Whether the image is what the prompt asks for, and if not, why (one reason a line, in the official words)."""

    correct: bool
    reason: str
    kept: dict[str, int]


@dataclass(frozen=True)
class _Detection:
    name: str
    color: str | None
    box: Sequence[float]
    score: float


@dataclass(frozen=True)
class _Clause:
    name: str
    count: int
    color: str | None
    position: tuple[str, int] | None


def judge(
    metadata: Mapping[str, Any],
    boxes: Boxes,
    colors: Colors | None = None,
    counting_above: float = rules.COUNTING_SCORE_ABOVE,
) -> Verdict:
    """The official verdict on what was found in one image.

    Args:
        metadata: a line of GenEval's metadata: ``tag``, ``include``, perhaps ``exclude``.
        boxes: all boxes by class, with their scores, in any order.
        colors: the color of each box, needed where ``include`` states one.
        counting_above: what a score must be above in ``counting`` prompts; the official 0.9 suits its own detector.

    Raises:
        ValueError: a color is needed and ``colors`` has not one for each box of that class.
    """
    include = [
        _Clause(entry["class"], entry["count"], entry.get("color"), entry.get("position"))
        for entry in metadata.get("include", ())
    ]
    exclude = [(entry["class"], entry["count"]) for entry in metadata.get("exclude", ())]
    colored = {clause.name for clause in include if clause.color is not None}
    threshold = rules.score_threshold(metadata.get("tag"), counting_above)
    kept: dict[str, list[_Detection]] = {}
    for name, rows in boxes.items():
        named: Sequence[str | None] = (colors or {}).get(name, ()) if name in colored else [None] * len(rows)
        if len(named) != len(rows):
            raise ValueError(f"{name}: {len(rows)} boxes, but {len(named)} colors")
        found = (_Detection(name, color, row[:4], row[4]) for row, color in zip(rows, named, strict=True))
        kept |= rules.keep(found, threshold)
    reasons = rules.unmet(include, exclude, kept)
    return Verdict(not reasons, "\n".join(reasons), {name: len(group) for name, group in kept.items()})


def summarize(results: Iterable[tuple[str, str, bool]]) -> dict[str, float]:
    """Shares from (prompt, tag, correct) of every image.

    Returns one entry a tag (mean over its images), ``overall`` (plain mean of the tags that occur), ``images`` and
    ``prompts`` (share of right images; share of prompts with a right one). Empty when there are no results.
    """
    tags: dict[str, list[bool]] = {}
    prompts: dict[str, bool] = {}
    for prompt, tag, correct in results:
        tags.setdefault(tag, []).append(correct)
        prompts[prompt] = prompts.get(prompt, False) or correct
    if not tags:
        return {}
    order = [tag for tag in TAGS if tag in tags] + [tag for tag in tags if tag not in TAGS]
    scores = {tag: float(np.mean(tags[tag])) for tag in order}
    every = [correct for values in tags.values() for correct in values]
    return scores | {
        "overall": float(np.mean(list(scores.values()))),
        "images": float(np.mean(every)),
        "prompts": float(np.mean(list(prompts.values()))),
    }


def _questions(_: BenchPrompt, __: ScoringOptions) -> list[Question]:
    return [Question("detect", "objects")]


def _grade(prompt: BenchPrompt, answers: dict[str, Any], options: ScoringOptions) -> Grade:
    found = answers["objects"]
    verdict = judge(prompt.metadata, found["boxes"], found.get("colors"), options.geneval_counting_above)
    seen = ", ".join(f"{count} {name}" for name, count in verdict.kept.items()) or "nothing"
    return Grade(float(verdict.correct), (verdict.correct,), f"{verdict.reason or 'as asked'} (seen: {seen})")


def _summarize(images: Sequence[GradedImage]) -> dict[str, float]:
    return summarize((one.prompt.id, one.prompt.tag, bool(one.score)) for one in images)


GENEVAL = Benchmark("geneval", (*TAGS, "overall"), _questions, _grade, _summarize)
