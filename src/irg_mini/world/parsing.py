"""From a prompt back to what it asks for: a small parser of the captions' own grammar, synonyms and typos included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from irg_mini.world import phrasing
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS
from irg_mini.world.request import Include, Request, make_request
from irg_mini.world.spelling import Words, correct_typo, known_words, spellings, split_prompt
from irg_mini.world.unknown import listed_words, nearest_noun, singular

_IN_FRONT = "in front of"
Phrases = Mapping[str, list[tuple[Words, str]]]
"""First word -> the phrases that begin with it, the longest first, each with its meaning."""


def parse_prompt(prompt: str, guess: bool = False) -> Request | None:
    """What a prompt asks for, if it is one of the captions' forms; else None.

    Synonyms, and nouns with one typo in them, are understood. An unknown noun makes the prompt unreadable, unless
    `guess` is set: then the nearest known noun is asked for, and the entry's `unknown` is the prompt's own word.
    """
    parser = _Parser(_corrected(split_prompt(prompt)), guess)
    background = parser.take("background")
    if background is not None:
        parser.take("mark")
    parser.take("opening")
    groups: list[Include] = []
    while True:
        if not parser.groups(groups):
            return None
        if parser.look("ending") or parser.take("and") is None:
            break
    background = parser.take("background") or background
    parser.take("ending")
    names = [group.name for group in groups]
    if not parser.done or len(set(names)) < len(names):
        return None
    return make_request(groups, background)


def _corrected(words: list[str]) -> list[str]:
    """The words with typos in nouns put right, and without what stands at the end and means nothing."""
    while words and words[-1] in ".!?":
        words = words[:-1]
    return [word if word in _grammar_words() else correct_typo(word) or word for word in words]


class _Parser:
    """Walks over a prompt's words."""

    def __init__(self, words: list[str], guess: bool) -> None:
        self.words = words
        self.guess = guess
        self.at = 0

    def take(self, kind: str) -> str | None:
        """The meaning of the longest phrase of this kind that stands here, and step over it."""
        found = self.look(kind)
        if found is None:
            return None
        self.at += len(found[0])
        return found[1]

    def look(self, kind: str) -> tuple[Words, str] | None:
        """The longest phrase of this kind that stands here, with its meaning."""
        if self.done:
            return None
        for words, meaning in _phrases()[kind].get(self.words[self.at], ()):
            if tuple(self.words[self.at : self.at + len(words)]) == words:
                return words, meaning
        return None

    def skip(self, kind: str) -> None:
        """Step over a phrase of this kind that means nothing, unless a noun begins with it ('happy face')."""
        if self.look("noun") is None:
            self.take(kind)

    def groups(self, groups: list[Include]) -> bool:
        """Read a group, or two in a relation, and add them (what is referred to first); False if there is none."""
        first = self.group()
        if first is None:
            return False
        # 'on a meadow' is where it all happens, 'on a couch' is a relation.
        relation = None if self.look("background") else self.take("relation")
        if relation is None:
            groups.append(first)
            return True
        second = self.group()
        if second is None:
            return False
        if relation == _IN_FRONT:  # of a house: the house is behind
            relation, first, second = "behind", second, first
        groups += [second, replace(first, position=(relation, len(groups)))]
        return True

    def group(self) -> Include | None:
        """[exactly] [number] [pair of] [[shade] color] [filler] noun [that is color]."""
        start = self.at
        self.take("exactly")
        number = self.take("number")
        count = int(number or 1)
        pair = self.take("pair") is not None
        # 'an orange' is a fruit, 'an orange cup' is a color: the color is tried first, then given back.
        before_color = self.at
        self.skip("shade")
        color = self.take("color")
        self.skip("filler")
        name, unknown = self.noun(count > 1 or pair)
        if name is None and color is not None:
            self.at, color = before_color, None
            self.skip("filler")
            name, unknown = self.noun(count > 1 or pair)
        if name is None:
            self.at = start
            return None
        if pair and name not in phrasing.PAIRED:
            count *= 2
        if color is None and self.take("that is") is not None:
            color = self.take("color")
        return Include(name, count, color, unknown=unknown)

    def noun(self, plural: bool) -> tuple[str | None, str | None]:
        """(class, the unknown word or None) of the noun that stands here; (None, None) if there is none."""
        start, name = self.at, self.take("noun")
        if name is not None and (not self.guess or self.at_boundary):
            return name, None
        if not self.guess:
            return None, None
        self.at = start
        while not self.at_boundary:
            self.at += 1
        words = self.words[start : self.at]
        if not words or not all(word.isalpha() for word in words):
            self.at = start
            return None, None
        word = singular(" ".join(words), plural)
        return nearest_noun(word), word

    @property
    def at_boundary(self) -> bool:
        """Whether a noun ends before here."""
        return self.done or any(self.look(kind) for kind in ("background", "relation", "and", "that is", "ending"))

    @property
    def done(self) -> bool:
        return self.at == len(self.words)


@cache
def _phrases() -> Mapping[str, Phrases]:
    """The fixed phrases by kind and first word."""
    numbers = [(word, str(value)) for value, word in enumerate(phrasing.NUMBER_WORDS) if value]
    numbers += [(str(value), str(value)) for value in range(1, 11)] + [("a", "1"), ("an", "1"), ("the", "1")]
    pairs = ("pair of", "pairs of", "a pair of")
    numbers += [(p, str(n)) for n, phrases in phrasing.COUNT_PHRASES.items() for p in phrases if p not in pairs]
    openings = [*phrasing.RICH_OPENINGS, *phrasing.PLURAL_OPENINGS.values()]
    backgrounds = [(background.phrase, name) for name, background in BACKGROUNDS.items()]
    backgrounds += [(phrase, name) for name, phrases in phrasing.BACKGROUND_PHRASES.items() for phrase in phrases]
    relations = phrasing.RICH_RELATION_PHRASES.items()
    kinds = {
        "opening": [(opening, opening) for opening in openings if opening],
        "relation": [(_IN_FRONT, _IN_FRONT), *((phrase, name) for name, phrases in relations for phrase in phrases)],
        "background": backgrounds,
        "number": numbers,
        "exactly": [(word, "") for word in phrasing.EXACTLY],
        "shade": [(word, "") for word in (*phrasing.SHADES, *phrasing.FILLERS)],
        "filler": [(word, "") for word in phrasing.FILLERS],
        "color": [(color, color) for color in COLORS] + [(f"{color} colored", color) for color in COLORS],
        "pair": [(pair, "") for pair in pairs],
        "noun": [(" ".join(words), name) for words, name in spellings().items()],
        "that is": [("that is", ""), ("that are", "")],
        "and": [(", and", ""), (",", ""), *((joint, "") for joint in phrasing.JOINTS)],
        "mark": [(",", ""), (":", "")],
        "ending": [(ending.rstrip("."), "") for ending in phrasing.ENDINGS if ending.rstrip(".!")],
    }
    table: dict[str, Phrases] = {}
    for kind, entries in kinds.items():
        by_first: dict[str, list[tuple[Words, str]]] = defaultdict(list)
        for phrase, meaning in entries:
            words = tuple(split_prompt(phrase))
            by_first[words[0]].append((words, meaning))
        table[kind] = {first: sorted(found, key=lambda e: -len(e[0])) for first, found in by_first.items()}
    return table


@cache
def _grammar_words() -> frozenset[str]:
    """Words that are never taken for misspelt nouns."""
    found = (entry for phrases in _phrases().values() for entries in phrases.values() for entry in entries)
    fixed = {word for words, _ in found for word in words}
    return frozenset(fixed | known_words() | {word for words in listed_words() for word in split_prompt(words)})


def readable_typo(typo: str, word: str) -> bool:
    """Whether a misspelt word is taken for the word that was meant."""
    return typo not in _grammar_words() and correct_typo(typo) == word
