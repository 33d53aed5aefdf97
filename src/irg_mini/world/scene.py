"""Scenes: what stands where, as plain data, and the geometry that everybody else uses (boxes, free places)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from irg.evaluation.benchmarks.geneval_rules import BOX_SHARE
from irg_mini.world.classes import GRID, LONGEST, SIZES, check_color, object_class
from irg_mini.world.geometry import STACKED, STRENGTHS

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1), x to the right, y downwards; in shares of the image's side unless a function says pixels."""


@dataclass(frozen=True)
class Thing:
    """One object in a scene: its center is the center of grid cell (col, row)."""

    name: str
    color: str | None
    col: int
    row: int
    size: str

    def __post_init__(self) -> None:
        object_class(self.name)
        check_color(self.color)
        if self.size not in SIZES:
            raise ValueError(f"unknown size {self.size!r}; choose from {', '.join(SIZES)}")
        if not (0 <= self.col < GRID and 0 <= self.row < GRID):
            raise ValueError(f"place ({self.col},{self.row}) is outside the {GRID} x {GRID} grid")

    @property
    def label(self) -> str:
        """'red apple', 'dog'."""
        return f"{self.color} {self.name}" if self.color else self.name

    @property
    def place(self) -> str:
        return f"({self.col},{self.row})"

    @property
    def box(self) -> Box:
        """Its box in shares of the image's side."""
        width, height = extent(self.name, self.size)
        x, y = (self.col + 0.5) / GRID, (self.row + 0.5) / GRID
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@dataclass(frozen=True)
class Scene:
    """A background and the things on it."""

    background: str
    things: tuple[Thing, ...]


@cache
def extent(name: str, size: str) -> tuple[float, float]:
    """(width, height) of a class at a size, in shares of the image's side; independent of the sprites used."""
    aspect = object_class(name).aspect
    side = SIZES[size]
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    shrink = min(1.0, LONGEST * side / max(width, height))
    return width * shrink, height * shrink


def pixel_box(thing: Thing, size: int) -> tuple[int, int, int, int]:
    """The whole pixels a thing covers in an image of `size` px: where its sprite is drawn."""
    width, height = extent(thing.name, thing.size)
    w, h = max(1, round(width * size)), max(1, round(height * size))
    x0 = round((thing.col + 0.5) / GRID * size - w / 2)
    y0 = round((thing.row + 0.5) / GRID * size - h / 2)
    return x0, y0, x0 + w, y0 + h


def boxes(scene: Scene, size: int) -> list[tuple[str, str | None, tuple[int, int, int, int]]]:
    """(class, color, box in pixels) of every thing; a natural-colored thing reports its class's own color, if any."""
    return [(t.name, t.color or object_class(t.name).natural, pixel_box(t, size)) for t in scene.things]


def snap(name: str, color: str | None, box: Box, side: float) -> Thing:
    """The thing on the grid that is nearest to a box seen in an image of `side` px."""
    x0, y0, x1, y1 = (value / side for value in box)
    area = max((x1 - x0) * (y1 - y0), 1e-6)

    def misfit(size: str) -> float:
        width, height = extent(name, size)
        return abs(math.log(width * height / area))

    col, row = (min(GRID - 1, max(0, math.floor((a + b) / 2 * GRID))) for a, b in ((x0, x1), (y0, y1)))
    return Thing(name, color, col, row, min(SIZES, key=misfit))


_CENTERS = (np.arange(GRID) + 0.5) / GRID
_FRAME_SLACK = 1e-9
_CLEAR = 0.66
_TRIED_ROWS = (8, 7, 9)


def crowding(box_a: Box, box_b: Box) -> float:
    """Shared area over the smaller box's area: 0 apart, 1 when one covers the other."""
    width = min(box_a[2], box_b[2]) - max(box_a[0], box_b[0])
    height = min(box_a[3], box_b[3]) - max(box_a[1], box_b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (box_a, box_b))
    return width * height / smaller


@cache
def _inside(name: str, size: str) -> np.ndarray:
    """bool [GRID row, GRID col]: cells where such a thing is inside the frame. Shared: copy before changing it."""
    width, height = extent(name, size)
    fits_x = (_CENTERS - width / 2 >= -_FRAME_SLACK) & (_CENTERS + width / 2 <= 1 + _FRAME_SLACK)
    fits_y = (_CENTERS - height / 2 >= -_FRAME_SLACK) & (_CENTERS + height / 2 <= 1 + _FRAME_SLACK)
    return fits_y[:, None] & fits_x[None, :]


def free_cells(name: str, size: str, others: Iterable[Box], most: float = 0.05) -> np.ndarray:
    """bool [GRID row, GRID col]: cells where such a thing is inside the frame and crowds no other box beyond `most`."""
    free = _inside(name, size).copy()
    boxes_N4 = np.array(list(others), float).reshape(-1, 4)
    if not len(boxes_N4):
        return free
    width, height = extent(name, size)
    x0_N1, y0_N1, x1_N1, y1_N1 = (boxes_N4[:, k, None] for k in range(4))
    over_x_NC = np.minimum(_CENTERS + width / 2, x1_N1) - np.maximum(_CENTERS - width / 2, x0_N1)
    over_y_NR = np.minimum(_CENTERS + height / 2, y1_N1) - np.maximum(_CENTERS - height / 2, y0_N1)
    smaller_N1 = np.minimum(width * height, (x1_N1 - x0_N1) * (y1_N1 - y0_N1))
    shared_NRC = over_y_NR.clip(0)[:, :, None] * over_x_NC.clip(0)[:, None, :]
    return free & (shared_NRC <= most * smaller_N1[:, :, None]).all(axis=0)


CONVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "on": "carrying",
    "behind": "hiding",
}
"""What the target of a relation is to the thing: a couch is 'carrying' the cat that is on it."""
_ITS_TARGET = {CONVERSE[relation]: relation for relation in STACKED}


def related_cells(name: str, size: str, relation: str, target: Box, margin: float) -> np.ndarray:
    """bool [GRID row, GRID col]: cells where such a thing stands in `relation` to the box `target`, with a margin.

    The rule is `rules.relation_strength`'s, for all cells at once; the relation may also be a converse one.
    """
    width, height = extent(name, size)
    if relation in STACKED or relation in _ITS_TARGET:
        across, down = _CENTERS[None, :], _CENTERS[:, None]
        own = (across - width / 2, down - height / 2, across + width / 2, down + height / 2)
        strength = STRENGTHS[_ITS_TARGET.get(relation, relation)]
        return (strength(target, own) if relation in _ITS_TARGET else strength(own, target)) > margin
    dx = (_CENTERS - (target[0] + target[2]) / 2)[None, :]
    dy = (_CENTERS - (target[1] + target[3]) / 2)[:, None]
    norm = np.maximum(np.hypot(dx, dy), 1e-9)
    sign = -1 if relation in ("left of", "above") else 1
    if relation in ("left of", "right of"):
        along = sign * dx - BOX_SHARE * (width + target[2] - target[0])
    else:
        along = sign * dy - BOX_SHARE * (height + target[3] - target[1])
    return along / norm > margin


@cache
def stacking_sizes(name: str, target: str, relation: str, count: int = 1) -> tuple[tuple[str, str], ...]:
    """The sizes (thing's, target's) in which so many such things clearly stand on or behind one such target."""
    words = list(SIZES)
    pairs = [(own, theirs) for i, own in enumerate(words[:2]) for theirs in words[i + 1 :]]
    return tuple(pair for pair in pairs if _have_room(name, target, relation, count, *pair))


def _have_room(name: str, target: str, relation: str, count: int, own: str, theirs: str) -> bool:
    for row in _TRIED_ROWS:
        if not _inside(target, theirs)[row, GRID // 2]:
            continue
        box = Thing(target, None, GRID // 2, row, theirs).box
        cells = _inside(name, own) & related_cells(name, own, relation, box, _CLEAR)
        for _ in range(count):
            rows, cols = np.nonzero(cells)
            if not len(cols):
                break
            leftmost = int(cols.argmin())
            first = Thing(name, None, int(cols[leftmost]), int(rows[leftmost]), own)
            cells = cells & free_cells(name, own, [first.box])
        else:
            return True
    return False


def may_overlap(relation: str) -> bool:
    """Whether things in this relation (or converse) overlap by right."""
    return relation in STACKED or relation in _ITS_TARGET


def drawing_order(things: Iterable[Thing]) -> list[Thing]:
    """From far to near: what is higher in the image is further away, but what stands on something comes after it."""
    order = sorted(things, key=lambda t: (t.row, t.col))
    for thing in reversed(order[:-1]):
        place = order.index(thing)
        below = [i for i in range(place + 1, len(order)) if _stands_on(thing.box, order[i].box)]
        if below:
            order.insert(below[-1], order.pop(place))
    return order


def _stands_on(box_a: Box, box_b: Box) -> bool:
    return crowding(box_a, box_b) > 0 and STRENGTHS["on"](box_a, box_b) > 0.5


def pick_cell(cells: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """(col, row) of a random true cell; the caller makes sure that there is one."""
    rows, cols = np.nonzero(cells)
    choice = int(rng.integers(len(rows)))
    return int(cols[choice]), int(rows[choice])


def nearest_cell(cells: np.ndarray, place: tuple[int, int]) -> tuple[int, int]:
    """(col, row) of the true cell nearest to `place`; the caller makes sure that there is one."""
    rows, cols = np.nonzero(cells)
    choice = int(np.argmin((cols - place[0]) ** 2 + (rows - place[1]) ** 2))
    return int(cols[choice]), int(rows[choice])


def in_order(things: Iterable[Thing], rank: Callable[[Thing], int] | None = None) -> tuple[Thing, ...]:
    """The order in which texts list things: by `rank` (their turn in the prompt), then left to right, top to bottom."""
    return tuple(sorted(things, key=lambda t: (rank(t) if rank else 0, t.col, t.row, t.name, t.size, t.color or "")))
