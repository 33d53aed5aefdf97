"""Distances between texts: Levenshtein, and the cheapest pairing of two lists of words."""

from collections.abc import Sequence

import numpy as np


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn ``a`` into ``b``."""
    if len(a) < len(b):
        a, b = b, a  # the shorter one along the array
    if not b:
        return len(a)
    letters_a, letters_b = (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in (a, b))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for index, letter in enumerate(letters_a, start=1):
        following = np.empty_like(row)
        following[0] = index
        following[1:] = np.minimum(row[1:] + 1, row[:-1] + (letters_b != letter))
        # an insertion costs one a column, so the best chain of them is a running minimum of value - column
        row = np.minimum.accumulate(following - steps) + steps
    return int(row[-1])


def normalized(a: str, b: str) -> float:
    """Levenshtein distance as a share of the longer text; 0 for two empty ones."""
    longest = max(len(a), len(b))
    return levenshtein(a, b) / longest if longest else 0.0


def cheapest_pairs(costs_NM: np.ndarray) -> list[tuple[int, int]]:
    """The pairing (row, column) of least total cost that uses every row once; needs N <= M.

    The Hungarian method with potentials (Kuhn 1955; the shortest-path form of Jonker and Volgenant), O(N^2 M).
    """
    rows, columns = costs_NM.shape
    if rows > columns:
        raise ValueError(f"at least as many columns as rows are needed, got {rows} x {columns}")
    by_row, by_column = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=int)  # 1-based row of a column, 0 is free; column 0 is where a search starts
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        cheapest, came_from = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=int)
        done = np.zeros(columns + 1, dtype=bool)
        while owner[column]:
            done[column] = True
            reached = owner[column]
            reduced = costs_NM[reached - 1] - by_row[reached] - by_column[1:]
            better = ~done[1:] & (reduced < cheapest[1:])
            cheapest[1:][better] = reduced[better]
            came_from[1:][better] = column
            waiting = np.where(done, np.inf, cheapest)
            following = int(np.argmin(waiting[1:])) + 1
            by_row[owner[done]] += waiting[following]
            by_column[done] -= waiting[following]
            cheapest[~done] -= waiting[following]
            column = following
        while column:
            owner[column] = owner[came_from[column]]
            column = int(came_from[column])
    return sorted((int(row) - 1, column) for column, row in enumerate(owner[1:]) if row)


def pair_words(wanted: Sequence[str], seen: Sequence[str]) -> list[float]:
    """Normalized distances of the cheapest pairing; a word without partner counts 1. Length: of the longer list.

    The first ``len(wanted)`` values are those of the wanted words, in their order.
    """
    size = max(len(wanted), len(seen))
    costs = np.ones((size, size))
    for i, word in enumerate(wanted):
        for j, other in enumerate(seen):
            costs[i, j] = normalized(word, other)
    return [float(costs[pair]) for pair in cheapest_pairs(costs)]
