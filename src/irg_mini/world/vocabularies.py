"""What prompts may speak of: nouns, relations, how many things of how many kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from irg_mini.world.classes import classes
from irg_mini.world.geometry import STACKED

RELATIONS = ("left of", "right of", "above", "below")
"""GenEval's four."""
ALL_RELATIONS = (*RELATIONS, *STACKED)


@dataclass(frozen=True)
class Vocabulary:
    """A part of the world: its nouns by name, its relations, the largest count of one kind, the most kinds together."""

    name: str
    nouns: tuple[str, ...]
    relations: tuple[str, ...] = RELATIONS
    max_count: int = 4
    max_kinds: int = 3


VOCABULARIES: dict[str, Vocabulary] = {
    "core": Vocabulary("core", tuple(classes("core"))),
    "geneval": Vocabulary("geneval", tuple(classes("geneval")), ALL_RELATIONS, max_count=5, max_kinds=4),
    "full": Vocabulary("full", tuple(classes("full")), ALL_RELATIONS, max_count=5, max_kinds=4),
}
"""'core': what irg-mini v1 knows. 'geneval': GenEval's 80 classes. 'full': everything there is."""


def find_vocabulary(vocab: str | Vocabulary | Sequence[str] | None) -> Vocabulary:
    """The vocabulary of that name (None: core); a list of nouns is core's way of speaking about just these.

    ValueError if there is none of that name.
    """
    if isinstance(vocab, Vocabulary):
        return vocab
    if vocab is None or isinstance(vocab, str):
        try:
            return VOCABULARIES[vocab or "core"]
        except KeyError:
            raise ValueError(f"unknown vocabulary {vocab!r}; choose from {', '.join(VOCABULARIES)}") from None
    return replace(VOCABULARIES["core"], name="custom", nouns=tuple(vocab))
