"""OneIG-Bench (English): alignment, text, reasoning, style and diversity, each from a judge's raw findings.

Legend: R references, F features, P images.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from irg.evaluation.benchmarks.text_distance import levenshtein

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
        answers: per image, question number -> the judge's answer as it stands; only an exact ``Yes`` is one.
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
    """What is measured on one image: edit distance, whether all is right, words found, words wanted."""

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


def text_match(wanted: Sequence[str], read: str) -> TextMatch:
    """Compare what was read in an image with the texts it should show."""
    truth, seen = clean_text(" ".join(wanted)), clean_ocr(read)
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


def cosine(a_F: np.ndarray, b_F: np.ndarray) -> float:
    """Cosine of two features: the reasoning score of an image against its answer."""
    a_F, b_F = np.asarray(a_F, np.float64), np.asarray(b_F, np.float64)
    return float(a_F @ b_F / (np.linalg.norm(a_F) * np.linalg.norm(b_F)))


def style(features: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray]) -> float:
    """Mean over the style encoders of the best cosine of an image [F] to the style's references [R, F], at least 0."""
    best = [max(cosine(feature_F, one_F) for one_F in references[name]) for name, feature_F in features.items()]
    return max(0.0, float(np.mean(best)))


def diversity(features_PF: np.ndarray) -> float | None:
    """Mean cosine distance over all pairs of a prompt's images; None for fewer than two."""
    distances = [1 - cosine(a_F, b_F) for a_F, b_F in combinations(features_PF, 2)]
    return float(np.mean(distances)) if distances else None


def overall(dimensions: Mapping[str, float]) -> float | None:
    """Plain mean of the five dimensions; None while one is missing."""
    if any(name not in dimensions for name in DIMENSIONS):
        return None
    return float(np.mean([dimensions[name] for name in DIMENSIONS]))


def prompt_mean(scores: Iterable[Sequence[float]]) -> float:
    """Mean over the images of each prompt, then over prompts."""
    return float(np.mean([np.mean(values) for values in scores]))
