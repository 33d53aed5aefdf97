"""From a request to a prompt and back: GenEval's own phrasing, and paraphrases of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np

from irg.miniworld.backgrounds import BACKGROUNDS
from irg.miniworld.classes import COLORS, article, classes, geneval_plural
from irg.miniworld.request import Include, Request, make_request

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPENINGS = (
    "a photo of",
    "a picture of",
    "an image of",
    "a photo showing",
    "a scene with",
    "draw",
    "show",
    "paint",
    "please draw",
    "there is",
    "",
)
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
PLURAL_ONLY = frozenset({"skis", "scissors"})


def caption(request: Request, rng: np.random.Generator | None = None, style: str = "plain") -> str:
    """The request as a prompt. 'plain' is GenEval's wording to the letter; 'varied' paraphrases it by the rng.

    A background that the request asks for is named in both styles.
    """
    if style not in ("plain", "varied"):
        raise ValueError(f"style must be 'plain' or 'varied', not {style!r}")
    if style == "varied" and rng is None:
        raise ValueError("style 'varied' needs an rng")
    varied = rng if style == "varied" else None
    body = _body(request, varied)
    if request.background is not None:
        body = f"{body} {BACKGROUNDS[request.background].phrase}"
    if varied is None:
        return f"a photo of {body}"
    opening = _choose(varied, OPENINGS)
    if opening == "there is" and request.include[request.mentioned()[0]].count > 1:
        opening = "there are"
    ending = "." if varied.random() < 0.15 else ""
    return f"{opening} {body}{ending}".strip()


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _body(request: Request, rng: np.random.Generator | None) -> str:
    include = request.include
    groups = [_group(include[index], rng) for index in request.mentioned()]
    placed = [entry.position for entry in include if entry.position is not None]
    if placed:
        if len(include) != 2:
            raise ValueError("only a relation between two groups can be phrased")
        phrases = RELATION_PHRASES[placed[0][0]]
        return f"{groups[0]} {phrases[0] if rng is None else _choose(rng, phrases)} {groups[1]}"
    if len(groups) == 1:
        return groups[0]
    return f"{', '.join(groups[:-1])} and {groups[-1]}"


def _group(entry: Include, rng: np.random.Generator | None) -> str:
    """'a red apple', 'three dogs', '3 dogs', 'a pair of skis'."""
    color = f"{entry.color} " if entry.color else ""
    if entry.count == 1:
        if rng is not None and entry.name in PLURAL_ONLY and rng.random() < 0.7:
            return f"a pair of {color}{entry.name}"
        noun = color + entry.name
        return f"one {noun}" if rng is not None and rng.random() < 0.06 else f"{article(noun)} {noun}"
    digits = entry.count >= len(NUMBER_WORDS) or (rng is not None and rng.random() < 0.2)
    number = str(entry.count) if digits else NUMBER_WORDS[entry.count]
    if rng is None:
        return f"{number} {color}{geneval_plural(entry.name)}"
    if entry.name in PLURAL_ONLY:
        return f"{number} pairs of {color}{entry.name}"
    return f"{number} {color}{classes()[entry.name].plural}"


@cache
def _nouns() -> Mapping[tuple[str, ...], str]:
    """Every spelling of every class as a tuple of words -> class name."""
    table = {}
    for kind in classes().values():
        for spelling in (kind.name, kind.plural, geneval_plural(kind.name)):
            table[tuple(spelling.split())] = kind.name
    return table


@cache
def _phrases() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """The fixed phrases by kind, longest first: (words, meaning)."""
    numbers = [(word, str(value)) for value, word in enumerate(NUMBER_WORDS) if value]
    numbers += [(str(value), str(value)) for value in range(1, 11)] + [("a", "1"), ("an", "1")]
    kinds = {
        "opening": [(phrase, phrase) for phrase in (*OPENINGS, "there are") if phrase],
        "relation": [(phrase, name) for name, phrases in RELATION_PHRASES.items() for phrase in phrases],
        "background": [(background.phrase, name) for name, background in BACKGROUNDS.items()],
        "number": numbers,
        "color": [(color, color) for color in COLORS],
        "pair": [("pair of", ""), ("pairs of", "")],
        "noun": [(" ".join(words), name) for words, name in _nouns().items()],
        "and": [(", and", ""), ("and", ""), (",", "")],
    }
    return {
        kind: sorted(((tuple(words.split()), meaning) for words, meaning in entries), key=lambda e: -len(e[0]))
        for kind, entries in kinds.items()
    }


class _Reader:
    """Walks over a prompt's words."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    def take(self, kind: str) -> str | None:
        """The meaning of the longest phrase of this kind that stands here, and step over it."""
        for words, meaning in _phrases()[kind]:
            if tuple(self.words[self.at : self.at + len(words)]) == words:
                self.at += len(words)
                return meaning
        return None

    def group(self) -> Include | None:
        """[number] [pair of] [color] noun."""
        start = self.at
        count = int(self.take("number") or 1)
        self.take("pair")
        # 'an orange' is a fruit, 'an orange cup' is a colour: the colour is tried first, then given back.
        before_color = self.at
        color = self.take("color")
        name = self.take("noun")
        if name is None and color is not None:
            self.at, color = before_color, None
            name = self.take("noun")
        if name is None:
            self.at = start
            return None
        return Include(name, count, color)

    @property
    def done(self) -> bool:
        return self.at == len(self.words)


def parse_prompt(prompt: str) -> Request | None:
    """What a prompt asks for, if it is one of the captions' forms and every object is known; else None."""
    words = re.findall(r"[a-z]+|\d+|,|[^\s\w]", prompt.lower())
    while words and words[-1] in ".!":
        words.pop()
    reader = _Reader(words)
    reader.take("opening")
    first = reader.group()
    if first is None:
        return None
    if (relation := reader.take("relation")) is not None:
        second = reader.group()
        if second is None:
            return None
        groups = [second, Include(first.name, first.count, first.color, (relation, 0))]
    else:
        groups = [first]
        while reader.take("and") is not None:
            if (group := reader.group()) is None:
                return None
            groups.append(group)
    background = reader.take("background")
    if not reader.done or len({group.name for group in groups}) < len(groups):
        return None
    return make_request(groups, background)
