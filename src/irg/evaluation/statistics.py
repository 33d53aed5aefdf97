"""Bootstrap intervals, and what a turn repairs and damages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_SEED = 2509


@dataclass(frozen=True)
class Share:
    """A share with its 95 % bootstrap interval. ``value`` is None when there is nothing to take a share of."""

    value: float | None
    low: float | None
    high: float | None
    of: int


@dataclass(frozen=True)
class Changes:
    """What happened from the first image to the last: wrong -> right among wrong, right -> wrong among right."""

    repair: Share
    damage: Share


def bootstrap_interval(groups: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of (sum of numerators) / (sum of denominators).

    Args:
        groups: (numerator, denominator) of each prompt, resampled as a whole: its images are not independent.
    """
    table = np.asarray([group for group in groups if group[1]], dtype=float)
    if not len(table):
        return None
    indices = np.random.default_rng(_SEED).integers(0, len(table), (RESAMPLES, len(table)))
    sums = table[indices].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(low), float(high)


def stratified_interval(
    strata: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = _SEED
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the plain mean of strata's means; values are resampled within a stratum."""
    rng, means = np.random.default_rng(seed), np.zeros(resamples)
    for stratum in strata:
        values = np.asarray(stratum)
        means += values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1) / len(strata)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def share(groups: Sequence[tuple[float, float]]) -> Share:
    """Sum of numerators over sum of denominators, with its interval."""
    count = sum(group[1] for group in groups)
    bounds = bootstrap_interval(groups)
    if bounds is None:
        return Share(None, None, None, 0)
    return Share(sum(group[0] for group in groups) / count, *bounds, int(count))


def changes(pairs: Sequence[tuple[str, Sequence[bool], Sequence[bool]]]) -> Changes:
    """Repair and damage from (prompt, right before, right after) of every image; its values are aligned."""
    repaired: dict[str, list[int]] = {}
    damaged: dict[str, list[int]] = {}
    for prompt, before, after in pairs:
        for was, is_ in zip(before, after, strict=True):
            counts = (damaged if was else repaired).setdefault(prompt, [0, 0])
            counts[0] += was != is_
            counts[1] += 1
    return Changes(*(share([(a, b) for a, b in group.values()]) for group in (repaired, damaged)))
