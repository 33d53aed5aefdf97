"""Random requests, for training and testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS, can_carry, takes_color
from irg_mini.world.geometry import STACKED
from irg_mini.world.heldout import HELD_OUT_SHARE, held_out, in_geneval
from irg_mini.world.request import ALL_TAGS, FULL_TAGS, TAGS, Include, Request, find_tag, make_request
from irg_mini.world.scene import stacking_sizes
from irg_mini.world.unknown import unknown_words
from irg_mini.world.vocabularies import RELATIONS, Vocabulary, find_vocabulary

__all__ = [
    "ALL_TAGS",
    "DEFAULT_WEIGHTS",
    "FULL_TAGS",
    "FULL_WEIGHTS",
    "HELD_OUT_SHARE",
    "RELATIONS",
    "TAGS",
    "Include",
    "Request",
    "held_out",
    "make_request",
    "sample_request",
]

DEFAULT_WEIGHTS: dict[str, float] = {
    "single_object": 1.0,
    "two_object": 1.5,
    "counting": 2.5,
    "colors": 1.0,
    "position": 1.5,
    "color_attr": 2.5,
    "compound": 2.0,
}
FULL_WEIGHTS: dict[str, float] = {**DEFAULT_WEIGHTS, "stacking": 1.5}
"""The weights where the vocabulary has the relations on and behind."""
MOST_THINGS = 6
"""Things in one image at most (core: five)."""


def sample_request(
    rng: np.random.Generator,
    weights: Mapping[str, float] | None = None,
    vocab: str | Vocabulary | Sequence[str] | None = None,
    *,
    split: str = "train",
    background: float = 0.0,
    unknown: float = 0.0,
) -> Request:
    """A random request whose tag follows `weights`, within a vocabulary ('core', 'geneval', 'full' or a list of nouns).

    split 'train' never gives a held-out combination, nor what a GenEval prompt asks for (single objects excepted: their
    wording is up to `training_caption`); 'test' gives only requests with a held-out combination (single objects have
    none). `background` is the chance that the request names one, `unknown` that one of its nouns is a word that the
    world does not know, where there is such a word for it.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    vocabulary = find_vocabulary(vocab)
    stacking = any(relation in STACKED for relation in vocabulary.relations)
    weights = (FULL_WEIGHTS if stacking else DEFAULT_WEIGHTS) if weights is None else weights
    possible = FULL_TAGS if stacking else ALL_TAGS
    if odd := set(weights) - set(possible):
        raise ValueError(f"unknown tags: {', '.join(sorted(odd))}; choose from {', '.join(possible)}")
    chances = np.array(list(weights.values()), float)
    tag = list(weights)[int(rng.choice(len(weights), p=chances / chances.sum()))]
    for _ in range(10_000):
        include = _INCLUDES[tag](rng, vocabulary)
        if unknown and rng.random() < unknown:
            include = _with_unknown(rng, include, split)
        request = make_request(include)
        if _fits(request, split):
            break
    else:
        raise ValueError(f"vocab of {len(vocabulary.nouns)} classes gives no {split} request of tag {tag!r}")
    if background and rng.random() < background:
        return make_request(include, list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])
    return request


def _fits(request: Request, split: str) -> bool:
    single = request.tag == "single_object"
    if split == "test":
        return single or held_out(request)
    return not held_out(request) and (single or not in_geneval(request))


def _with_unknown(rng: np.random.Generator, include: list[Include], split: str) -> list[Include]:
    """One of the nouns replaced by a word that is unknown, and of which it is the nearest noun, if there is one."""
    index = int(rng.integers(len(include)))
    words = unknown_words(split).get(include[index].name, ())
    if not words:
        return include
    word = words[int(rng.integers(len(words)))]
    return [*include[:index], replace(include[index], unknown=word), *include[index + 1 :]]


def _names(rng: np.random.Generator, vocab: Vocabulary, count: int, colored: bool = False) -> list[str]:
    pool = _colorable(vocab) if colored else vocab.nouns
    if len(pool) < count:
        raise ValueError(f"vocab must have at least {count} classes, it has {len(pool)}")
    return [pool[int(i)] for i in rng.choice(len(pool), count, replace=False)]


@lru_cache(maxsize=64)
def _colorable(vocab: Vocabulary) -> tuple[str, ...]:
    return tuple(name for name in vocab.nouns if takes_color(name))


def _color(rng: np.random.Generator) -> str:
    return COLORS[int(rng.integers(len(COLORS)))]


def _relation(rng: np.random.Generator, relations: Sequence[str] = RELATIONS) -> str:
    return relations[int(rng.integers(len(relations)))]


def _relation_to(
    target: str, name: str, rng: np.random.Generator, relations: Sequence[str], count: int = 1
) -> str | None:
    """A random relation of things to a target; None if it turns out to be one that they cannot stand in."""
    relation = _relation(rng, relations)
    if relation in STACKED and not stacking_sizes(name, target, relation, count):
        return None
    return None if relation == "on" and not can_carry(target) else relation


def _single(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    return [Include(_names(rng, vocab, 1)[0])]


def _two(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    return [Include(name) for name in _names(rng, vocab, 2)]


def _counting(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    return [Include(_names(rng, vocab, 1)[0], int(rng.integers(2, vocab.max_count + 1)))]


def _colors(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    return [Include(_names(rng, vocab, 1, colored=True)[0], color=_color(rng))]


def _position(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    first, second = _names(rng, vocab, 2)
    return [Include(first), Include(second, position=(_relation(rng), 0))]


def _stacking(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    while True:
        first, second = _names(rng, vocab, 2)
        if (relation := _relation_to(first, second, rng, STACKED)) is not None:
            return [Include(first), Include(second, position=(relation, 0))]


def _color_attr(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    first, second = _names(rng, vocab, 2, colored=True)
    color_a, color_b = (COLORS[int(i)] for i in rng.choice(len(COLORS), 2, replace=False))
    return [Include(first, color=color_a), Include(second, color=color_b)]


def _compound(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    """Counts, colors and relations together; never one of the plain forms."""
    form = rng.random()
    if form < 0.15:
        name = _names(rng, vocab, 1, colored=True)[0]
        return [Include(name, int(rng.integers(2, vocab.max_count + 1)), _color(rng))]
    if form < 0.3:
        three = _names(rng, vocab, 3)
        return [Include(name, color=_maybe_color(rng, name, 0.3)) for name in three]
    if vocab.max_kinds > 3 and form < 0.6:
        return _crowd(rng, vocab)
    while True:
        first, second = _names(rng, vocab, 2)
        counts = [int(rng.choice(4, p=[0.5, 0.25, 0.15, 0.1])) + 1 for _ in range(2)]
        position = None
        if form < 0.75:
            relation = _relation_to(first, second, rng, vocab.relations, min(counts[1], 2))
            if relation is None:
                continue
            if relation in STACKED:  # on or behind one thing there is room for two
                counts = [1, min(counts[1], 2)]
            position = (relation, 0)
        include = [
            Include(first, counts[0], _maybe_color(rng, first, 0.5)),
            Include(second, counts[1], _maybe_color(rng, second, 0.5), position),
        ]
        if sum(counts) <= 5 and find_tag(include) == "compound":
            return include


def _crowd(rng: np.random.Generator, vocab: Vocabulary) -> list[Include]:
    """Three or four kinds of things: a pair in a relation and others, two such pairs, or all of them loose."""
    names = _names(rng, vocab, int(rng.integers(3, vocab.max_kinds + 1)))
    include: list[Include] = []
    while names:
        related = len(names) > 1 and rng.random() < 0.5
        for place in range(1 + related):
            name = names.pop()
            relation = _relation_to(include[-1].name, name, rng, vocab.relations) if place else None
            position = (relation, len(include) - 1) if relation is not None else None
            include.append(Include(name, 1, _maybe_color(rng, name, 0.3), position))
    loose = [i for i, entry in enumerate(include) if entry.position is None and not _is_target(include, i)]
    if loose and rng.random() < 0.4:
        index = loose[int(rng.integers(len(loose)))]
        include[index] = replace(include[index], count=int(rng.integers(2, MOST_THINGS - len(include) + 2)))
    return include


def _is_target(include: Sequence[Include], index: int) -> bool:
    return any(entry.position is not None and entry.position[1] == index for entry in include)


def _maybe_color(rng: np.random.Generator, name: str, chance: float) -> str | None:
    return _color(rng) if takes_color(name) and rng.random() < chance else None


_INCLUDES: dict[str, Callable[[np.random.Generator, Vocabulary], list[Include]]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "stacking": _stacking,
    "color_attr": _color_attr,
    "compound": _compound,
}
