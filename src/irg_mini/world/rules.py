"""GenEval's verdict: does what is seen in an image satisfy a request? (The rules of its official evaluation.)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from irg_mini.world.geometry import STRENGTHS
from irg_mini.world.meaning import Request
from irg_mini.world.scene import Box, Scene, boxes

BOX_SHARE = 0.1
"""Offsets shrink, per axis, by this share of both boxes' sizes before they count."""
HOLDS_ABOVE = 0.5
SCORE_ABOVE = 0.3
COUNTING_SCORE_ABOVE = 0.9
MOST_PER_CLASS = 16


@dataclass(frozen=True)
class Seen:
    """One object seen in an image; the box in pixels, `color` one of the ten names or None."""

    name: str
    color: str | None
    box: Box
    score: float = 1.0


def see(scene: Scene, size: int = 96) -> list[Seen]:
    """What a perfect detector sees in the scene's image."""
    return [Seen(name, color, box) for name, color, box in boxes(scene, size)]


def relation_strength(box_a: Box, box_b: Box, relation: str) -> float:
    """How clearly a stands in `relation` to b, in -1..1; GenEval lets it hold above 0.5 (ours, `geometry`, as well)."""
    if relation in STRENGTHS:
        return float(STRENGTHS[relation](box_a, box_b))
    dx = (box_a[0] + box_a[2] - box_b[0] - box_b[2]) / 2
    dy = (box_a[1] + box_a[3] - box_b[1] - box_b[3]) / 2
    norm = math.hypot(dx, dy)
    if norm == 0:
        return 0.0
    if relation in ("left of", "right of"):
        offset, sizes = dx, abs(box_a[2] - box_a[0]) + abs(box_b[2] - box_b[0])
    else:
        offset, sizes = dy, abs(box_a[3] - box_a[1]) + abs(box_b[3] - box_b[1])
    strength = math.copysign(max(abs(offset) - BOX_SHARE * sizes, 0.0), offset) / norm
    return -strength if relation in ("left of", "above") else strength


def holds(box_a: Box, box_b: Box, relation: str) -> bool:
    return relation_strength(box_a, box_b, relation) > HOLDS_ABOVE


def placed(box: Box, targets: Sequence[Box], relation: str) -> bool:
    """Whether a thing stands rightly to those it refers to: to all of them, but on or behind just one."""
    answers = (holds(box, target, relation) for target in targets)
    return any(answers) if relation in STRENGTHS else all(answers)


def kept(seen: Sequence[Seen], threshold: float) -> dict[str, list[Seen]]:
    """Per class the objects above the threshold, the surest first, at most 16."""
    groups: dict[str, list[Seen]] = {}
    for item in sorted(seen, key=lambda item: -item.score):
        if item.score > threshold:
            groups.setdefault(item.name, []).append(item)
    return {name: items[:MOST_PER_CLASS] for name, items in groups.items()}


def score_threshold(request: Request) -> float:
    return COUNTING_SCORE_ABOVE if request.tag == "counting" else SCORE_ABOVE


def satisfied(request: Request, seen: Sequence[Seen], threshold: float | None = None) -> bool:
    """GenEval's verdict on an image; `threshold` replaces GenEval's own limit on the objects' scores."""
    groups = kept(seen, score_threshold(request) if threshold is None else threshold)
    matched: list[list[Seen] | None] = []
    for entry in request.include:
        found = groups.get(entry.name, [])[: entry.count]
        right = len(found) == entry.count
        if right and entry.color is not None:
            right = all(item.color == entry.color for item in found)
        if right and entry.position is not None:
            relation, index = entry.position
            targets = matched[index]
            right = targets is not None and all(placed(a.box, [b.box for b in targets], relation) for a in found)
        matched.append(found if right else None)
    return all(group is not None for group in matched) and all(
        len(groups.get(name, [])) < count for name, count in request.exclude
    )
