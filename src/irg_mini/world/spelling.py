"""How nouns can be written: names, plurals, synonyms; and which known word a misspelt one is meant to be."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache

from irg_mini.world.classes import classes, geneval_plural, synonym_plural

SHORTEST_CORRECTED = 5
"""Shorter words are never taken for misspelt ones: 'boar' is no boat."""
SHORTEST_CHANGED = 7
"""In shorter words no letter is taken for another."""

Words = tuple[str, ...]


def split_prompt(prompt: str) -> list[str]:
    """Lower-case words, numbers, commas and other marks; a hyphen or an apostrophe inside a word counts as a space."""
    return re.findall(r"[^\W\d_]+|\d+|,|[^\s\w]", re.sub(r"(?<=\w)[-'’](?=\w)", " ", prompt.lower()))


@cache
def spellings() -> Mapping[Words, str]:
    """Every spelling of every noun, as words -> class name."""
    table: dict[Words, str] = {}
    for kind in classes("full").values():
        synonyms = [form for word in kind.synonyms for form in (word, synonym_plural(kind, word))]
        for spelling in (kind.name, kind.plural, geneval_plural(kind.name), *synonyms):
            table.setdefault(tuple(split_prompt(spelling)), kind.name)
    return table


@cache
def known_words() -> frozenset[str]:
    """Every single word of the nouns' spellings."""
    return frozenset(word for words in spellings() for word in words)


def _shorter(word: str) -> set[str]:
    return {word[:i] + word[i + 1 :] for i in range(len(word))}


@cache
def _by_shorter() -> Mapping[str, list[str]]:
    """Every noun word, and it with any one letter left out -> the words it comes from."""
    table: dict[str, list[str]] = defaultdict(list)
    for word in sorted(known_words()):
        if len(word) >= SHORTEST_CORRECTED:
            for form in {word} | _shorter(word):
                table[form].append(word)
    return table


@cache
def correct_typo(word: str) -> str | None:
    """The one noun word that is a typo away, if there is just one.

    A typo is a letter left out or put in, or two swapped; in long words only also a changed one: a donkey is no monkey.
    """
    if len(word) < SHORTEST_CORRECTED - 1 or word in known_words():
        return None
    forms = {word} | _shorter(word)
    near = {known for form in forms for known in _by_shorter().get(form, ()) if _one_typo(word, known)}
    return near.pop() if len(near) == 1 else None


def _one_typo(a: str, b: str) -> bool:
    if len(a) != len(b):
        longer, shorter = (a, b) if len(a) > len(b) else (b, a)
        return shorter in _shorter(longer)
    odd = [i for i in range(len(a)) if a[i] != b[i]]
    if len(odd) == 1:
        return len(a) >= SHORTEST_CHANGED
    return len(odd) == 2 and odd[1] == odd[0] + 1 and a[odd[0]] == b[odd[1]] and a[odd[1]] == b[odd[0]]
