"""A check: a list of things compared with a prompt in words, item by item, and then what is wrong.

`<think> Analysis: one red apple: green medium (2,6)(1,5)(3,8), no; one bus: medium (4,6)(2,4)(6,8), yes; others: none;
apple at (2,6) left of bus at (4,6): 2 left 0 down, no; overlap: (4,6) (2,6) 2 right 0 down, yes. the apple at (2,6) is
green, not red; ... . Improvements: a new plan. </think>` (on one line)
Each item is looked up in the list before it is judged, and relations and overlaps are judged pair by pair, once it is
said how many cells one is from the other, so that a model that learns to write this compares. After a thing's place
stand two corners of its box, in cells.
"""

from __future__ import annotations

import math

from irg_mini.world.captions import NUMBER_WORDS
from irg_mini.world.classes import GRID
from irg_mini.world.flaws import find_flaws
from irg_mini.world.reflections import NEW_PLAN, NOTHING_WRONG, describe_flaws
from irg_mini.world.request import Request
from irg_mini.world.rules import apart, overlaps, placed, see
from irg_mini.world.scene import Scene, Thing, boxes


def check(request: Request, scene: Scene, plan: bool, size: int = 128) -> str:
    """The comparison of a scene with a request, as the critic by code judges it (``irg_mini.measure.compare_critic``).

    `plan`: it is a plan, of which the background and overlaps count, too; else it is what is seen in an image.
    """
    seen = see(scene, size)
    order = request.mentioned()
    items = [_item(request, index, scene, size) for index in order]
    asked = {entry.name for entry in request.include}
    items.append(
        f"others: {', '.join(f'{t.name} at {t.place}' for t in scene.things if t.name not in asked) or 'none'}"
    )
    items += [_related(request, index, scene, size) for index in order if request.include[index].position is not None]
    flaws = describe_flaws(find_flaws(request, seen, size=size))
    if plan:
        wanted = request.background or scene.background
        if request.background is not None:
            items.append(f"{wanted}: {_answer(scene.background == wanted)}")
        if scene.background != wanted:
            flaws.append(f"the {scene.background} is not {wanted}")
        items.append(_overlapping(request, scene))
        flaws += [
            f"the {one.name} at {one.place} and {other.name} at {other.place} overlap"
            for one, other in overlaps(request, scene)
        ]
    verdict, change = ("; ".join(flaws), NEW_PLAN) if flaws else (NOTHING_WRONG, "none")
    return f"<think> Analysis: {'; '.join(items)}. {verdict}. Improvements: {change}. </think>"


def _answer(right: bool) -> str:
    return "yes" if right else "no"


def _item(request: Request, index: int, scene: Scene, size: int) -> str:
    """'one red apple: green medium (2,6)(1,5)(3,8), no'; with colors where one is asked for, and a count."""
    entry = request.include[index]
    colors = [color for _, color, _ in boxes(scene, size)]
    found = [(t, color) for t, color in zip(scene.things, colors, strict=True) if t.name == entry.name]
    right = len(found) == entry.count and all(entry.color in (None, color) for _, color in found)
    shown = [
        " ".join(filter(None, (entry.color and color, thing.size, thing.place))) + _corners(thing)
        for thing, color in found
    ]
    wanted = " ".join(filter(None, (NUMBER_WORDS[entry.count], entry.color, entry.name)))
    count = f"{NUMBER_WORDS[len(found)]} " if len(found) > 1 else ""
    return f"{wanted}: {', '.join(shown) or 'none'}, {count}{_answer(right)}"


def _cells(thing: Thing) -> tuple[int, int, int, int]:
    """The box in whole cells of the grid: left, top, right, bottom."""
    left, top, right, bottom = (min(GRID - 1, max(0, math.floor(GRID * edge + 0.5))) for edge in thing.box)
    return left, top, right, bottom


def _corners(thing: Thing) -> str:
    """'(1,5)(3,8)'."""
    left, top, right, bottom = _cells(thing)
    return f"({left},{top})({right},{bottom})"


def _related(request: Request, index: int, scene: Scene, size: int) -> str:
    """'apple at (2,6) left of bus at (9,6): 7 left 0 down, yes, bus at (2,9): 0 right 3 up, no'. In the words of plans
    and of what is seen, so that places are copied from there."""
    entry = request.include[index]
    assert entry.position is not None
    relation, target = entry.position[0], request.include[entry.position[1]].name
    seen = list(zip(scene.things, see(scene, size), strict=True))
    ones, others = ([(t, item.box) for t, item in seen if t.name == name] for name in (entry.name, target))
    if not (ones and others):
        return f"{entry.name} {relation} {target}: no"
    pairs = [
        f"{entry.name} at {one.place} {relation} "
        + ", ".join(
            f"{target} at {other.place}: {_offset(one, other)}, {_answer(placed(box, [its], relation))}"
            for other, its in others
        )
        for one, box in ones
    ]
    return "; ".join(pairs)


def _offset(one: Thing, other: Thing) -> str:
    """'7 left 0 down': where one thing is from another, in cells."""
    right, down = one.col - other.col, one.row - other.row
    return f"{abs(right)} {'left' if right < 0 else 'right'} {abs(down)} {'up' if down < 0 else 'down'}"


def _overlapping(request: Request, scene: Scene) -> str:
    """'overlap: (9,6) none, (4,6) (2,6) 2 right 0 down, yes (5,8) 1 left 2 up, no': of each thing but the first, the
    places of earlier ones whose boxes in whole cells touch its own, where it is from them, and whether they overlap."""
    pairs, crowded = apart(request, scene), overlaps(request, scene)
    found = []
    for later, thing in enumerate(scene.things[1:], 1):
        near = [
            f"{other.place} {_offset(thing, other)}, {_answer((other, thing) in crowded)}"
            for other in scene.things[:later]
            if (other, thing) in pairs and _touch(_cells(other), _cells(thing))
        ]
        found.append(f"{thing.place} {' '.join(near) or 'none'}")
    return f"overlap: {', '.join(found) or 'none'}"


def _touch(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return all(one[i] <= other[i + 2] and other[i] <= one[i + 2] for i in (0, 1))
