"""How images go wrong: flawed versions of correct scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irg_mini.world.classes import COLORLESS_CLASSES, COLORS, object_class, sizes_down_from
from irg_mini.world.flaws import Flaw, find_flaws
from irg_mini.world.geometry import STACKED
from irg_mini.world.placement import CHECKED_SIZES, MARGIN, prompt_rank
from irg_mini.world.render import DEGRADATIONS
from irg_mini.world.request import Request
from irg_mini.world.rules import HOLDS_ABOVE, satisfied, see
from irg_mini.world.scene import CONVERSE, Scene, Thing, free_cells, in_order, may_overlap, pick_cell, related_cells
from irg_mini.world.vocabularies import Vocabulary, find_vocabulary

_KIND_CHANCES = {
    "missing": 0.24,
    "extra": 0.14,
    "wrong_color": 0.4,
    "wrong_class": 0.14,
    "wrong_place": 0.4,
    "poor_quality": 0.12,
}
_COUNT_CHANCES = (0.2, 0.42, 0.25, 0.13)
"""Of 0, 1, 2, 3 mistakes."""
_OTHER_STACKING_SHARE = 0.35
_CLEARLY_NOT = 0.4
"""A relation is broken this clearly (it holds above 0.5)."""


def corrupt(
    request: Request,
    scene: Scene,
    rng: np.random.Generator,
    vocab: str | Vocabulary | Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> tuple[Scene, list[Flaw]]:
    """A flawed version of a correct scene (0 to 3 mistakes) and all its flaws, as `find_flaws` names them.

    A `poor_quality` flaw says how the pixels are degraded (`degrade(image, rng, flaw.detail)`). `kinds` asks for
    exactly these mistakes, as far as they are possible.
    """
    names = list(find_vocabulary(vocab).nouns)
    if kinds is None:
        kinds = _random_kinds(request, rng)
    things = list(scene.things)
    quality = None
    for kind in kinds:
        if kind == "poor_quality":
            quality = DEGRADATIONS[int(rng.integers(len(DEGRADATIONS)))]
        else:
            _MISTAKES[kind](request, things, names, rng)
    flawed = Scene(scene.background, in_order(things, prompt_rank(request)))
    return flawed, find_flaws(request, see(flawed), quality=quality)


def near_miss(request: Request, scene: Scene, rng: np.random.Generator) -> Scene:
    """A right scene with one thing moved just beyond where the asked relation holds, as a model's own plans do.

    What is moved is a thing that is asked to stand somewhere or, as often, what it is to stand to. A request without
    relations gives the scene itself, and so does one where every place near by is right or taken, or where what would
    be moved is missing, as it may be in a model's plan.
    """
    asked = [entry for entry in request.include if entry.position is not None]
    if not asked:
        return scene
    entry = asked[int(rng.integers(len(asked)))]
    assert entry.position is not None
    relation, target = entry.position[0], request.include[entry.position[1]].name
    moved, fixed = entry.name, target
    if rng.random() < 0.5:
        relation, moved, fixed = CONVERSE[relation], target, entry.name
    movable = [i for i, thing in enumerate(scene.things) if thing.name == moved]
    if not movable:
        return scene
    index = movable[int(rng.integers(len(movable)))]
    thing, cells = scene.things[index], _cells_that_miss(relation, scene.things, index, fixed)
    while (place := _near(cells, thing, rng)) is not None:
        things = [*scene.things[:index], replace(thing, col=place[0], row=place[1]), *scene.things[index + 1 :]]
        missed = Scene(scene.background, in_order(things, prompt_rank(request)))
        # Boxes are rounded to whole pixels, which can make a relation hold that narrowly fails on the grid.
        if not any(satisfied(request, see(missed, size)) for size in CHECKED_SIZES):
            return missed
        cells[place[1], place[0]] = False
    return scene


def _cells_that_miss(relation: str, things: Sequence[Thing], index: int, fixed: str) -> np.ndarray:
    """bool [GRID row, GRID col]: free cells for ``things[index]`` that are in no such relation to things ``fixed``."""
    thing, marks = things[index], [other for other in things if other.name == fixed]
    apart = [
        other.box for i, other in enumerate(things) if i != index and not (may_overlap(relation) and other in marks)
    ]
    cells = free_cells(thing.name, thing.size, apart)
    for mark in marks:
        cells &= ~related_cells(thing.name, thing.size, relation, mark.box, HOLDS_ABOVE)
    return cells


def _near(cells: np.ndarray, thing: Thing, rng: np.random.Generator) -> tuple[int, int] | None:
    """A random true cell, none of them more than a cell further away than the nearest; None if none is true."""
    rows, cols = np.nonzero(cells)
    if not len(rows):
        return None
    distance = np.maximum(abs(rows - thing.row), abs(cols - thing.col))
    near = np.nonzero(distance <= distance.min() + 1)[0]
    choice = int(near[rng.integers(len(near))])
    return int(cols[choice]), int(rows[choice])


def _random_kinds(request: Request, rng: np.random.Generator) -> list[str]:
    """Up to three kinds of mistakes that this request allows, in the order in which they are to be made."""
    possible = dict(_KIND_CHANCES)
    if all(entry.color is None for entry in request.include):
        del possible["wrong_color"]
    if all(entry.position is None for entry in request.include):
        del possible["wrong_place"]
    chances = np.array(list(possible.values()))
    count = int(rng.choice(len(_COUNT_CHANCES), p=_COUNT_CHANCES))
    picks = rng.choice(len(possible), count, p=chances / chances.sum())
    # Moving things comes before dropping and adding them, so that a mistake does not undo an earlier one.
    order = ("wrong_place", "wrong_color", "wrong_class", "missing", "extra", "poor_quality")
    return sorted((list(possible)[int(i)] for i in picks), key=order.index)


def _drop(request: Request, things: list[Thing], names: list[str], rng: np.random.Generator) -> None:
    if things:
        things.pop(int(rng.integers(len(things))))


def _add_extra(request: Request, things: list[Thing], names: list[str], rng: np.random.Generator) -> None:
    """Add one thing too many, half of the time of a class that was asked."""
    entry = request.include[int(rng.integers(len(request.include)))]
    again = rng.random() < 0.5
    name = entry.name if again else names[int(rng.integers(len(names)))]
    alike = [thing.size for thing in things if thing.name == name]
    size = alike[0] if alike else ("medium", "medium", "small", "large")[int(rng.integers(4))]
    for word in sizes_down_from(size):
        cells = free_cells(name, word, [thing.box for thing in things])
        if cells.any():
            things.append(Thing(name, entry.color if again else None, *pick_cell(cells, rng), word))
            return


def _discolor(request: Request, things: list[Thing], names: list[str], rng: np.random.Generator) -> None:
    wanted = {entry.name: entry.color for entry in request.include if entry.color is not None}
    able = [i for i, t in enumerate(things) if t.name in wanted and t.color == wanted[t.name]]
    if not able:
        return
    index = able[int(rng.integers(len(able)))]
    thing = things[index]
    choices: list[str | None] = [color for color in COLORS if color != thing.color]
    if object_class(thing.name).natural != thing.color:
        choices += [None] * 3
    # Colors asked of the other things leak most often in real drafts.
    choices += [color for color in wanted.values() if color != thing.color] * 6
    things[index] = Thing(thing.name, choices[int(rng.integers(len(choices)))], thing.col, thing.row, thing.size)


def _swap_class(request: Request, things: list[Thing], names: list[str], rng: np.random.Generator) -> None:
    if not things:
        return
    index = int(rng.integers(len(things)))
    thing = things[index]
    asked = {entry.name for entry in request.include}
    others = [name for name in names if name not in asked]
    order = rng.permutation(len(others))
    for size in sizes_down_from(thing.size):  # near the edge of the image hardly any class may fit as large as this one
        for choice in order:
            name = others[int(choice)]
            if free_cells(name, size, [])[thing.row, thing.col]:
                color = None if name in COLORLESS_CLASSES else thing.color
                things[index] = Thing(name, color, thing.col, thing.row, size)
                return


def _displace(request: Request, things: list[Thing], names: list[str], rng: np.random.Generator) -> None:
    """Move a thing to where it no longer stands in the asked relation."""
    for entry in request.include:
        if entry.position is None:
            continue
        relation, target = entry.position[0], request.include[entry.position[1]].name
        movable = [i for i, t in enumerate(things) if t.name == entry.name]
        targets = [t for t in things if t.name == target]
        if not movable or not targets:
            return
        index = movable[int(rng.integers(len(movable)))]
        others = [thing for i, thing in enumerate(things) if i != index]
        moved = _other_stacking(things[index], relation, targets, others, rng) if relation in STACKED else None
        moved = moved or _misplaced(things[index], relation, targets, others, rng)
        if moved is not None:
            things[index] = moved
        return


def _other_stacking(
    thing: Thing, relation: str, targets: list[Thing], others: list[Thing], rng: np.random.Generator
) -> Thing | None:
    """Now and then, and where it can be: the thing behind its target instead of on it, or the other way round."""
    if rng.random() < _OTHER_STACKING_SHARE:
        apart = [other.box for other in others if other is not targets[0]]
        cells = free_cells(thing.name, thing.size, apart)
        wrong = STACKED[1 - STACKED.index(relation)]
        cells &= related_cells(thing.name, thing.size, wrong, targets[0].box, MARGIN)
        if cells.any():
            return Thing(thing.name, thing.color, *pick_cell(cells, rng), thing.size)
    return None


def _misplaced(
    thing: Thing, relation: str, targets: list[Thing], others: list[Thing], rng: np.random.Generator
) -> Thing | None:
    """The thing at a random free place where the relation clearly fails; smaller if there is no room otherwise."""
    for size in sizes_down_from(thing.size):
        cells = free_cells(thing.name, size, [other.box for other in others])
        for target in targets:
            cells &= ~related_cells(thing.name, size, relation, target.box, _CLEARLY_NOT)
        if cells.any():
            return Thing(thing.name, thing.color, *pick_cell(cells, rng), size)
    return None


_MISTAKES = {
    "missing": _drop,
    "extra": _add_extra,
    "wrong_color": _discolor,
    "wrong_class": _swap_class,
    "wrong_place": _displace,
}
