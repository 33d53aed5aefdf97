"""GenAI-Bench: means of VQAScores by skill."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage, Question, ScoringOptions
from irg.promptsets import BenchPrompt

BASIC = ("attribute", "scene", "spatial relation", "action relation", "part relation")
ADVANCED = ("counting", "comparison", "differentiation", "negation", "universal")
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'


def summarize(scores: Iterable[tuple[Sequence[str], float]]) -> dict[str, float]:
    """Mean score per skill from (skills of the prompt, score) of every image.

    ``all`` is over images with any skill (the official number: seven prompts have none), ``every`` over all.
    """
    groups: dict[str, list[float]] = {}
    for skills, score in scores:
        for name in (*skills, *(("all",) if skills else ()), "every"):
            groups.setdefault(name, []).append(score)
    order = [*BASIC, "basic", *ADVANCED, "advanced", "all", "every"]
    extra = [name for name in groups if name not in order]
    return {name: float(np.mean(groups[name])) for name in [*order, *extra] if name in groups}


def _questions(prompt: BenchPrompt, _: ScoringOptions) -> list[Question]:
    return [Question("yes", "vqascore", QUESTION.format(prompt=prompt.text))]


def _grade(_: BenchPrompt, answers: dict[str, Any], __: ScoringOptions) -> Grade:
    score = float(answers["vqascore"])
    if not 0 <= score <= 1:
        raise ValueError(f"a VQAScore is 0 to 1, got {score}")
    return Grade(score, (score > 0.5,), f"VQAScore {score:.3f}")


def _summarize(images: Sequence[GradedImage]) -> dict[str, float]:
    return summarize((one.prompt.metadata["skills"], one.score) for one in images)


GENAI_BENCH = Benchmark("genai_bench", ("basic", "advanced", "all"), _questions, _grade, _summarize, headline=("all",))
