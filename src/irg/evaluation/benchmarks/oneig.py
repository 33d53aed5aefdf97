"""OneIG-Bench (English): alignment, text, reasoning, style and diversity, each from a judge's raw answers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage, Question, ScoringOptions
from irg.evaluation.benchmarks.judge_prompts import ONEIG_ALIGNMENT, READ_TEXT
from irg.evaluation.benchmarks.text_distance import levenshtein, require_libraries
from irg.promptsets import BenchPrompt

DIMENSIONS = ("alignment", "text", "reasoning", "style", "diversity")
ALIGNED = ("anime", "human", "object")
YES = "Yes"
LONGEST_ED = 100.0
"""Mean edit distances beyond this count as this (English)."""
_OCR_PHRASES = ("addCriterion", "No text recognized.", "No text recognized")
_DROPPED = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")


def alignment(
    answers: Sequence[Mapping[str, str]], dependency: Mapping[str, Sequence[int]]
) -> tuple[float, list[list[bool]]]:
    """Score of one prompt and, per image, which questions count as fulfilled.

    Args:
        answers: per image, question number -> the judge's raw answer; only an exact ``Yes`` is one.
        dependency: question number -> the questions it depends on (0: none). A question counts only when those
            were answered ``Yes`` too, by their raw answers: what zeroes a parent does not reach its grandchildren.

    Raises:
        ValueError: there is no image, or an image without answers.
    """
    if not answers or not all(answers):
        raise ValueError("alignment needs at least one image, and answers for each")
    fulfilled = []
    for image in answers:
        raw = {number: answer == YES for number, answer in image.items()}
        fulfilled.append(
            [
                yes and all(raw.get(str(parent), False) for parent in dependency.get(number, ()) if parent)
                for number, yes in raw.items()
            ]
        )
    return float(np.mean([np.mean(values) for values in fulfilled])), fulfilled


@dataclass(frozen=True)
class TextMatch:
    """What is measured on one image: edit distance, whether all is right, words found, words expected."""

    distance: int
    right: bool
    matched: int
    words: int


def clean_text(text: str) -> str:
    """Letters, digits and single spaces only: how both sides are written before they are compared."""
    return re.sub(r"\s+", " ", _DROPPED.sub("", text)).strip()


def clean_ocr(text: str) -> str:
    """:func:`clean_text` after dropping phrases that the official OCR model makes up."""
    for phrase in _OCR_PHRASES:
        text = text.replace(f"{phrase}\n", "").replace(phrase, "")
    return clean_text(text)


def text_match(expected: Sequence[str], read: str) -> TextMatch:
    """Compare what was read in an image with the texts it should show."""
    truth, seen = clean_text(" ".join(expected)), clean_ocr(read)
    distance = levenshtein(seen, truth)
    words = Counter(truth.split())
    return TextMatch(distance, distance == 0, (words & Counter(seen.split())).total(), words.total())


def summarize_text(matches: Sequence[TextMatch]) -> dict[str, float]:
    """ED (mean), CR (share that is all right), WAC (words pooled over all images), and the score made of them."""
    if not matches:
        return {}
    ed = float(np.mean([match.distance for match in matches]))
    cr = float(np.mean([match.right for match in matches]))
    words = sum(match.words for match in matches)
    wac = sum(match.matched for match in matches) / words if words else 0.0
    return {"ED": ed, "CR": cr, "WAC": wac, "score": 1 - min(LONGEST_ED, ed) * (1 - cr) * (1 - wac) / LONGEST_ED}


def overall(dimensions: Mapping[str, float]) -> float | None:
    """Plain mean of the five dimensions; None while one is missing."""
    if any(name not in dimensions for name in DIMENSIONS):
        return None
    return float(np.mean([dimensions[name] for name in DIMENSIONS]))


def prompt_mean(scores: Iterable[Sequence[float]]) -> float:
    """Mean over the images of each prompt, then over prompts."""
    return float(np.mean([np.mean(values) for values in scores]))


def _questions(prompt: BenchPrompt, _: ScoringOptions) -> list[Question]:
    questions = [Question("diversity", "diversity")]
    if prompt.tag in ALIGNED:
        numbered = prompt.metadata.get("questions", {})
        questions += [Question("chat", key, ONEIG_ALIGNMENT.format(question=text)) for key, text in numbered.items()]
    if prompt.tag == "text":
        require_libraries()
        questions.append(Question("ocr", "text", READ_TEXT))
    if prompt.tag == "reasoning":
        questions.append(Question("reasoning", "reasoning", prompt.metadata.get("answer", "")))
    if "style" in prompt.metadata:
        questions.append(Question("style", "style", prompt.metadata["style"]))
    return questions


def _grade(prompt: BenchPrompt, answers: dict[str, Any], _: ScoringOptions) -> Grade:
    """One image; questions without an answer (no judge takes them) are left out."""
    facts: dict[str, Any] = {
        name: float(answers[name]) for name in ("reasoning", "style", "diversity") if name in answers
    }
    right: tuple[bool, ...] = ()
    lines = [f"{name} {value:.3f}" for name, value in facts.items()]
    questions = prompt.metadata.get("questions", {})
    if questions and all(number in answers for number in questions):
        given = {number: str(answers[number]) for number in questions}
        facts["alignment"], (fulfilled,) = alignment([given], prompt.metadata["dependency"])
        right = tuple(fulfilled)
        rows = zip(questions.items(), fulfilled, strict=True)
        lines += [f"{'✓' if good else '✗'} {question} {given[number]}" for (number, question), good in rows]
    if "text" in answers:
        facts["text"] = text_match(prompt.metadata["text_content"], str(answers["text"]))
        right = (facts["text"].right,)
        lines.append(f"edit distance {facts['text'].distance}; read: {answers['text']}")
    if not facts:
        raise ValueError("nothing was judged")
    share = facts.get("alignment", facts.get("reasoning", facts.get("style")))
    text = facts.get("text")
    score = share if share is not None else text.matched / text.words if text is not None and text.words else 0.0
    return Grade(score, right, "\n".join(lines), facts)


def _summarize(images: Sequence[GradedImage]) -> dict[str, float]:
    found: dict[str, dict[str, list[float]]] = {}
    matches = []
    judged = {name for one in images if one.grade for name in one.grade.facts}
    for one in images:
        facts = one.grade.facts if one.grade else _missing(one.prompt)
        for name in judged & set(facts):
            if name == "text":
                matches.append(facts[name])
            else:
                found.setdefault(name, {}).setdefault(one.prompt.id, []).append(facts[name])
    sums = {name: prompt_mean(prompts.values()) for name, prompts in found.items()}
    if text := summarize_text(matches):
        sums |= {"text": text.pop("score")} | text
    mean = overall(sums)
    ordered = {name: sums[name] for name in (*DIMENSIONS, "ED", "CR", "WAC") if name in sums}
    return ordered if mean is None else ordered | {"overall": mean}


def _missing(prompt: BenchPrompt) -> dict[str, Any]:
    """Facts of a missing image: no question is fulfilled and no text can be read."""
    if prompt.tag == "text":
        return {"text": text_match(prompt.metadata["text_content"], "")}
    if prompt.tag == "reasoning":
        return {"reasoning": 0.0}
    return {"alignment": 0.0} | ({"style": 0.0} if "style" in prompt.metadata else {})


ONEIG = Benchmark("oneig", (*DIMENSIONS, "overall"), _questions, _grade, _summarize, "question or text")
