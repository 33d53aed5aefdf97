"""GenEval's verdict on a request: GenEval's own rules and, beyond them, the relations `on` and `behind`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from irg.evaluation.benchmarks import geneval_rules
from irg.evaluation.benchmarks.geneval_rules import HOLDS_ABOVE, Box
from irg_mini.world.geometry import STRENGTHS
from irg_mini.world.request import Request
from irg_mini.world.scene import Scene, Thing, boxes, crowding, may_overlap

TOUCHING = 0.05
"""Overlap up to which two things are beside one another: what the world's own scenes keep to."""
SCORE_THRESHOLD = 0.3
"""A thing counts as seen if its score is above this."""


@dataclass(frozen=True)
class Seen:
    """One object seen in an image; the box in pixels, `color` one of the ten names or None."""

    name: str
    color: str | None
    box: tuple[float, float, float, float]
    score: float = 1.0


def see(scene: Scene, size: int = 96) -> list[Seen]:
    """What a perfect detector sees in the scene's image."""
    return [Seen(name, color, box) for name, color, box in boxes(scene, size)]


def relation_strength(box_a: Box, box_b: Box, relation: str) -> float:
    """How clearly a stands in `relation` to b, in -1..1; GenEval lets it hold above 0.5 (ours, `geometry`, as well)."""
    if relation in STRENGTHS:
        return float(STRENGTHS[relation](tuple(box_a), tuple(box_b)))
    return geneval_rules.relation_strength(box_a, box_b, relation)


def holds(box_a: Box, box_b: Box, relation: str) -> bool:
    return relation_strength(box_a, box_b, relation) > HOLDS_ABOVE


def placed(box: Box, targets: Sequence[Box], relation: str) -> bool:
    """Whether a thing stands rightly to those it refers to: to all of them, but on or behind just one."""
    answers = (holds(box, target, relation) for target in targets)
    return any(answers) if relation in STRENGTHS else all(answers)


def kept(seen: Sequence[Seen], threshold: float) -> dict[str, list[Seen]]:
    """Per class the objects above the threshold, by falling score, at most 16; of equal scores the earlier comes first
    (GenEval's own order is the reverse)."""
    return geneval_rules.keep(reversed(seen), threshold)


def score_threshold(request: Request) -> float:
    return geneval_rules.score_threshold(request.tag)


def satisfied(request: Request, seen: Sequence[Seen], threshold: float | None = None) -> bool:
    """GenEval's verdict on an image; `threshold` replaces GenEval's own limit on the objects' scores."""
    groups = kept(seen, score_threshold(request) if threshold is None else threshold)
    return not geneval_rules.unmet(request.include, request.exclude, groups, placed)


def worst_overlap(request: Request, scene: Scene) -> float:
    """The largest overlap of two things that the request does not put on or behind one another: shared area over the
    smaller one's, from 0 to 1."""
    return max((crowding(one.box, other.box) for one, other in apart(request, scene)), default=0.0)


def overlaps(request: Request, scene: Scene) -> list[tuple[Thing, Thing]]:
    """The pairs of things that overlap by more than what is beside one another may, and are not asked to."""
    return [(one, other) for one, other in apart(request, scene) if crowding(one.box, other.box) > TOUCHING]


def apart(request: Request, scene: Scene) -> list[tuple[Thing, Thing]]:
    """The pairs of things that the request does not put on or behind one another."""
    include = request.include
    related = {
        frozenset((entry.name, include[entry.position[1]].name))
        for entry in include
        if entry.position is not None and may_overlap(entry.position[0])
    }
    return [pair for pair in combinations(scene.things, 2) if frozenset(thing.name for thing in pair) not in related]
