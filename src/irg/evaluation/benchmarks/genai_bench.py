"""GenAI-Bench: means of VQAScores by skill."""

from collections.abc import Iterable, Sequence

import numpy as np

BASIC = ("attribute", "scene", "spatial relation", "action relation", "part relation")
ADVANCED = ("counting", "comparison", "differentiation", "negation", "universal")
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
ANSWER = "Yes"


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
