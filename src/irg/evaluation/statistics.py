"""Intervals of shares and means, and what later images change about the first one: repair, damage, score."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_SEED = 2509
_Z = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Estimate:
    """A share or a mean of ``of`` values with its 95 % interval; ``value`` is None when there are none."""

    value: float | None
    low: float | None
    high: float | None
    of: int


@dataclass(frozen=True)
class Changes:
    """What happened from the first image to a later one.

    Attributes:
        repair: share of what was wrong in the first image and is right.
        damage: share of what was right in the first image and is wrong.
        score: mean change of the images' scores, paired.
    """

    repair: Estimate
    damage: Estimate
    score: Estimate


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


def wilson_interval(count: float, of: int) -> tuple[float, float]:
    """95 % interval of a share of independent values (Wilson 1927); of 0 and of 1 it is no point, unlike a
    bootstrap's."""
    share, spread = count / of, _Z**2 / of
    middle = (share + spread / 2) / (1 + spread)
    half = (spread * share * (1 - share) + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(groups: Sequence[tuple[float, float]]) -> Estimate:
    """Sum of numerators (of values in 0..1) over sum of denominators.

    The interval is the bootstrap's over groups. Where all values are 0, or all are 1, every resample is the same and
    the bootstrap says nothing: then it is Wilson's for as many independent values as there are groups.
    """
    total, count = sum(group[0] for group in groups), sum(group[1] for group in groups)
    bounds = bootstrap_interval(groups)
    if bounds is None:
        return Estimate(None, None, None, 0)
    if total in (0, count):
        filled = sum(1 for group in groups if group[1])
        bounds = wilson_interval(filled * total / count, filled)
    return Estimate(total / count, *bounds, int(count))


def mean_difference(pairs: Iterable[tuple[str, float, float]]) -> Estimate:
    """Mean of after - before, from (prompt, before, after) of every image, with its bootstrap interval over prompts."""
    groups: dict[str, list[float]] = {}
    for prompt, before, after in pairs:
        groups.setdefault(prompt, []).append(after - before)
    sums = [(sum(values), float(len(values))) for values in groups.values()]
    bounds, count = bootstrap_interval(sums), sum(number for _, number in sums)
    if bounds is None:
        return Estimate(None, None, None, 0)
    return Estimate(sum(total for total, _ in sums) / count, *bounds, int(count))


def repair_and_damage(pairs: Iterable[tuple[str, Sequence[bool], Sequence[bool]]]) -> tuple[Estimate, Estimate]:
    """Repair and damage from (prompt, right before, right after) of every image; its values are aligned."""
    repaired: dict[str, list[int]] = {}
    damaged: dict[str, list[int]] = {}
    for prompt, before, after in pairs:
        for was, is_ in zip(before, after, strict=True):
            counts = (damaged if was else repaired).setdefault(prompt, [0, 0])
            counts[0] += was != is_
            counts[1] += 1
    repair, damage = (share([(a, b) for a, b in group.values()]) for group in (repaired, damaged))
    return repair, damage
