"""What a vocabulary lacks of a prompt: its nouns that the vocabulary does not have or, where the prompt is of none of
the captions' forms, any of its words."""

from __future__ import annotations

from functools import cache

from irg_mini.world import phrasing
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS
from irg_mini.world.parsing import parse_prompt
from irg_mini.world.spelling import correct_typo, spellings, split_prompt
from irg_mini.world.vocabularies import Vocabulary

_LONGEST_NOUN = 3
"""Words."""
_FUNCTION_WORDS = frozenset(
    split_prompt(
        "a an the and or of in on at by with to from for into onto over under near next beside between behind is are "
        "was be it its there that this these those who which his her their some all both each no not as very while"
    )
)


def unknown_in(prompt: str, vocab: Vocabulary) -> dict[str, str | None]:
    """The words of a prompt that a vocabulary lacks, in order -> the nearest noun that it has, if one is known."""
    known = frozenset(vocab.nouns)
    request = parse_prompt(prompt) or parse_prompt(prompt, guess=True)
    if request is None:
        return dict.fromkeys(_unknown_words(prompt, known))
    found: dict[str, str | None] = {}
    for index in request.mentioned():
        entry = request.include[index]
        nearest = entry.name if entry.name in known else None
        if entry.unknown is None:
            found |= {} if nearest else {entry.name: None}
        elif (words := _unknown_words(entry.unknown, known)) == entry.unknown.split() and len(words) <= _LONGEST_NOUN:
            found[entry.unknown] = nearest
        else:  # more than a noun
            found |= dict.fromkeys(words)
    return found


def _unknown_words(text: str, known: frozenset[str]) -> list[str]:
    words, said = _known_words(known), [word for word in split_prompt(text) if word.isalpha()]
    return [word for word in said if word not in words and correct_typo(word) not in words]


@cache
def _known_words(known: frozenset[str]) -> frozenset[str]:
    """Every word that means something in prompts about these nouns."""
    phrases = [*phrasing.RICH_OPENINGS, *phrasing.PLURAL_OPENINGS.values(), *phrasing.ENDINGS, *phrasing.JOINTS]
    phrases += [text for texts in phrasing.RICH_RELATION_PHRASES.values() for text in texts]
    phrases += [text for texts in phrasing.BACKGROUND_PHRASES.values() for text in texts]
    phrases += [text for texts in phrasing.COUNT_PHRASES.values() for text in texts]
    phrases += [background.phrase for background in BACKGROUNDS.values()] + list(BACKGROUNDS)
    phrases += [*phrasing.NUMBER_WORDS, *phrasing.EXACTLY, *phrasing.SHADES, *phrasing.FILLERS, *COLORS, "colored"]
    nouns = {word for words, name in spellings().items() if name in known for word in words}
    return _FUNCTION_WORDS | nouns | {word for phrase in phrases for word in split_prompt(phrase)}
