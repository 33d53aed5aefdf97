"""From a request to a prompt: GenEval's own phrasing, and paraphrases of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import article, classes, geneval_plural, object_class, synonym_plural
from irg_mini.world.heldout import in_geneval
from irg_mini.world.parsing import parse_prompt, readable_typo
from irg_mini.world.phrasing import (
    BACKGROUND_PHRASES,
    BARE,
    COUNT_PHRASES,
    ENDINGS,
    EXACTLY,
    FILLERS,
    JOINTS,
    NUMBER_WORDS,
    OPENINGS,
    PAIRED,
    PLURAL_OPENINGS,
    QUESTION_OPENINGS,
    RELATION_PHRASES,
    RICH_OPENINGS,
    RICH_RELATION_PHRASES,
    SHADES,
)
from irg_mini.world.request import Include, Request
from irg_mini.world.spelling import SHORTEST_CORRECTED, split_prompt
from irg_mini.world.unknown import unknown_plural

__all__ = ["STYLES", "caption", "parse_prompt", "training_caption"]

STYLES = ("plain", "varied", "rich")
TRAINING_STYLES: dict[str, float] = {"plain": 0.3, "varied": 0.25, "rich": 0.45}


def caption(request: Request, rng: np.random.Generator | None = None, style: str = "plain") -> str:
    """The request as a prompt, a background that it asks for included.

    'plain' is GenEval's wording to the letter; 'varied' paraphrases it by the rng; 'rich' goes further: synonyms, short
    and long forms, typos. `parse_prompt` understands all three.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, not {style!r}")
    if style == "plain":
        return _plain(request)
    if rng is None:
        raise ValueError(f"style {style!r} needs an rng")
    return _varied(request, rng) if style == "varied" else _rich(request, rng)


def training_caption(
    request: Request, rng: np.random.Generator, styles: Mapping[str, float] | None = None
) -> tuple[str, str]:
    """(prompt, style) for training: a random style, and never one of GenEval's prompts word for word."""
    styles = TRAINING_STYLES if styles is None else styles
    known = in_geneval(request) and request.background is None
    chances = np.array(list(styles.values()), float)
    for _ in range(100):
        style = list(styles)[int(rng.choice(len(styles), p=chances / chances.sum()))]
        prompt = caption(request, rng, style)
        if not known or split_prompt(prompt.rstrip(".!?")) != split_prompt(_plain(request)):
            return prompt, style
    raise ValueError(f"styles {', '.join(styles)} have no wording for {request.to_json()} that is not GenEval's own")


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


# ---- plain and varied ------------------------------------------------------------------------------------------------


def _plain(request: Request) -> str:
    body = f"a photo of {_body(request, None)}"
    return body if request.background is None else f"{body} {BACKGROUNDS[request.background].phrase}"


def _varied(request: Request, rng: np.random.Generator) -> str:
    body = _body(request, rng)
    if request.background is not None:
        body = f"{body} {BACKGROUNDS[request.background].phrase}"
    opening = _choose(rng, OPENINGS)
    if opening == "there is" and request.include[request.mentioned()[0]].count > 1:
        opening = "there are"
    ending = "." if rng.random() < 0.15 else ""
    return f"{opening} {body}{ending}".strip()


def _body(request: Request, rng: np.random.Generator | None) -> str:
    def phrase(relation: str) -> str:
        phrases = RELATION_PHRASES[relation]
        return phrases[0] if rng is None else _choose(rng, phrases)

    groups = [_group(request.include[index], rng) for index in request.mentioned()]
    clauses = _clauses(request, groups, [phrase(entry.position[0]) for entry in request.include if entry.position])
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"


def _clauses(request: Request, groups: list[str], relations: list[str]) -> list[str]:
    """The groups in the prompt's order, those that stand in a relation joined."""
    clauses, order, at, used = [], request.mentioned(), 0, 0
    while at < len(order):
        entry = request.include[order[at]]
        if entry.position is None:
            clauses.append(groups[at])
            at += 1
            continue
        if at + 1 == len(order) or order[at + 1] != entry.position[1]:
            raise ValueError("only relations between two groups each can be phrased")
        clauses.append(f"{groups[at]} {relations[used]} {groups[at + 1]}")
        at, used = at + 2, used + 1
    return clauses


def _plain_plural(name: str) -> str:
    """GenEval's mechanical plural where GenEval has the class, else the right one."""
    return geneval_plural(name) if name in classes("geneval") else object_class(name).plural


def _noun(entry: Include) -> str:
    return entry.unknown or entry.name


def _group(entry: Include, rng: np.random.Generator | None) -> str:
    """'a red apple', 'three dogs', '3 dogs', 'a pair of skis'."""
    color = f"{entry.color} " if entry.color else ""
    paired = entry.name in PAIRED and entry.unknown is None
    if entry.count == 1:
        if rng is not None and paired and rng.random() < 0.7:
            return f"a pair of {color}{entry.name}"
        noun = color + _noun(entry)
        if rng is not None and rng.random() < 0.06:
            return f"one {noun}"
        bare = entry.name in BARE and entry.unknown is None
        return noun if bare else f"{article(noun)} {noun}"
    digits = entry.count >= len(NUMBER_WORDS) or (rng is not None and rng.random() < 0.2)
    number = str(entry.count) if digits else NUMBER_WORDS[entry.count]
    if entry.unknown is not None:
        return f"{number} {color}{unknown_plural(entry.unknown)}"
    if rng is None:
        return f"{number} {color}{_plain_plural(entry.name)}"
    if paired:
        return f"{number} pairs of {color}{entry.name}"
    return f"{number} {color}{object_class(entry.name).plural}"


# ---- rich ------------------------------------------------------------------------------------------------------------


def _rich(request: Request, rng: np.random.Generator) -> str:
    terse = rng.random() < 0.12
    groups = [_rich_group(request.include[index], rng, terse) for index in request.mentioned()]
    phrases = [_choose(rng, RICH_RELATION_PHRASES[e.position[0]]) for e in request.include if e.position]
    clauses = _clauses(request, groups, phrases)
    joint = ", " if terse else _choose(rng, JOINTS)
    body = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}{joint}{clauses[-1]}"
    opening = "" if terse else _choose(rng, RICH_OPENINGS)
    if request.include[request.mentioned()[0]].count > 1:
        opening = PLURAL_OPENINGS.get(opening, opening)
    ending = "" if terse else _choose(rng, ENDINGS)
    if opening in QUESTION_OPENINGS:
        ending = "?"
    if request.background is not None:
        where = _choose(rng, (BACKGROUNDS[request.background].phrase, *BACKGROUND_PHRASES[request.background]))
        if rng.random() < 0.2:
            opening = f"{where}, {opening}"
        else:
            body = f"{body} {where}"
    prompt = " ".join(f"{opening} {body}{ending}".split())
    # Only fixed phrases are capitalised: no noun is a second word in the vocabulary.
    return prompt[0].upper() + prompt[1:] if opening and rng.random() < 0.3 else prompt


def _rich_group(entry: Include, rng: np.random.Generator, terse: bool) -> str:
    color = f"{entry.color} " if entry.color else ""
    after = ""
    if color and rng.random() < 0.15:
        color, after = "", f" that {'is' if entry.count == 1 else 'are'} {entry.color}"
    elif color and rng.random() < 0.1:
        color = f"{_choose(rng, SHADES)} {color}" if rng.random() < 0.7 else f"{entry.color} colored "
    singular, plural = _rich_noun(entry, rng)
    filler = f"{_choose(rng, FILLERS)} " if rng.random() < 0.06 else ""
    usual = entry.unknown is None and (singular == entry.name or singular.endswith("s"))
    paired = usual and entry.name in PAIRED
    if entry.count > 1:
        noun = f"{color}{filler}{plural}"
        if paired:
            return f"{_rich_number(entry.count, rng)} pairs of {noun}{after}"
        options = COUNT_PHRASES.get(entry.count, ())
        if options and rng.random() < 0.12:
            return f"{_choose(rng, options)} {noun}{after}"
        exactly = f"{_choose(rng, EXACTLY)} " if rng.random() < 0.08 else ""
        return f"{exactly}{_rich_number(entry.count, rng)} {noun}{after}"
    noun = f"{color}{filler}{singular}"
    if paired and rng.random() < 0.5:
        return f"a pair of {noun}{after}"
    if terse or (usual and entry.name in BARE):
        return f"{noun}{after}"
    if rng.random() < 0.08:
        return f"{_choose(rng, COUNT_PHRASES[1])} {noun}{after}"
    return f"{article(noun)} {noun}{after}"


def _rich_number(count: int, rng: np.random.Generator) -> str:
    return str(count) if rng.random() < 0.35 or count >= len(NUMBER_WORDS) else NUMBER_WORDS[count]


def _rich_noun(entry: Include, rng: np.random.Generator) -> tuple[str, str]:
    """(singular, plural) of a noun: its name, a synonym or GenEval's odd plural, perhaps with a typo in it."""
    if entry.unknown is not None:
        return entry.unknown, unknown_plural(entry.unknown)
    kind = object_class(entry.name)
    singular, plural = kind.name, kind.plural
    if kind.synonyms and rng.random() < 0.35:
        singular = _choose(rng, kind.synonyms)
        plural = synonym_plural(kind, singular)
    elif rng.random() < 0.05:
        plural = _plain_plural(kind.name)
    if rng.random() < 0.06:
        return (singular, _misspelt(plural, rng)) if entry.count > 1 else (_misspelt(singular, rng), plural)
    return singular, plural


def _misspelt(noun: str, rng: np.random.Generator) -> str:
    """The noun with one typo in one of its longer words, if that can still be understood: a letter left out or doubled,
    or two swapped.
    """
    words = noun.split(" ")
    index = int(rng.integers(len(words)))
    word = words[index]
    if len(word) < SHORTEST_CORRECTED or not word.isalpha():
        return noun
    place, how = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
    if how == 0:
        typo = word[:place] + word[place + 1 :]
    elif how == 1:
        typo = word[:place] + word[place] + word[place:]
    else:
        typo = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if typo == word or not readable_typo(typo, word):
        return noun
    return " ".join([*words[:index], typo, *words[index + 1 :]])
