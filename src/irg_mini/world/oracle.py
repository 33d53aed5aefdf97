"""The oracle writes what a model should think: T1 (what goes where) and T2 (what is wrong and how to mend it).

T1:  `Scene: meadow. Things: large red apple at (3,7); medium bus at (9,5).`
     before it, where the prompt has words that the world does not know: `Unknown: hawk drawn as eagle. `
T2:  `<think> Analysis: in the image: small red apple at (3,7). the apple at (3,7) is red, not green.
     Improvements: ... . Steps: keep 1 things, fix 0, add 1, remove 0. Final prompt: <T1> </think>` (on one line)
     First it says what is seen, in T1's words: so that the reader learns to look before it compares.

Things are told in the order in which the prompt names them, each class from left to right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irg_mini.world.backgrounds import background
from irg_mini.world.captions import NUMBER_WORDS
from irg_mini.world.classes import COLORS, SIZES, article, is_class, object_class
from irg_mini.world.flaws import Flaw
from irg_mini.world.layout import prompt_rank
from irg_mini.world.meaning import Request
from irg_mini.world.rules import Seen
from irg_mini.world.scene import Scene, Thing, in_order, snap

CORE_PHRASES = (
    "Scene: . Things: at ( , ) ; none",
    "<think> Analysis: Improvements: Steps: Final prompt: </think>",
    "the is not there an extra should be a nothing is wrong one are missing picture blurred noisy ghosted",
    "recolor to add an replace by move and remove sharpen clean redraw keep things fix",
)
"""Every fixed word of the two templates, for the vocabulary."""
FULL_PHRASES = ("Unknown: drawn as",)
"""Those that only prompts with unknown nouns need."""

_SHOWN = "in the picture: "
_ANEW = "a new plan"
_MENDING = {"blurred": "sharpen the picture", "noisy": "clean the picture", "ghosted": "redraw the picture"}


def think(request: Request, scene: Scene, rng: np.random.Generator | None = None) -> str:
    """T1 for a scene of the request. (Nothing is random in it so far; the rng is for later variety.)"""
    layout = write_layout(Scene(scene.background, in_order(scene.things, prompt_rank(request))))
    entries = [request.include[index] for index in request.mentioned()]
    told = "; ".join(f"{entry.unknown} drawn as {entry.name}" for entry in entries if entry.unknown is not None)
    return f"Unknown: {told}. {layout}" if told else layout


def write_layout(scene: Scene) -> str:
    """A scene as text, things in the scene's own order."""
    told = "; ".join(map(_tell_thing, scene.things))
    return f"Scene: {scene.background}. Things: {told or 'none'}."


_LAYOUT = re.compile(r"\s*(?:Unknown:\s*(.*?)\s*\.)?\s*Scene:\s*(\w+)\s*\.\s*Things:\s*(.*?)\s*\.\s*", re.DOTALL)
_THING = re.compile(r"(\w+)\s+(.+?)\s+at\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")


def parse_layout(text: str) -> Scene:
    """The scene that `write_layout` or `think` wrote; ValueError names what is wrong."""
    match = _LAYOUT.fullmatch(text)
    if match is None:
        raise ValueError(f"not of the form 'Scene: <name>. Things: <list>.': {text[:120]!r}")
    _, name, things = match.groups()
    background(name)
    if things == "none":
        return Scene(name, ())
    return Scene(name, tuple(_parse_thing(part.strip()) for part in things.split(";")))


def parse_unknown(text: str) -> dict[str, str]:
    """Unknown word -> the noun drawn for it, as `think` tells them; ValueError if the text is no layout."""
    match = _LAYOUT.fullmatch(text)
    if match is None:
        raise ValueError(f"not of the form 'Unknown: <list>. Scene: <name>. Things: <list>.': {text[:120]!r}")
    pairs = [part.split(" drawn as ") for part in (match[1] or "").split(";") if " drawn as " in part]
    return {word.strip(): noun.strip() for word, noun in pairs}


def _parse_thing(text: str) -> Thing:
    match = _THING.fullmatch(text)
    if match is None:
        raise ValueError(f"not of the form '<size> [<color>] <class> at (<col>,<row>)': {text[:80]!r}")
    size, label, col, row = match.groups()
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} in {text!r}")
    first, _, rest = " ".join(label.split()).partition(" ")
    # 'orange' alone is the fruit; 'orange cup' a color.
    color, name = (first, rest) if first in COLORS and rest else (None, " ".join(label.split()))
    if not is_class(name):
        raise ValueError(f"unknown class {name!r} in {text!r}")
    return Thing(name, color, int(col), int(row), size)


# ---- T2 --------------------------------------------------------------------------------------------------------------


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
        calm = [thing for thing in snapped if thing not in before]
    else:
        calm = _unmentioned(flaws, before, after)
    edits = []
    going = {thing for thing, flaw in faulty if flaw.kind == "extra"}
    for thing in calm:
        if (new := _nearest(after, thing, thing.name)) is not None:
            after.remove(new)
            edits.append(Edit("keep" if _distance(thing, new) <= 1 else "fix", thing, new))
        else:
            edits.append(Edit("remove", thing, None))
    for thing, flaw in _by_reach(faulty, after):
        if thing in going or any(edit.before == thing for edit in edits):
            continue
        wanted = flaw.wanted.name if flaw.wanted is not None else thing.name
        new = _nearest(after, thing, wanted)
        if new is None or (flaw.kind == "wrong_class" and _distance(thing, new) > 1):
            edits.append(Edit("remove", thing, None))
        else:
            after.remove(new)
            edits.append(Edit("fix", thing, new))
    edits += [Edit("add", None, thing) for thing in after]
    return edits + [Edit("remove", thing, None) for thing in before if thing in going]


def _unmentioned(flaws: Sequence[Flaw], before: list[Thing], after: list[Thing]) -> list[Thing]:
    """The corrected scene's things that neither mend a flaw nor fill a gap."""
    calm = list(after)
    for flaw in flaws:
        if flaw.wanted is None or (flaw.kind == "wrong_place" and flaw.thing is None):
            continue
        alike = [thing for thing in calm if thing.name == flaw.wanted.name]
        if flaw.thing is not None and alike:
            calm.remove(min(alike, key=lambda thing: _distance(thing, flaw.thing)))
        elif alike:
            calm.remove(alike[-1])
    return calm


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
    anew: bool = False,
) -> str:
    """T2: what is wrong with the image, what to change, in which steps, and the corrected layout.

    With `anew` the corrected layout is a new plan, which keeps nothing of the image.
    """
    edits = find_edits(flaws, corrected, seen, size)
    mending = [_MENDING[flaw.detail] for flaw in flaws if flaw.kind == "poor_quality" and flaw.detail is not None]
    changes = [_ANEW] if anew else [words for edit in edits if (words := _tell_edit(edit))]
    improvements = changes + mending
    counts = Counter(edit.action for edit in edits)
    if anew:
        counts = Counter(add=len(corrected.things), remove=sum(edit.before is not None for edit in edits))
    shown = "" if seen is None else f"{_SHOWN}{_tell_seen(request, seen, size)}. "
    steps = f"keep {counts['keep']} things, fix {counts['fix']}, add {counts['add']}, remove {counts['remove']}"
    return (
        f"<think> Analysis: {shown}{'; '.join(_tell_flaws(flaws)) or 'nothing is wrong'}. "
        f"Improvements: {'; '.join(improvements) or 'none'}. Steps: {steps}. "
        f"Final prompt: {think(request, corrected)} </think>"
    )


def _tell_seen(request: Request, seen: Sequence[Seen], size: int) -> str:
    things = [snap(item.name, item.color, item.box, size) for item in seen if is_class(item.name)]
    return "; ".join(_tell_thing(thing) for thing in in_order(things, prompt_rank(request))) or "none"


def _tell_thing(thing: Thing) -> str:
    return f"{thing.size} {thing.label} at {thing.place}"


def _tell_flaws(flaws: Sequence[Flaw]) -> list[str]:
    told = []
    missing = Counter(flaw.wanted for flaw in flaws if flaw.kind == "missing")
    for entry, count in missing.items():
        assert entry is not None
        color = f"{entry.color} " if entry.color else ""
        noun = entry.name if count == 1 else object_class(entry.name).plural
        told.append(f"{NUMBER_WORDS[count]} {color}{noun} {'is' if count == 1 else 'are'} missing")
    for flaw in flaws:
        if flaw.kind == "poor_quality":
            told.append(f"the picture is {flaw.detail}")
        elif flaw.thing is not None:
            told.append(_tell_flaw(flaw, flaw.thing))
    return told


def _tell_flaw(flaw: Flaw, thing: Thing) -> str:
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


def _tell_edit(edit: Edit) -> str:
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

    @property
    def nothing_wrong(self) -> bool:
        return self.faults.rstrip(". ") == "nothing is wrong"


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
