"""WISE (legacy protocol, the paper's): parsing a judge's three scores, WiScore, and both overall formulas."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage, Question, ScoringOptions, WiseParse
from irg.evaluation.benchmarks.judge_prompts import wise_question
from irg.promptsets import BenchPrompt

CRITERIA = ("consistency", "realism", "aesthetic_quality")
OVERALL_WEIGHTS = {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
CATEGORIES = tuple(OVERALL_WEIGHTS)
CRITERIA_WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
HIGHEST = 2.0
BAGEL_MISSING = 9.9
"""What BAGEL's parser gives for a score that it does not find."""
_FIRST_ID = {"culture": 1, "time": 401, "space": 568, "biology": 701, "physics": 801, "chemistry": 901}
_LAST_ID = 1000
_LABEL = "(Consistency|Realism|Aesthetic Quality)"
_STRICT = re.compile(rf"\*{{0,2}}{_LABEL}\*{{0,2}}\s*:?\s*(\d)", re.IGNORECASE)
_BAGEL = re.compile(rf"\*{{0,2}}{_LABEL}\*{{0,2}}\s*[:：]?\s*(\d)", re.IGNORECASE)
# Emphasis, quotes, brackets and a dash or an equals sign may stand between label and digit; "(0-2)" and "0-2 ->" are
# skipped, "2.0" is 2.
_TOLERANT = re.compile(
    r"(Consistency|Realism|Aesthetic(?:s|[\s_-]+Quality)?)(?:\s*score)?[\s*_`\"'\])]*(?:\(0\s*[-–]\s*2\)[\s*_`\"']*)?"
    r"(?:[:：=–—-]|is\b)?[\s*_`\"'\[(]*(?:0\s*[-–]\s*2\s*(?:->|=>|[→:=])[\s*_`\"']*)?"
    r"(?<![\d.])([0-2])(?:\.0+)?(?![\d.]*\d)(?!\s*[-–]\s*\d)",
    re.IGNORECASE,
)
_BARE = re.compile(r"^\s*([0-2])\s*$", re.MULTILINE)


def category(prompt_id: int) -> str:
    """The category of a prompt, by its number.

    Raises:
        ValueError: the number is not one of 1..1000.
    """
    if not 1 <= prompt_id <= _LAST_ID:
        raise ValueError(f"WISE prompts are numbered 1 to {_LAST_ID}, got {prompt_id}")
    return next(name for name in reversed(CATEGORIES) if prompt_id >= _FIRST_ID[name])


def parse(text: str, how: WiseParse = "tolerant") -> dict[str, float]:
    """The scores that a judge's answer names; what is not found is left out.

    ``strict`` reads what the official script reads, ``bagel`` what BAGEL's does (9.9 for what it does not find).
    ``tolerant`` also takes emphasis around the colon, full-width colons, brackets and quotes, and no number outside
    0..2. In all of them the last match wins. Without any label, three lines of a bare digit 0..2 will do (but not for
    ``bagel``).
    """
    pattern = {"strict": _STRICT, "bagel": _BAGEL, "tolerant": _TOLERANT}[how]
    found = {_criterion(label): float(digit) for label, digit in pattern.findall(text)}
    if how == "bagel":
        return {name: found.get(name, BAGEL_MISSING) for name in CRITERIA}
    if not found and len(bare := _BARE.findall(text)) >= len(CRITERIA):
        return {name: float(digit) for name, digit in zip(CRITERIA, bare, strict=False)}
    return found


def _criterion(label: str) -> str:
    return "aesthetic_quality" if label.lower().startswith("aesthetic") else label.lower()


def wiscore(scores: Mapping[str, float]) -> float:
    """(0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, in 0..1.

    Raises:
        ValueError: a score is missing or outside 0..2.
    """
    for name in CRITERIA:
        if not 0 <= scores.get(name, -1) <= HIGHEST:
            raise ValueError(f"{name} must be 0 to 2, got {scores.get(name)}")
    return sum(weight * scores[name] for name, weight in CRITERIA_WEIGHTS.items()) / HIGHEST


def summarize(scores: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Means from (prompt id, WiScore) of every image.

    Returns one entry a category that occurs and, when all six do, ``overall`` (the official weighted mean) and
    ``overall_plain`` (BAGEL's old script: the plain mean of the six).
    """
    groups: dict[str, list[float]] = {}
    for prompt_id, score in scores:
        groups.setdefault(category(prompt_id), []).append(score)
    means = {name: float(np.mean(groups[name])) for name in CATEGORIES if name in groups}
    if len(means) < len(CATEGORIES):
        return means
    return means | {
        "overall": sum(OVERALL_WEIGHTS[name] * means[name] for name in CATEGORIES),
        "overall_plain": float(np.mean([means[name] for name in CATEGORIES])),
    }


def _questions(prompt: BenchPrompt, options: ScoringOptions) -> list[Question]:
    category(int(prompt.id))  # an id that has none shows before anything is judged

    def check(text: str) -> None:
        wiscore(parse(text, options.wise_parse))

    text = wise_question(prompt.text, prompt.metadata.get("Explanation", ""), options.rubric)
    return [Question("chat", "scores", text, check)]


def _grade(_: BenchPrompt, answers: dict[str, Any], options: ScoringOptions) -> Grade:
    scores = parse(answers["scores"], options.wise_parse)
    detail = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in scores.items())
    return Grade(wiscore(scores), (scores["consistency"] == HIGHEST,), detail)


def _summarize(images: Sequence[GradedImage]) -> dict[str, float]:
    return summarize((int(one.prompt.id), one.score) for one in images)


WISE = Benchmark("wise", (*CATEGORIES, "overall", "overall_plain"), _questions, _grade, _summarize)
