"""Distances between texts and words, by rapidfuzz and scipy (both in the extra ``eval``)."""

from collections.abc import Sequence

import numpy as np


def require_libraries() -> None:
    """Check that they are installed; benchmarks that compare texts do so before anything is judged.

    Raises:
        ValueError: one is missing.
    """
    try:
        import rapidfuzz.distance  # noqa: F401
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ValueError(f"comparing texts needs rapidfuzz and scipy ({error}): pip install 'irg[eval]'") from error


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn ``a`` into ``b``."""
    require_libraries()
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(a, b))


def match_words(expected: Sequence[str], seen: Sequence[str]) -> list[float]:
    """Normalized edit distances of the cheapest pairing of words; a word without partner counts 1.

    Length: of the longer list. The first ``len(expected)`` values are those of the expected words, in their order.
    """
    require_libraries()
    from rapidfuzz.distance import Levenshtein
    from scipy.optimize import linear_sum_assignment

    size = max(len(expected), len(seen))
    costs = np.ones((size, size))
    for i, word in enumerate(expected):
        for j, other in enumerate(seen):
            costs[i, j] = Levenshtein.normalized_distance(word, other)
    return [float(cost) for cost in costs[linear_sum_assignment(costs)]]
