"""Correct scenes for a request: sizes, then places one after the other on the cells that are still allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import SIZES, object_class
from irg_mini.world.geometry import STACKED
from irg_mini.world.request import Request
from irg_mini.world.request_sampling import sample_request
from irg_mini.world.rules import satisfied, see
from irg_mini.world.scene import Scene, Thing, free_cells, in_order, pick_cell, related_cells, stacking_sizes

MARGIN = 0.62
"""Relations are drawn this clearly (GenEval lets them hold above 0.5)."""

_SIZE_WORDS = tuple(SIZES)
# Chances of small, medium, large, huge by the number of things in the scene.
_SIZE_CHANCES = {
    1: (0.04, 0.36, 0.46, 0.14),
    2: (0.08, 0.46, 0.42, 0.04),
    3: (0.25, 0.5, 0.25, 0.0),
    4: (0.45, 0.5, 0.05, 0.0),
}
_MANY_CHANCES = (0.75, 0.25, 0.0, 0.0)
CHECKED_SIZES = (96, 128, 192, 256)
"""Sides in pixels of the images in which relations must hold, or fail, after rounding."""


def prompt_rank(request: Request) -> Callable[[Thing], int]:
    """Each thing's rank in the order in which the prompt names the classes; classes it does not name come last."""
    rank = {request.include[index].name: position for position, index in enumerate(request.mentioned())}
    return lambda thing: rank.get(thing.name, len(rank))


def sample_scene(request: Request, rng: np.random.Generator) -> Scene:
    """A random correct scene: what is asked and nothing else, all of it recognizable, relations clear."""
    for entry in request.include:
        object_class(entry.name)
    things = sample_things(request, rng)
    return Scene(request.background or pick_background(things, rng), in_order(things, prompt_rank(request)))


def sample_pair(rng: np.random.Generator, *args: Any, **options: Any) -> tuple[Request, Scene]:
    """A random request (arguments are those of `sample_request`) and a scene of it. The rare request whose things find
    no room is passed over; ValueError if that is all that comes.
    """
    for _ in range(1000):
        request = sample_request(rng, *args, **options)
        try:
            return request, sample_scene(request, rng)
        except ValueError:  # no room for it all
            continue
    raise ValueError("a thousand requests in a row found no room for their things")


def pick_background(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """A random background on which none of the things' colors is hard to see, if there is one."""
    colors = {thing.color or object_class(thing.name).natural for thing in things}
    clear = [name for name, background in BACKGROUNDS.items() if not background.clash & colors]
    names = clear or list(BACKGROUNDS)
    return names[int(rng.integers(len(names)))]


def sample_things(request: Request, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Things for every entry of the request; ValueError if they cannot all stand somewhere."""
    total = sum(entry.count for entry in request.include)
    for attempt in range(60):
        things = _try_things(request, rng, total, attempt // 8)
        if things is not None and _clear(request, things):
            return things
    raise ValueError(f"no room for {total} things with these relations: {request.to_json()}")


def _clear(request: Request, things: tuple[Thing, ...]) -> bool:
    """Whether what stands on or behind something still does so when boxes are rounded to whole pixels."""
    if all(entry.position is None or entry.position[0] not in STACKED for entry in request.include):
        return True
    scene = Scene("studio", things)
    return all(satisfied(request, see(scene, size)) for size in CHECKED_SIZES)


def _sizes(rng: np.random.Generator, total: int, entries: int, shrink: int) -> list[str]:
    """One size per entry; after `shrink` rounds of failures everything is smaller."""
    chances = _SIZE_CHANCES.get(total, _MANY_CHANCES)
    picks = rng.choice(4, entries, p=chances)
    return [_SIZE_WORDS[max(0, int(pick) - shrink)] for pick in picks]


def _fit_stacks(request: Request, sizes: list[str], rng: np.random.Generator) -> None:
    """Give what is on or behind something, and that, sizes in which they can stand so, in place."""
    for index, entry in enumerate(request.include):
        if entry.position is not None and entry.position[0] in STACKED:
            relation, target = entry.position
            fitting = stacking_sizes(entry.name, request.include[target].name, relation, entry.count)
            if fitting:
                sizes[index], sizes[target] = fitting[int(rng.integers(len(fitting)))]


def _try_things(request: Request, rng: np.random.Generator, total: int, shrink: int) -> tuple[Thing, ...] | None:
    sizes = _sizes(rng, total, len(request.include), shrink)
    _fit_stacks(request, sizes, rng)
    groups: list[list[Thing]] = []
    for entry, size in zip(request.include, sizes, strict=True):
        group: list[Thing] = []
        groups.append(group)
        for _ in range(entry.count):
            stacked = entry.position is not None and entry.position[0] in STACKED
            # On or behind one of several is enough, and with that one it overlaps.
            targets = groups[entry.position[1]][: 1 if stacked else None] if entry.position is not None else []
            apart = [t.box for g in groups for t in g if not (stacked and t in targets)]
            cells = free_cells(entry.name, size, apart)
            if entry.position is not None:
                relation = entry.position[0]
                for target in targets:
                    cells &= related_cells(entry.name, size, relation, target.box, MARGIN)
            if not cells.any():
                return None
            col, row = pick_cell(cells, rng)
            group.append(Thing(entry.name, entry.color, col, row, size))
    return tuple(thing for group in groups for thing in group)
