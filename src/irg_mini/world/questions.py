"""Short questions about an image and their answers, from the scene's truth: texts for visual question answering."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS, article, object_class, takes_color
from irg_mini.world.phrasing import BARE, NUMBER_WORDS, RELATION_PHRASES
from irg_mini.world.rules import holds
from irg_mini.world.scene import Scene, Thing, boxes
from irg_mini.world.vocabularies import Vocabulary, find_vocabulary

SIZE = 96
"""Colors and relations are what a perfect detector sees in an image of this many pixels."""


@dataclass(frozen=True)
class Question:
    """`form` is one of FORMS; `answer` is a few words, without a full stop."""

    form: str
    text: str
    answer: str


@dataclass(frozen=True)
class _Context:
    """A scene as `ask` needs it: its things, their colors as seen, what else there could be."""

    scene: Scene
    things: tuple[Thing, ...]
    colors: tuple[str | None, ...]
    vocab: Vocabulary
    rng: np.random.Generator

    def pick(self, options: Sequence) -> int:
        """A random index."""
        return int(self.rng.integers(len(options)))

    def single(self) -> Thing | None:
        """A random thing that is the only one of its class, if there is any."""
        counts = Counter(thing.name for thing in self.things)
        alone = [thing for thing in self.things if counts[thing.name] == 1]
        return alone[self.pick(alone)] if alone else None

    def absent(self) -> str:
        """A class that is not there: half of the time of the same sort as something that is."""
        there = {thing.name for thing in self.things}
        if self.things and self.rng.random() < 0.5:
            category = object_class(self.things[self.pick(self.things)].name).category
            alike = [name for name in _categories(self.vocab).get(category, ()) if name not in there]
            if alike:
                return alike[self.pick(alike)]
        while (name := self.vocab.nouns[self.pick(self.vocab.nouns)]) in there:
            pass
        return name


@cache
def _categories(vocab: Vocabulary) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in vocab.nouns:
        groups.setdefault(object_class(name).category, []).append(name)
    return groups


def ask(
    scene: Scene,
    rng: np.random.Generator,
    count: int = 1,
    vocab: str | Vocabulary | Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
) -> list[Question]:
    """Up to `count` different random questions about a scene (fewer if it has not so many answers).

    `vocab`: what questions may name although it is not there; `forms` limits the kinds (ValueError for an unknown one).
    """
    forms = tuple(_FORMS) if forms is None else tuple(forms)
    if odd := set(forms) - set(_FORMS):
        raise ValueError(f"unknown forms of question: {', '.join(sorted(odd))}; choose from {', '.join(_FORMS)}")
    colors = tuple(color for _, color, _ in boxes(scene, SIZE))
    context = _Context(scene, scene.things, colors, find_vocabulary(vocab), rng)
    found: dict[str, Question] = {}
    for _ in range(6 * count):
        form = forms[context.pick(forms)]
        if (pair := _FORMS[form](context)) is not None:
            found.setdefault(pair[0], Question(form, *pair))
        if len(found) == count:
            break
    return list(found.values())


Answered = tuple[str, str] | None


def _one_of(context: _Context, *texts: str) -> str:
    return texts[context.pick(texts)]


def _a(thing: Thing) -> str:
    return thing.label if thing.name in BARE else f"{article(thing.label)} {thing.label}"


def _list(things: Sequence[Thing]) -> str:
    """'two red apples and a bus', in the order given."""
    groups: dict[str, list[Thing]] = {}
    for thing in things:
        groups.setdefault(thing.label, []).append(thing)
    texts = []
    for alike in groups.values():
        first = alike[0]
        color = f"{first.color} " if first.color else ""
        plural = f"{NUMBER_WORDS[min(len(alike), 10)]} {color}{object_class(first.name).plural}"
        texts.append(_a(first) if len(alike) == 1 else plural)
    if not texts:
        return "nothing"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _what(context: _Context) -> Answered:
    text = _one_of(context, "What is in the picture?", "What do you see?", "What is there?")
    return text, _list(context.things)


def _what_is_at(context: _Context) -> Answered:
    if not context.things:
        return None
    thing = context.things[context.pick(context.things)]
    there = [other for other in context.things if (other.col, other.row) == (thing.col, thing.row)]
    return f"What is at {thing.place}?", _list(there)


def _what_is_related(context: _Context) -> Answered:
    target = context.single()
    if target is None:
        return None
    relation = context.vocab.relations[context.pick(context.vocab.relations)]
    found = [t for t in context.things if t is not target and holds(t.box, target.box, relation)]
    return f"What is {RELATION_PHRASES[relation][0]} the {target.name}?", _list(found)


def _how_many(context: _Context) -> Answered:
    there = bool(context.things) and context.rng.random() < 0.8
    name = context.things[context.pick(context.things)].name if there else context.absent()
    count = sum(thing.name == name for thing in context.things)
    return f"How many {object_class(name).plural} are there?", NUMBER_WORDS[min(count, 10)] if count else "none"


def _what_color(context: _Context) -> Answered:
    thing = context.single()
    if thing is None:
        return None
    color = context.colors[context.things.index(thing)]
    return None if color is None else (f"What color is the {thing.name}?", color)


def _where(context: _Context) -> Answered:
    thing = context.single()
    return None if thing is None else (f"Where is the {thing.name}?", f"at {thing.place}")


def _is_there(context: _Context) -> Answered:
    """Half of the answers are yes; half of the rest fail by the color alone, where there is a color."""
    chance = context.rng.random()
    if not context.things or chance < 0.25:
        name = context.absent()
        return f"Is there {article(name)} {name}?", "no"
    index = context.pick(context.things)
    name, color = context.things[index].name, context.colors[index]
    if color is not None and takes_color(name) and context.rng.random() < 0.6:
        seen = {c for t, c in zip(context.things, context.colors, strict=True) if t.name == name}
        others = [other for other in COLORS if other not in seen]
        if chance < 0.5 and None not in seen:
            color = others[context.pick(others)]
        return f"Is there {article(color)} {color} {name}?", "yes" if color in seen else "no"
    if chance < 0.5:
        name = context.absent()
        return f"Is there {article(name)} {name}?", "no"
    return f"Is there {article(name)} {name}?", "yes"


def _is_related(context: _Context) -> Answered:
    """Whether a thing stands in a relation to another; half of the time one in which something does stand."""
    first, second = context.single(), context.single()
    if first is None or second is None or first is second:
        return None
    held = [relation for relation in context.vocab.relations if holds(first.box, second.box, relation)]
    options = held if held and context.rng.random() < 0.5 else context.vocab.relations
    relation = options[context.pick(options)]
    text = f"Is the {first.name} {RELATION_PHRASES[relation][0]} the {second.name}?"
    return text, "yes" if relation in held else "no"


def _background(context: _Context) -> Answered:
    text = _one_of(context, "What is the background?", "Where does this happen?")
    if text.startswith("What"):
        return text, context.scene.background
    return text, BACKGROUNDS[context.scene.background].phrase


_FORMS: dict[str, Callable[[_Context], Answered]] = {
    "what": _what,
    "what_at": _what_is_at,
    "what_related": _what_is_related,
    "how_many": _how_many,
    "color": _what_color,
    "where": _where,
    "is_there": _is_there,
    "is_related": _is_related,
    "background": _background,
}
FORMS = tuple(_FORMS)
QUESTION_PHRASES = (
    "What is in the picture? What do you see? What is there? What is at the",
    "How many are there? none nothing What color is the Where is the? at",
    "Is there a an? yes no Is the? What is the background? Where does this happen?",
)
"""Every fixed word of the questions and answers, for the vocabulary."""
