"""TIIF-Bench: a judge's yes/no lines, accuracy per attribute, the nine groups, and the text extra (GNED, recall)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage, Question, ScoringOptions
from irg.evaluation.benchmarks.judge_prompts import READ_TEXT, tiif_question
from irg.evaluation.benchmarks.text_distance import match_words, require_libraries
from irg.promptsets import BenchPrompt

LENGTHS = ("short", "long")
_REASONING = ("comparison", "differentiation", "negation", "numeracy")
GROUPS: dict[str, tuple[str, ...]] = {
    "Basic/Attribute": ("shape+color", "shape+texture", "color+texture", "texture+color"),
    "Basic/Relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "Basic/Reasoning": _REASONING,
    "Advanced/Attribute+Relation": (
        *("action+color", "action+texture", "color+2d", "color+3d"),
        *("shape+2d", "shape+3d", "texture+2d", "texture+3d"),
    ),
    "Advanced/Attribute+Reasoning": tuple(f"{kind}+{look}" for kind in _REASONING for look in ("color", "texture")),
    "Advanced/Relation+Reasoning": tuple(f"{kind}+{place}" for kind in _REASONING for place in ("2d", "3d")),
    "Advanced/Text": ("text",),
    "Advanced/Style": ("style",),
    "RealWorld/Complex": ("real_world",),
}
ATTRIBUTES = tuple(attribute for members in GROUPS.values() for attribute in members)
GROUP_OF = {attribute: group for group, members in GROUPS.items() for attribute in members}
RECALL_WITHIN = 0.3
_TEXT = re.compile(r"the text ['\"](.*)['\"] in the image")
_NUMBER = r"(?:(?:q|question|answer)?\s*\d+\s*[.):-]+\s*)?"  # as the question numbers them
_ANSWER = re.compile(rf"[*_\s]*{_NUMBER}[*_\s]*(yes|no)(?![^\W_])", re.IGNORECASE)


def parse(text: str) -> list[str]:
    """The judge's answers, ``yes`` or ``no``: of each line that starts with one of the words, as the official script
    reads them; a number before it ("1. yes", "Q1: yes") and emphasis ("**Yes**") may stand there, too."""
    found = (_ANSWER.match(line.strip()) for line in text.split("\n"))
    return [match[1].lower() for match in found if match]


def right(answers: Sequence[str], truth: Sequence[str]) -> list[bool]:
    """Per question whether the answer is the right one; upper and lower case are the same.

    Raises:
        ValueError: there are more or fewer answers than questions.
    """
    if len(answers) != len(truth):
        raise ValueError(f"{len(truth)} questions, but {len(answers)} answers")
    return [given.lower() == expected.lower() for given, expected in zip(answers, truth, strict=True)]


@dataclass(frozen=True)
class Accuracy:
    """Right answers of all questions of an attribute in one length."""

    correct: int
    questions: int

    @property
    def share(self) -> float:
        """To four decimals, as the official script writes it before anything is averaged."""
        return round(self.correct / self.questions, 4)


def accuracies(verdicts: Iterable[tuple[str, Sequence[bool]]]) -> dict[str, Accuracy]:
    """Pooled per attribute, from (attribute, right per question) of every image of one length."""
    pooled: dict[str, Accuracy] = {}
    for attribute, values in verdicts:
        before = pooled.get(attribute, Accuracy(0, 0))
        pooled[attribute] = Accuracy(before.correct + sum(values), before.questions + len(values))
    return {attribute: accuracy for attribute, accuracy in pooled.items() if accuracy.questions}


def summarize(shares: Mapping[str, float]) -> dict[str, float]:
    """The groups and averages of one length from accuracy per attribute.

    A group is the mean of those of its attributes that are there, and is left out when none is. ``Overall`` is the
    mean of the groups; ``Basic/Avg`` and ``Advanced/Avg`` are means over the attributes, not over the groups.
    """
    unknown = sorted(set(shares) - set(ATTRIBUTES))
    if unknown:
        raise ValueError(f"unknown TIIF attribute {unknown[0]!r}; there are {', '.join(ATTRIBUTES)}")
    scores: dict[str, float] = {}
    for group, members in GROUPS.items():
        if values := [shares[attribute] for attribute in members if attribute in shares]:
            scores[group] = float(np.mean(values))
    overall = float(np.mean(list(scores.values()))) if scores else None
    for part in ("Basic", "Advanced"):
        own = [shares[one] for one in ATTRIBUTES if one in shares and GROUP_OF[one].startswith(part)]
        if own:
            scores[f"{part}/Avg"] = float(np.mean(own))
    return scores if overall is None else scores | {"Overall": overall}


def expected_texts(questions: Sequence[str]) -> list[str]:
    """The texts that an image of the attribute ``text`` should show, from its questions."""
    found = (_TEXT.search(question) for question in questions)
    return [match[1] for match in found if match]


def text_match(expected: Sequence[str], seen: Sequence[str]) -> tuple[float, float]:
    """(GNED, recall) of texts read in an image against those it should show.

    Both sides are split into lower-case words and paired so that the sum of normalized edit distances is least. GNED
    is that sum, a word without partner counting 1, over the longer list's length: 0 is perfect. Recall is the share
    of expected words whose partner is within 0.3.

    Raises:
        ValueError: no word is expected.
    """
    words, read = ([word for text in texts for word in text.lower().split()] for texts in (expected, seen))
    if not words:
        raise ValueError("no text is expected in this image")
    distances = match_words(words, read)
    found = sum(distance <= RECALL_WITHIN for distance in distances[: len(words)])
    return float(np.mean(distances)), found / len(words)


def _questions(prompt: BenchPrompt, options: ScoringOptions) -> list[Question]:
    if prompt.tag not in GROUP_OF:
        raise ValueError(f"unknown TIIF attribute {prompt.tag!r}; there are {', '.join(ATTRIBUTES)}")
    truth = prompt.metadata.get("answers")
    if truth is None:
        raise ValueError(f"{prompt.id}: its questions are missing (the folder of *_eval_prompts.jsonl)")

    def check(text: str) -> None:
        right(parse(text), truth)

    questions = [Question("chat", "answers", tiif_question(prompt.metadata["questions"]), check)]
    if options.tiif_text and prompt.tag == "text":
        require_libraries()
        questions.append(Question("ocr", "text", READ_TEXT))
    return questions


def _grade(prompt: BenchPrompt, answers: dict[str, Any], _: ScoringOptions) -> Grade:
    given = parse(answers["answers"])
    verdicts = right(given, prompt.metadata["answers"])
    rows = zip(prompt.metadata["questions"], given, verdicts, strict=True)
    detail = "\n".join(f"{'✓' if good else '✗'} {question.strip()} {answer}" for question, answer, good in rows)
    read = answers.get("text")
    facts = None if read is None else text_match(expected_texts(prompt.metadata["questions"]), [read])
    return Grade(sum(verdicts) / len(verdicts), tuple(verdicts), detail, facts)


def _summarize(images: Sequence[GradedImage]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for length in LENGTHS:
        own = [one for one in images if one.prompt.metadata["length"] == length]
        verdicts = [
            (one.prompt.tag, one.grade.right if one.grade else [False] * len(one.prompt.metadata["answers"]))
            for one in own
        ]
        shares = {name: one.share for name, one in accuracies(verdicts).items()}
        sums |= {f"{name} {length}": value for name, value in summarize(shares).items()}
        if matches := [one.grade.facts for one in own if one.grade and one.grade.facts is not None]:
            gned, recall = (float(mean) for mean in np.mean(matches, axis=0))
            sums |= {f"GNED {length}": gned, f"recall {length}": recall}
    return sums


_COLUMNS = ("Overall", "Basic/Avg", "Advanced/Avg", *GROUPS, "GNED", "recall")
TIIF = Benchmark(
    "tiif",
    tuple(f"{name} {length}" for name in _COLUMNS for length in LENGTHS),
    _questions,
    _grade,
    _summarize,
    "question",
    tuple(f"Overall {length}" for length in LENGTHS),
)
