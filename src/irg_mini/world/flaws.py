"""What is wrong with an image: what is seen in it against what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irg_mini.world.classes import is_class
from irg_mini.world.geometry import STACKED
from irg_mini.world.request import Include, Request
from irg_mini.world.rules import Seen, holds, kept, placed, score_threshold
from irg_mini.world.scene import Thing, snap

KINDS = ("missing", "extra", "wrong_color", "wrong_class", "wrong_place", "poor_quality")


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong. `thing` is what is seen (None: missing, poor_quality), `wanted` the request's entry.

    `detail`: for wrong_place the class it stands wrongly to, for poor_quality one of DEGRADATIONS.
    """

    kind: str
    thing: Thing | None = None
    wanted: Include | None = None
    detail: str | None = None


@dataclass
class Slot:
    """A thing the request asks for, and the seen object that is to be it, if any."""

    entry: int
    item: Seen | None
    wrong_class: bool = False


def match(request: Request, seen: Sequence[Seen], threshold: float | None) -> tuple[list[Slot], list[Seen]]:
    """Give each asked thing a seen object; also return what is left over.

    Where there are too many of a class, those of the right color, in the right place, with a high score go first.
    """
    groups = kept(seen, score_threshold(request) if threshold is None else threshold)
    slots: list[Slot] = []
    for index, entry in enumerate(request.include):
        found = groups.pop(entry.name, [])
        ranks = [(*_faults(request, index, item, slots, groups), -item.score) for item in found]
        items = [found[i] for i in sorted(range(len(found)), key=ranks.__getitem__)]
        slots += [Slot(index, item) for item in items[: entry.count]]
        slots += [Slot(index, None) for _ in range(entry.count - len(items))]
        groups[entry.name] = items[entry.count :]
    # Strangers before surplus ones: a cup in place of a bowl is more likely meant to be it than a second dog.
    asked = {entry.name for entry in request.include}
    extras = [item for name, items in groups.items() if is_class(name) for item in items]
    extras.sort(key=lambda item: item.name in asked)
    for slot in slots:
        if slot.item is None and extras:
            slot.item, slot.wrong_class = extras.pop(0), True
    return slots, extras


def _faults(
    request: Request, index: int, item: Seen, slots: list[Slot], groups: dict[str, list[Seen]]
) -> tuple[bool, int]:
    """(wrong color, how many relations fail) of an object that is to be one of `include[index]`'s.

    `slots` holds what earlier entries got, `groups` the candidates of later ones.
    """
    entry = request.include[index]
    failing = 0
    if entry.position is not None:
        relation, target = entry.position
        others = [slot.item for slot in slots if slot.entry == target and slot.item is not None]
        if relation in STACKED:
            failing += bool(others) and not placed(item.box, [other.box for other in others], relation)
        else:
            failing += sum(not holds(item.box, other.box, relation) for other in others)
    for referring in request.include[index + 1 :]:
        if referring.position is not None and referring.position[1] == index:
            relation = referring.position[0]
            failing += sum(not holds(other.box, item.box, relation) for other in groups.get(referring.name, []))
    return entry.color is not None and item.color != entry.color, failing


def _snapped(item: Seen, size: int) -> Thing:
    return snap(item.name, item.color, item.box, size)


def find_flaws(
    request: Request, seen: Sequence[Seen], size: int = 96, threshold: float | None = None, quality: str | None = None
) -> list[Flaw]:
    """What is wrong with an image of `size` px in which `seen` is seen. None wrong implies `satisfied`.

    Stricter than GenEval in one thing: objects that nobody asked for are `extra`. `quality` is how the image is
    degraded (one of DEGRADATIONS), which boxes cannot tell.
    """
    slots, extras = match(request, seen, threshold)
    flaws = []
    for slot in slots:
        entry = request.include[slot.entry]
        if slot.item is None:
            flaws.append(Flaw("missing", None, entry))
        elif slot.wrong_class:
            flaws.append(Flaw("wrong_class", _snapped(slot.item, size), entry))
        elif entry.color is not None and slot.item.color != entry.color:
            flaws.append(Flaw("wrong_color", _snapped(slot.item, size), entry))
    flaws += [Flaw("extra", _snapped(item, size)) for item in extras]
    for slot in slots:
        entry = request.include[slot.entry]
        if slot.item is not None and not slot.wrong_class and _misplaced(request, slot, slots):
            assert entry.position is not None
            target = request.include[entry.position[1]].name
            flaws.append(Flaw("wrong_place", _snapped(slot.item, size), entry, target))
    if quality is not None:
        flaws.append(Flaw("poor_quality", detail=quality))
    return sorted(flaws, key=lambda flaw: KINDS.index(flaw.kind))


def _misplaced(request: Request, slot: Slot, slots: list[Slot]) -> bool:
    position = request.include[slot.entry].position
    if position is None or slot.item is None:
        return False
    targets = [s.item for s in slots if s.entry == position[1] and s.item is not None and not s.wrong_class]
    return bool(targets) and not placed(slot.item.box, [target.box for target in targets], position[0])
