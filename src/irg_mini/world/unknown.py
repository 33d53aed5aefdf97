"""Nouns that the world does not know, and the nearest noun that it draws for each.

`nouns/unknown.txt` is a list made by hand. For a word that is not on it there are rules: the last known word of
the phrase ('sports car'), what the word ends in ('bluebird'), and in the end a question mark is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from irg_mini.world.classes import regular_plural
from irg_mini.world.heldout import is_held_out
from irg_mini.world.spelling import correct_typo, spellings

LAST_RESORT = "question mark"
_SHORTEST_ENDING = 4


@cache
def _table() -> Mapping[str, tuple[str, str]]:
    """Word -> (nearest noun, the word's plural)."""
    table = {}
    for line in files("irg_mini.world").joinpath("nouns", "unknown.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            word, nearest, *plural = (field.strip() for field in line.split("|"))
            table[word] = nearest, plural[0] if plural else regular_plural(word)
    return table


@cache
def unknown_words(split: str) -> Mapping[str, tuple[str, ...]]:
    """Noun -> the listed words of a split ('train' or 'test') for which it is the nearest."""
    groups: dict[str, list[str]] = defaultdict(list)
    for word, (nearest, _) in _table().items():
        if is_held_out(f"unknown {word}") == (split == "test"):
            groups[nearest].append(word)
    return {nearest: tuple(words) for nearest, words in groups.items()}


def unknown_plural(word: str) -> str:
    """'wolves', 'salmon': the plural of a word that the world does not know."""
    return _table()[word][1] if word in _table() else regular_plural(word)


@cache
def _singulars() -> Mapping[str, str]:
    return {plural: word for word, (_, plural) in _table().items()}


def singular(word: str, plural: bool) -> str:
    """The singular of an unknown noun: by the list, else by its ending if it was asked for in the plural."""
    if word in _table() or not plural:
        return word
    if word in _singulars():
        return _singulars()[word]
    if word.endswith(("shes", "ches", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


@cache
def nearest_noun(word: str) -> str:
    """The noun that is drawn for a word (or a few words) that the world does not know; never fails."""
    if word in _table():
        return _table()[word][0]
    for part in reversed(word.split()):
        for known in (part, correct_typo(part)):
            if known is not None and (known,) in spellings():
                return spellings()[(known,)]
        if part in _table():
            return _table()[part][0]
    last = word.split()[-1]
    for start in range(1, len(last) - _SHORTEST_ENDING + 1):
        ending = last[start:]
        if (ending,) in spellings():
            return spellings()[(ending,)]
        if ending in _table():
            return _table()[ending][0]
    return LAST_RESORT


def listed_words() -> frozenset[str]:
    """All listed words and their plurals."""
    return frozenset(_table()) | frozenset(plural for _, plural in _table().values())
