"""GenEval's rules (github.com/djghosh13/geneval): from what a detector found in an image to the verdict.

Functions of boxes that need the standard library only: the mini world uses them too, in its worker processes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SCORE_ABOVE = 0.3
COUNTING_SCORE_ABOVE = 0.9
MAX_PER_CLASS = 16
BOX_SHARE = 0.1
"""An offset shrinks on each axis by this share of both boxes' sizes before it counts."""
HOLDS_ABOVE = 0.5
RELATIONS = ("left of", "right of", "above", "below")
_MIN_OFFSET = 1e-3  # pixels; an offset below this on both axes is no relation

Box = Sequence[float]
"""(x1, y1, x2, y2) in pixels; y grows downwards."""


class Detection(Protocol):
    """An object that a detector found; ``color`` is None where it was not classified."""

    @property
    def name(self) -> str: ...
    @property
    def color(self) -> str | None: ...
    @property
    def box(self) -> Box: ...
    @property
    def score(self) -> float: ...


class Clause(Protocol):
    """So many objects of a class, perhaps in a color, perhaps in a relation to an earlier clause (by its index)."""

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def color(self) -> str | None: ...
    @property
    def position(self) -> tuple[str, int] | None: ...


D = TypeVar("D", bound=Detection)


def score_threshold(tag: str | None, counting_above: float = COUNTING_SCORE_ABOVE) -> float:
    """What a detection's score must be above in prompts of this tag."""
    return counting_above if tag == "counting" else SCORE_ABOVE


def keep(detections: Iterable[D], threshold: float) -> dict[str, list[D]]:
    """Per class the detections above the threshold, by falling score, at most 16.

    Of equal scores the later one comes first, as in the official code.
    """
    groups: dict[str, list[D]] = {}
    by_score = [*detections]
    by_score.reverse()
    by_score.sort(key=lambda one: one.score, reverse=True)  # stable: equal scores keep their (reversed) order
    for one in by_score:
        if one.score > threshold:
            groups.setdefault(one.name, []).append(one)
    return {name: group[:MAX_PER_CLASS] for name, group in groups.items()}


def relation_strength(box_a: Box, box_b: Box, relation: str) -> float:
    """How clearly a stands in ``relation`` (one of :data:`RELATIONS`) to b, -1..1; above 0.5 the relation holds.

    The offset of the centers shrinks on each axis by a tenth of both sizes and is divided by the length of the unshrunk
    offset.
    """
    dx = (box_a[0] + box_a[2] - box_b[0] - box_b[2]) / 2
    dy = (box_a[1] + box_a[3] - box_b[1] - box_b[3]) / 2
    shrunk_x = _shrunk(dx, abs(box_a[2] - box_a[0]) + abs(box_b[2] - box_b[0]))
    shrunk_y = _shrunk(dy, abs(box_a[3] - box_a[1]) + abs(box_b[3] - box_b[1]))
    if abs(shrunk_x) < _MIN_OFFSET and abs(shrunk_y) < _MIN_OFFSET:
        return 0.0
    strength = (shrunk_x if relation in ("left of", "right of") else shrunk_y) / math.hypot(dx, dy)
    return -strength if relation in ("left of", "above") else strength


def _shrunk(offset: float, sizes: float) -> float:
    return math.copysign(max(abs(offset) - BOX_SHARE * sizes, 0.0), offset)


def holds(box_a: Box, box_b: Box, relation: str) -> bool:
    """Whether a stands in ``relation`` to b."""
    return relation_strength(box_a, box_b, relation) > HOLDS_ABOVE


def relations(box_a: Box, box_b: Box) -> set[str]:
    """All relations in which a stands to b."""
    return {relation for relation in RELATIONS if holds(box_a, box_b, relation)}


def in_place(box: Box, targets: Sequence[Box], relation: str) -> bool:
    """Whether an object stands in ``relation`` to all of its targets."""
    return all(holds(box, target, relation) for target in targets)


def unmet(
    include: Sequence[Clause],
    exclude: Iterable[tuple[str, int]],
    kept: Mapping[str, Sequence[Detection]],
    in_place: Callable[[Box, Sequence[Box], str], bool] = in_place,
) -> list[str]:
    """Why an image is not what its prompt asks for, one reason an unmet clause in the official words; empty if it is.

    Args:
        exclude: (class, count) pairs: so many of the class are too many.
        kept: as :func:`keep` returns it.
        in_place: the rule for positions; a world with relations of its own has another.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in include:
        group = kept.get(clause.name, ())[: clause.count]
        reason = _unmet(clause, group, matched, in_place)
        matched.append(None if reason else group)
        if reason:
            reasons.append(reason)
    for name, count in exclude:
        found = len(kept.get(name, ()))
        if found >= count:
            reasons.append(f"expected {name}<{count}, found {found}")
    return reasons


def _unmet(
    clause: Clause,
    group: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    in_place: Callable[[Box, Sequence[Box], str], bool],
) -> str:
    """Why a group of detections does not fulfil a clause; empty if it does."""
    name, count = clause.name, clause.count
    if len(group) < count:
        return f"expected {name}>={count}, found {len(group)}"
    if clause.color is not None:
        colors = [one.color for one in group]
        right = colors.count(clause.color)
        if right < count:
            seen = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
            return f"expected {clause.color} {name}>={count}, found {right} {clause.color}; and {seen}"
    if clause.position is not None:
        relation, index = clause.position
        targets = matched[index]
        if targets is None:
            return f"no target for {name} to be {relation}"
        for one in group:
            if not in_place(one.box, [target.box for target in targets], relation):
                held = (relations(one.box, target.box) for target in targets)
                found = next((names for names in held if relation not in names), set())
                return f"expected {name} {relation} target, found {' and '.join(sorted(found))} target"
    return ""
