"""Every word of the mini world, and samples of its texts (for training a tokenizer)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from irg_mini.world import phrasing
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.captions import caption
from irg_mini.world.classes import COLORS, GRID, SIZES, geneval_plural, object_class, synonym_plural
from irg_mini.world.corrupt import corrupt
from irg_mini.world.placement import sample_pair
from irg_mini.world.questions import QUESTION_PHRASES, ask
from irg_mini.world.reflections import REFLECTION_PHRASES, reflect
from irg_mini.world.repair import correct
from irg_mini.world.rules import see
from irg_mini.world.thinking import THINKING_PHRASES, UNKNOWN_PHRASES, think
from irg_mini.world.unknown import listed_words
from irg_mini.world.vocabularies import Vocabulary, find_vocabulary

_WORD = re.compile(r"</?think>|[A-Za-z]+|\d+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words, whole numbers and single punctuation marks; `<think>` and `</think>` are one word each."""
    return _WORD.findall(text)


@cache
def _words(vocab: Vocabulary) -> tuple[str, ...]:
    rich = vocab.name != "core"
    texts = [
        THINKING_PHRASES,
        *REFLECTION_PHRASES,
        *phrasing.OPENINGS,
        "there are",
        *phrasing.NUMBER_WORDS,
        *COLORS,
        *SIZES,
        *vocab.relations,
    ]
    texts += [phrase for relation in vocab.relations for phrase in phrasing.RELATION_PHRASES[relation]]
    texts += ["a an one and , . pair pairs of"]
    texts += [text for b in BACKGROUNDS.values() for text in (b.name, b.phrase)]
    kinds = [object_class(name) for name in vocab.nouns]
    texts += [text for c in kinds for text in (c.name, c.plural, geneval_plural(c.name))]
    texts += [str(number) for number in range(GRID)]
    if rich:
        texts += [UNKNOWN_PHRASES, *QUESTION_PHRASES, *phrasing.RICH_OPENINGS, *phrasing.PLURAL_OPENINGS.values()]
        tables = (phrasing.RICH_RELATION_PHRASES, phrasing.BACKGROUND_PHRASES, phrasing.COUNT_PHRASES)
        texts += [phrase for table in tables for phrases in table.values() for phrase in phrases]
        texts += [
            *phrasing.ENDINGS,
            *phrasing.EXACTLY,
            *phrasing.SHADES,
            *phrasing.FILLERS,
            *phrasing.JOINTS,
            "colored that is are ? ! :",
        ]
        texts += [form for c in kinds for word in c.synonyms for form in (word, synonym_plural(c, word))]
        texts += listed_words()
        starts = [*phrasing.RICH_OPENINGS, *phrasing.PLURAL_OPENINGS.values()]
        starts += [phrase for phrases in phrasing.BACKGROUND_PHRASES.values() for phrase in phrases]
        starts += [b.phrase for b in BACKGROUNDS.values()]
        texts += [text.split()[0].capitalize() for text in starts if text]
    return tuple(sorted({word for text in texts for word in split_words(text)}))


def vocabulary(vocab: str | Vocabulary | Sequence[str] | None = None) -> list[str]:
    """Every word (as `split_words` splits) that captions, thoughts and reflections of a vocabulary can contain, sorted.

    For all but 'core' those of rich captions, questions and answers as well; misspelt words are not among them.
    """
    return list(_words(find_vocabulary(vocab)))


def sample_texts(rng: np.random.Generator, n: int, vocab: str | Vocabulary | Sequence[str] | None = None) -> list[str]:
    """n random texts: captions, thoughts, reflections in turn; for all but 'core' rich captions, questions too."""
    vocabulary = find_vocabulary(vocab)
    rich = vocabulary.name != "core"
    texts: list[str] = []
    while len(texts) < n:
        request, scene = sample_pair(rng, vocab=vocabulary, background=0.3, unknown=0.05 if rich else 0.0)
        flawed, flaws = corrupt(request, scene, rng, vocab=vocabulary)
        seen = see(flawed)
        texts += [
            caption(request),
            caption(request, rng, "rich" if rich else "varied"),
            think(request, scene),
            reflect(request, flaws, correct(request, seen, scene, rng), seen),
        ]
        if rich:
            texts += [text for question in ask(flawed, rng, 2, vocabulary) for text in (question.text, question.answer)]
    return texts[:n]
