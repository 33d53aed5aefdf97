"""A check: a list of things compared with a prompt in words, item by item, and then what is wrong.

`<think> Analysis: one red apple: green medium (2,6)(1,5)(3,8), no; one bus: medium (9,6)(7,4)(11,8), yes; apple left of
bus: yes; overlap: none. the apple at (2,6) is green, not red. Improvements: a new plan. </think>` (on one line)
Each item is looked up in the list before it is judged, so that a model that learns to write this compares. After a
thing's place stand two corners of its box, in cells: what relations and overlaps are judged by.
"""

from __future__ import annotations

import math

from irg_mini.world.captions import NUMBER_WORDS
from irg_mini.world.classes import GRID
from irg_mini.world.flaws import find_flaws
from irg_mini.world.reflections import NEW_PLAN, NOTHING_WRONG, describe_flaws
from irg_mini.world.request import Request
from irg_mini.world.rules import Seen, overlaps, placed, see
from irg_mini.world.scene import Scene, Thing, boxes


def check(request: Request, scene: Scene, plan: bool, size: int = 128) -> str:
    """The comparison of a scene with a request, as the critic by code judges it (``irg_mini.measure.compare_critic``).

    `plan`: it is a plan, of which the background and overlaps count, too; else it is what is seen in an image.
    """
    seen = see(scene, size)
    order = request.mentioned()
    items = [_item(request, index, scene, size) for index in order]
    items += [_related(request, index, seen) for index in order if request.include[index].position is not None]
    flaws = describe_flaws(find_flaws(request, seen, size=size))
    if plan:
        wanted = request.background or scene.background
        if request.background is not None:
            items.append(f"{wanted}: {_answer(scene.background == wanted)}")
        if scene.background != wanted:
            flaws.append(f"the {scene.background} is not {wanted}")
        pairs = [
            f"{one.name} at {one.place} and {other.name} at {other.place}" for one, other in overlaps(request, scene)
        ]
        items.append(f"overlap: {'; '.join(pairs) or 'none'}")
        flaws += [f"the {pair} overlap" for pair in pairs]
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


def _corners(thing: Thing) -> str:
    """'(1,5)(3,8)': left and top, right and bottom, in cells of the grid."""
    left, top, right, bottom = (min(GRID - 1, max(0, math.floor(GRID * edge + 0.5))) for edge in thing.box)
    return f"({left},{top})({right},{bottom})"


def _related(request: Request, index: int, seen: list[Seen]) -> str:
    """'apple left of bus: yes'."""
    entry = request.include[index]
    assert entry.position is not None
    relation, target = entry.position[0], request.include[entry.position[1]].name
    ones, others = ([item.box for item in seen if item.name == name] for name in (entry.name, target))
    right = bool(ones and others) and all(placed(one, others, relation) for one in ones)
    return f"{entry.name} {relation} {target}: {_answer(right)}"
