"""T1, the ground-truth thinking: a scene as text, and back.

`Scene: meadow. Things: large red apple at (3,7); medium bus at (9,5).`
before it, where the prompt has words that the world does not know: `Unknown: hawk drawn as eagle. `

Things are listed in the order in which the prompt names them, each class from left to right.
"""

from __future__ import annotations

import re

from irg_mini.world.backgrounds import background
from irg_mini.world.classes import COLORS, SIZES, is_class
from irg_mini.world.placement import prompt_rank
from irg_mini.world.request import Request
from irg_mini.world.scene import Scene, Thing, in_order

THINKING_PHRASES = "Scene: . Things: at ( , ) ; none"
"""Every fixed word of T1, for the vocabulary."""
UNKNOWN_PHRASES = "Unknown: drawn as"
"""Those that only prompts with unknown nouns need."""


def think(request: Request, scene: Scene) -> str:
    """T1 for a scene of the request."""
    layout = write_layout(Scene(scene.background, in_order(scene.things, prompt_rank(request))))
    entries = [request.include[index] for index in request.mentioned()]
    unknown = "; ".join(f"{entry.unknown} drawn as {entry.name}" for entry in entries if entry.unknown is not None)
    return f"Unknown: {unknown}. {layout}" if unknown else layout


def write_layout(scene: Scene) -> str:
    """A scene as text, things in the scene's own order."""
    things = "; ".join(map(describe_thing, scene.things))
    return f"Scene: {scene.background}. Things: {things or 'none'}."


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


def describe_thing(thing: Thing) -> str:
    """'large red apple at (3,7)'."""
    return f"{thing.size} {thing.label} at {thing.place}"
