"""How clearly one box stands on or behind another: numbers for boxes alone, so for any detector's boxes.

GenEval has rules for left, right, above and below (`rules.relation_strength`); these are ours, with the same meaning:
1 is perfect, above 0.5 the relation holds. Each is 1 - d / 2 where d, over all conditions, is the largest distance from
the ideal in units of what is still allowed. x runs to the right, y downwards; every value may be an array.

*on*: a's bottom edge meets b's top edge (or sinks in a little: we look a little from above), a's middle is over b.
*behind*: b hides a part of a, not all; a reaches higher, is higher up, and is the smaller one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STACKED = ("on", "behind")
"""The relations of this file."""

SUNK, SUNK_SLACK = 0.08, 0.18
"""a's bottom is this far below b's top, in mean heights of the two, give or take the slack."""
SUPPORT = 0.36
"""a's middle is at most this share of b's width from b's middle."""
HIDDEN, HIDDEN_SLACK = 0.4, 0.25
"""Share of a that b hides."""
BEHIND_SUNK = 0.3
"""What is behind reaches at least this far below b's top, in mean heights (what stands on it does not)."""
RAISED = 0.1
"""It is at least this much higher, in mean heights."""

Values = Any  # float or array: boxes of many places at once


def on_strength(box_a: tuple[Values, ...], box_b: tuple[Values, ...]) -> Values:
    """How clearly a stands on b, in -1..1; above 0.5 it does."""
    scale = (box_a[3] - box_a[1] + box_b[3] - box_b[1]) / 2
    sunk = np.abs((box_a[3] - box_b[1]) / scale - SUNK) / SUNK_SLACK
    aside = np.abs(box_a[0] + box_a[2] - box_b[0] - box_b[2]) / 2 / (SUPPORT * (box_b[2] - box_b[0]))
    return _clearness(sunk, aside)


def behind_strength(box_a: tuple[Values, ...], box_b: tuple[Values, ...]) -> Values:
    """How clearly a stands partly hidden behind b, in -1..1; above 0.5 it does."""
    area_a = (box_a[2] - box_a[0]) * (box_a[3] - box_a[1])
    area_b = (box_b[2] - box_b[0]) * (box_b[3] - box_b[1])
    scale = (box_a[3] - box_a[1] + box_b[3] - box_b[1]) / 2
    wide = np.minimum(box_a[2], box_b[2]) - np.maximum(box_a[0], box_b[0])
    high = np.minimum(box_a[3], box_b[3]) - np.maximum(box_a[1], box_b[1])
    hidden = np.maximum(wide, 0) * np.maximum(high, 0) / area_a
    raised = (box_b[1] + box_b[3] - box_a[1] - box_a[3]) / 2 / scale
    return _clearness(
        np.abs(hidden - HIDDEN) / HIDDEN_SLACK,
        2 - (box_a[3] - box_b[1]) / scale / BEHIND_SUNK,
        2 - raised / RAISED,
        1 - (box_b[1] - box_a[1]) / scale / RAISED,
        area_a / area_b,
    )


def _clearness(*distances: Values) -> Values:
    worst = distances[0]
    for distance in distances[1:]:
        worst = np.maximum(worst, distance)
    return np.maximum(1 - worst / 2, -1)


STRENGTHS = {"on": on_strength, "behind": behind_strength}
