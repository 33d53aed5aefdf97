"""Corrected scenes: what is right stays, the rest is corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irg_mini.world.classes import sizes_down_from
from irg_mini.world.flaws import Slot, find_flaws, match
from irg_mini.world.placement import MARGIN, pick_background, prompt_rank, sample_scene, sample_things
from irg_mini.world.request import Include, Request
from irg_mini.world.rules import Seen, holds, satisfied, see
from irg_mini.world.scene import (
    CONVERSE,
    Box,
    Scene,
    Thing,
    crowding,
    free_cells,
    in_order,
    may_overlap,
    nearest_cell,
    pick_cell,
    related_cells,
    snap,
)

_MOST_CROWDED = 0.35
"""Seen things may overlap this much and stay where they are; beyond it the second one moves."""


def correct(
    request: Request,
    seen: Sequence[Seen],
    intended: Scene | None,
    rng: np.random.Generator,
    size: int = 96,
    threshold: float | None = None,
) -> Scene:
    """The scene that repairs an image: right things stay where they were seen (on the grid), wrong ones are corrected
    in place or moved, missing ones are added (where `intended` has them, if that is free), all others go.
    """
    slots, _ = match(request, seen, threshold)
    background = request.background or (intended.background if intended else None)
    things = None
    if not find_flaws(request, seen, size, threshold):  # nothing moves, however narrowly a relation holds
        things = _right(request, tuple(_mended(slot.item, request.include[slot.entry], size) for slot in slots), size)
    for free_targets in (False, True):
        if things is None:
            things = _right(request, _repair(request, slots, intended, rng, size, free_targets), size)
    if things is None:
        things = _new_arrangement(request, intended, rng, size)
    if background is None:
        background = pick_background(things, rng)
    return Scene(background, in_order(things, prompt_rank(request)))


def replan(request: Request, intended: Scene | None, rng: np.random.Generator, size: int = 96) -> Scene | None:
    """A new scene in place of a plan that is itself wrong, on its background; None where there is nothing to replan:
    no plan, a right one, or a request whose things find no room.

    What was planned right and drawn wrong is for `correct`, which keeps the plan.
    """
    if intended is None or not find_flaws(request, see(intended, size), size):
        return None
    try:
        scene = sample_scene(request, rng)
    except ValueError:  # no room for it all
        return None
    return scene if request.background else replace(scene, background=intended.background)


def _right(request: Request, things: tuple[Thing, ...] | None, size: int) -> tuple[Thing, ...] | None:
    """The things if they satisfy the request, else None."""
    return things if things is not None and satisfied(request, see(Scene("studio", things), size)) else None


def _new_arrangement(
    request: Request, intended: Scene | None, rng: np.random.Generator, size: int
) -> tuple[Thing, ...]:
    """A right arrangement whatever is in the image: the intended one, or else a random one."""
    if intended is not None and not find_flaws(request, see(intended, size), size):
        return intended.things
    return sample_things(request, rng)


def _repair(
    request: Request,
    slots: list[Slot],
    intended: Scene | None,
    rng: np.random.Generator,
    size: int,
    free_targets: bool,
) -> tuple[Thing, ...] | None:
    """Keep what can stay, then place the rest; with `free_targets` what others refer to may move as well."""
    standing: dict[int, Thing] = {}
    sizes: dict[int, str] = {}
    targets = {entry.position[1] for entry in request.include if entry.position is not None}
    # Whatever others refer to is settled first, then the things whose class is right.
    order = sorted(range(len(slots)), key=lambda i: (slots[i].entry not in targets, slots[i].wrong_class))
    for index in order:
        slot = slots[index]
        if slot.item is None:
            continue
        thing = _mended(slot.item, request.include[slot.entry], size)
        sizes[index] = thing.size
        if free_targets and slot.entry in targets and _violates_any(slot, slots, request):
            continue
        if _can_stay(thing, index, standing, slots, request):
            standing[index] = thing
    places = list(intended.things) if intended is not None else []
    for index in order:
        if index not in standing:
            thing_or_none = _place(index, sizes.get(index), standing, slots, request, places, rng)
            if thing_or_none is None:
                return None
            standing[index] = thing_or_none
    return tuple(standing[index] for index in range(len(slots)))


def _mended(item: Seen | None, entry: Include, size: int) -> Thing:
    """The seen thing with the asked class and color, nudged into the frame."""
    assert item is not None
    thing = snap(entry.name, entry.color, item.box, size)
    for word in sizes_down_from(thing.size):
        col, row = nearest_cell(free_cells(entry.name, word, []), (thing.col, thing.row))
        if max(abs(col - thing.col), abs(row - thing.row)) <= 1:
            break
    return Thing(entry.name, entry.color, col, row, word)


def _violates_any(slot: Slot, slots: list[Slot], request: Request) -> bool:
    """Whether some thing that refers to this one stands wrongly to it."""
    assert slot.item is not None
    for other in slots:
        position = request.include[other.entry].position
        if position is None or position[1] != slot.entry or other.item is None:
            continue
        if not holds(other.item.box, slot.item.box, position[0]):
            return True
    return False


def _relations(index: int, standing: dict[int, Thing], slots: list[Slot], request: Request) -> list[tuple[str, int]]:
    """The relations in which a slot's thing must stand to the things that already stand, each with that thing's slot.

    On or behind one of several is enough: it is the first of them that counts.
    """
    found = []
    entry = slots[index].entry
    own = request.include[entry].position
    for other in standing:
        theirs = request.include[slots[other].entry].position
        if own is not None and own[1] == slots[other].entry and _counts(own[0], other, slots):
            found.append((own[0], other))
        if theirs is not None and theirs[1] == entry and _counts(theirs[0], index, slots):
            found.append((CONVERSE[theirs[0]], other))
    return found


def _counts(relation: str, target: int, slots: list[Slot]) -> bool:
    return not may_overlap(relation) or target == min(i for i, s in enumerate(slots) if s.entry == slots[target].entry)


def _crowders(standing: dict[int, Thing], relations: list[tuple[str, int]]) -> list[Box]:
    """The boxes that a thing with these relations must keep clear of."""
    touching = {other for relation, other in relations if may_overlap(relation)}
    return [thing.box for other, thing in standing.items() if other not in touching]


def _can_stay(
    thing: Thing, index: int, standing: dict[int, Thing], slots: list[Slot], request: Request, margin: float = 0.54
) -> bool:
    relations = _relations(index, standing, slots, request)
    if any(crowding(thing.box, box) > _MOST_CROWDED for box in _crowders(standing, relations)):
        return False
    return all(
        related_cells(thing.name, thing.size, relation, standing[other].box, margin)[thing.row, thing.col]
        for relation, other in relations
    )


def _place(
    index: int,
    size: str | None,
    standing: dict[int, Thing],
    slots: list[Slot],
    request: Request,
    places: list[Thing],
    rng: np.random.Generator,
) -> Thing | None:
    """A free place for a thing: one of the intended `places` (which is used up), else a random one."""
    entry = request.include[slots[index].entry]
    planned = [place for place in places if place.name == entry.name]
    alike = [thing.size for thing in standing.values() if thing.name == entry.name]
    usual = [("large", "medium", "medium")[len(slots) - 1] if len(slots) <= 3 else "small"]
    first = ([size] if size else alike or [place.size for place in planned] or usual)[0]
    relations = _relations(index, standing, slots, request)
    others = _crowders(standing, relations)
    for word in sizes_down_from(first):
        cells = free_cells(entry.name, word, others)
        for relation, other in relations:
            cells &= related_cells(entry.name, word, relation, standing[other].box, MARGIN)
        for place in planned:
            if cells[place.row, place.col]:
                places.remove(place)
                return Thing(entry.name, entry.color, place.col, place.row, word)
        if cells.any():
            return Thing(entry.name, entry.color, *pick_cell(cells, rng), word)
    return None
