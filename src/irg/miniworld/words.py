"""Every word of the mini world, and samples of its texts (for training a tokenizer)."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from irg.miniworld.backgrounds import BACKGROUNDS
from irg.miniworld.captions import NUMBER_WORDS, OPENINGS, RELATION_PHRASES, caption
from irg.miniworld.classes import COLORS, GRID, SIZES, classes, geneval_plural
from irg.miniworld.corrupt import corrupt
from irg.miniworld.layout import sample_scene
from irg.miniworld.oracle import FIXED_PHRASES, reflect, think
from irg.miniworld.repair import correct
from irg.miniworld.request import sample_request
from irg.miniworld.rules import see

_WORD = re.compile(r"</?think>|[A-Za-z]+|\d+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words, whole numbers and single punctuation marks; `<think>` and `</think>` are one word each."""
    return _WORD.findall(text)


@cache
def _vocabulary() -> tuple[str, ...]:
    texts = [*FIXED_PHRASES, *OPENINGS, "there are", *NUMBER_WORDS, *COLORS, *SIZES, *RELATION_PHRASES]
    texts += [phrase for phrases in RELATION_PHRASES.values() for phrase in phrases]
    texts += ["a an one and , . pair pairs of"]
    texts += [text for b in BACKGROUNDS.values() for text in (b.name, b.phrase)]
    texts += [text for c in classes().values() for text in (c.name, c.plural, geneval_plural(c.name))]
    texts += [str(number) for number in range(GRID)]
    return tuple(sorted({word for text in texts for word in split_words(text)}))


def vocabulary() -> list[str]:
    """Every word (as `split_words` splits) that captions, thoughts and reflections can contain, sorted."""
    return list(_vocabulary())


def sample_texts(rng: np.random.Generator, n: int) -> list[str]:
    """n random texts: captions of both styles, thoughts, reflections in turn."""
    texts: list[str] = []
    while len(texts) < n:
        request = sample_request(rng, background=0.3)
        scene = sample_scene(request, rng)
        flawed, flaws = corrupt(request, scene, rng)
        seen = see(flawed)
        texts += [
            caption(request),
            caption(request, rng, "varied"),
            think(request, scene, rng),
            reflect(request, flaws, correct(request, seen, scene, rng), seen),
        ]
    return texts[:n]
