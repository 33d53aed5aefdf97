"""T2, the ground-truth reflection: what is wrong with an image, how to correct it, and the corrected layout.

`<think> Analysis: in the picture: small red apple at (3,7). the apple at (3,7) is red, not green.
Improvements: ... . Steps: keep 1 things, fix 0, add 1, remove 0. Final prompt: <T1> </think>` (on one line)
It first says what is in the image, in T1's words, so that a model learns to look before it compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from irg_mini.world.captions import NUMBER_WORDS
from irg_mini.world.classes import article, is_class, object_class
from irg_mini.world.flaws import Flaw
from irg_mini.world.placement import prompt_rank
from irg_mini.world.request import Request
from irg_mini.world.rules import Seen
from irg_mini.world.scene import Scene, Thing, in_order, snap
from irg_mini.world.thinking import describe_thing, think

REFLECTION_PHRASES = (
    "<think> Analysis: Improvements: Steps: Final prompt: </think>",
    "the is not there an extra should be a nothing is wrong one are missing picture blurred noisy ghosted",
    "recolor to add an replace by move and remove sharpen clean redraw keep things fix",
)
"""Every fixed word of T2 beside T1's, for the vocabulary."""

_SHOWN = "in the picture: "
NEW_PLAN = "a new plan"
NOTHING_WRONG = "nothing is wrong"
_CLEANING = {"blurred": "sharpen the picture", "noisy": "clean the picture", "ghosted": "redraw the picture"}


@dataclass(frozen=True)
class Edit:
    """One step from the image to the corrected scene: keep, fix (before -> after), add (after), remove (before)."""

    action: str
    before: Thing | None
    after: Thing | None


def find_edits(
    flaws: Sequence[Flaw], corrected: Scene, seen: Sequence[Seen] | None = None, size: int = 96
) -> list[Edit]:
    """The steps that lead from what is seen to the corrected scene.

    Without `seen`, the things that no flaw speaks of are taken to stay as they are.
    """
    faulty = [(flaw.thing, flaw) for flaw in flaws if flaw.thing is not None]
    before = list(dict.fromkeys(thing for thing, _ in faulty))
    after = list(corrected.things)
    if seen is not None:
        snapped = [snap(item.name, item.color, item.box, size) for item in seen if is_class(item.name)]
        unflawed = [thing for thing in snapped if thing not in before]
    else:
        unflawed = _unmentioned(flaws, before, after)
    edits = []
    extra = {thing for thing, flaw in faulty if flaw.kind == "extra"}
    for thing in unflawed:
        if (new := _nearest(after, thing, thing.name)) is not None:
            after.remove(new)
            edits.append(Edit("keep" if _distance(thing, new) <= 1 else "fix", thing, new))
        else:
            edits.append(Edit("remove", thing, None))
    for thing, flaw in _by_reach(faulty, after):
        if thing in extra or any(edit.before == thing for edit in edits):
            continue
        wanted = flaw.wanted.name if flaw.wanted is not None else thing.name
        new = _nearest(after, thing, wanted)
        if new is None or (flaw.kind == "wrong_class" and _distance(thing, new) > 1):
            edits.append(Edit("remove", thing, None))
        else:
            after.remove(new)
            edits.append(Edit("fix", thing, new))
    edits += [Edit("add", None, thing) for thing in after]
    return edits + [Edit("remove", thing, None) for thing in before if thing in extra]


def _unmentioned(flaws: Sequence[Flaw], before: list[Thing], after: list[Thing]) -> list[Thing]:
    """The corrected scene's things that neither correct a flaw nor are added."""
    unflawed = list(after)
    for flaw in flaws:
        if flaw.wanted is None or (flaw.kind == "wrong_place" and flaw.thing is None):
            continue
        alike = [thing for thing in unflawed if thing.name == flaw.wanted.name]
        if flaw.thing is not None and alike:
            unflawed.remove(min(alike, key=lambda thing: _distance(thing, flaw.thing)))
        elif alike:
            unflawed.remove(alike[-1])
    return unflawed


def _distance(a: Thing, b: Thing | None) -> int:
    return max(abs(a.col - b.col), abs(a.row - b.row)) if b is not None else 0


def _nearest(things: list[Thing], place: Thing, name: str) -> Thing | None:
    alike = [thing for thing in things if thing.name == name]
    return min(alike, key=lambda thing: _distance(thing, place)) if alike else None


def _by_reach(faulty: list[tuple[Thing, Flaw]], after: list[Thing]) -> list[tuple[Thing, Flaw]]:
    """Those that stay in place choose first."""

    def reach(item: tuple[Thing, Flaw]) -> int:
        thing, flaw = item
        near = _nearest(after, thing, flaw.wanted.name if flaw.wanted is not None else thing.name)
        return _distance(thing, near)

    return sorted(faulty, key=reach)


def reflect(
    request: Request,
    flaws: Sequence[Flaw],
    corrected: Scene,
    seen: Sequence[Seen] | None = None,
    size: int = 96,
    new_plan: bool = False,
) -> str:
    """T2: what is wrong with the image, what to change, in which steps, and the corrected layout.

    With `new_plan` the corrected layout is a new plan, which keeps nothing of the image.
    """
    edits = find_edits(flaws, corrected, seen, size)
    cleaning = [_CLEANING[flaw.detail] for flaw in flaws if flaw.kind == "poor_quality" and flaw.detail is not None]
    changes = [NEW_PLAN] if new_plan else [words for edit in edits if (words := _describe_edit(edit))]
    improvements = changes + cleaning
    counts = Counter(edit.action for edit in edits)
    if new_plan:
        counts = Counter(add=len(corrected.things), remove=sum(edit.before is not None for edit in edits))
    shown = "" if seen is None else f"{list_of_seen(things_seen(request, seen, size))} "
    steps = f"keep {counts['keep']} things, fix {counts['fix']}, add {counts['add']}, remove {counts['remove']}"
    return (
        f"<think> Analysis: {shown}{'; '.join(describe_flaws(flaws)) or NOTHING_WRONG}. "
        f"Improvements: {'; '.join(improvements) or 'none'}. Steps: {steps}. "
        f"Final prompt: {think(request, corrected)} </think>"
    )


def things_seen(request: Request, seen: Sequence[Seen], size: int) -> tuple[Thing, ...]:
    """What is seen in an image of `size` px, on the grid and in the order in which the prompt names it."""
    things = [snap(item.name, item.color, item.box, size) for item in seen if is_class(item.name)]
    return in_order(things, prompt_rank(request))


def list_of_seen(things: Sequence[Thing]) -> str:
    """What a reflection says first: 'in the picture: large red apple at (3,7).'"""
    return f"{_SHOWN}{'; '.join(map(describe_thing, things)) or 'none'}."


def describe_flaws(flaws: Sequence[Flaw]) -> list[str]:
    """What is wrong, each flaw in the words of an analysis; several missing things of a kind are one."""
    texts = []
    missing = Counter(flaw.wanted for flaw in flaws if flaw.kind == "missing")
    for entry, count in missing.items():
        assert entry is not None
        color = f"{entry.color} " if entry.color else ""
        noun = entry.name if count == 1 else object_class(entry.name).plural
        texts.append(f"{NUMBER_WORDS[count]} {color}{noun} {'is' if count == 1 else 'are'} missing")
    for flaw in flaws:
        if flaw.kind == "poor_quality":
            texts.append(f"the picture is {flaw.detail}")
        elif flaw.thing is not None:
            texts.append(_describe_flaw(flaw, flaw.thing))
    return texts


def _describe_flaw(flaw: Flaw, thing: Thing) -> str:
    where = f"{thing.name} at {thing.place}"
    if flaw.kind == "extra":
        return f"there is an extra {where}"
    assert flaw.wanted is not None
    if flaw.kind == "wrong_color":
        seen = f" {thing.color}," if thing.color else ""
        return f"the {where} is{seen} not {flaw.wanted.color}"
    if flaw.kind == "wrong_class":
        return f"the {where} should be {article(flaw.wanted.name)} {flaw.wanted.name}"
    assert flaw.wanted.position is not None
    return f"the {where} is not {flaw.wanted.position[0]} the {flaw.detail}"


def _describe_edit(edit: Edit) -> str:
    before, after = edit.before, edit.after
    if edit.action == "keep":
        return ""
    if before is None:
        assert after is not None
        return f"add a {after.size} {after.label} at {after.place}"
    where = f"{before.name} at {before.place}"
    if after is None:
        return f"remove the {where}"
    if after.name != before.name:
        return f"replace the {where} by {article(after.label)} {after.label}"
    recolored = after.color is not None and after.color != before.color
    moved = _distance(before, after) > 1
    if moved and recolored:
        return f"move the {where} to {after.place} and recolor to {after.color}"
    return f"recolor the {where} to {after.color}" if recolored else f"move the {where} to {after.place}"


@dataclass(frozen=True)
class Reflection:
    """The four sections of a T2, as text without their headings."""

    analysis: str
    improvements: str
    steps: str
    final_prompt: str

    @property
    def seen(self) -> str:
        """What the analysis says is in the image, as a layout's list of things; empty if it does not say."""
        shown, _, _ = self.analysis.removeprefix(_SHOWN).partition(". ")
        return shown if self.analysis.startswith(_SHOWN) else ""

    @property
    def faults(self) -> str:
        """What the analysis says is wrong with it, or that nothing is."""
        return self.analysis.partition(". ")[2] if self.seen else self.analysis


_SECTIONS = (
    ("analysis", "Analysis:"),
    ("improvements", "Improvements:"),
    ("steps", "Steps:"),
    ("final_prompt", "Final prompt:"),
)


def parse_reflection(text: str) -> Reflection:
    """The sections of a T2; ValueError names the section that is missing or out of order."""
    body = text.strip().removeprefix("<think>").removesuffix("</think>").strip()
    starts: list[int] = []
    for _, heading in _SECTIONS:
        at = body.find(heading, starts[-1] if starts else 0)
        if at < 0:
            raise ValueError(f"the reflection has no section {heading!r} in its place: {text[:120]!r}")
        starts.append(at)
    ends = [*starts[1:], len(body)]
    parts = {
        name: body[start + len(heading) : end].strip()
        for (name, heading), start, end in zip(_SECTIONS, starts, ends, strict=True)
    }
    return Reflection(**parts)
