"""What training must never see: a fixed tenth of all combinations, and the prompts of GenEval.

GenEval's prompts are not in this package: `nouns/geneval_digests.txt` holds a digest of each one's meaning, which is
enough to know them again in any wording. `write_digests` wrote it from the benchmark's own file.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from irg_mini.world.request import Request

HELD_OUT_SHARE = 0.1
_DIGEST_BYTES = 5
_CONVERSE = {"right of": "left of", "below": "above"}


def held_out(request: Request) -> bool:
    """Whether it has a combination that training never sees: a fixed tenth of all object pairs, colored and counted
    objects, and unknown words.
    """
    combinations = []
    for index, entry in enumerate(request.include):
        if entry.color is not None:
            combinations.append(f"{entry.color} {entry.name}")
        if entry.count > 1:
            combinations.append(f"{entry.count} {entry.name}")
        if entry.unknown is not None:
            combinations.append(f"unknown {entry.unknown}")
        for other in request.include[:index]:
            combinations.append(" and ".join(sorted((entry.name, other.name))))
    return any(is_held_out(combination) for combination in combinations)


@lru_cache(maxsize=262_144)
def is_held_out(combination: str) -> bool:
    """Whether this combination, as `held_out` writes it, is among the tenth."""
    digest = hashlib.blake2b(combination.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def meaning_key(request: Request) -> str:
    """The same text for all requests of the same meaning ('a dog right of a tie' is 'a tie left of a dog').

    The background does not count: a GenEval prompt with one added is still that prompt.
    """
    things, relations = [], []
    for entry in request.include:
        color = f"{entry.color} " if entry.color is not None else ""
        things.append(f"{entry.count} {color}{entry.unknown or entry.name}")
        if entry.position is not None:
            relation, other = entry.position[0], request.include[entry.position[1]].name
            names = (entry.name, other) if relation not in _CONVERSE else (other, entry.name)
            relations.append(f"{names[0]} {_CONVERSE.get(relation, relation)} {names[1]}")
    return "; ".join([*sorted(things), *sorted(relations)])


def in_geneval(request: Request) -> bool:
    """Whether one of GenEval's 553 prompts asks for the same (perhaps in other words)."""
    return _digest(request) in _geneval_digests()


def _digest(request: Request) -> str:
    return hashlib.blake2b(meaning_key(request).encode(), digest_size=_DIGEST_BYTES).hexdigest()


@cache
def _geneval_digests() -> frozenset[str]:
    text = files("irg_mini.world").joinpath("nouns", "geneval_digests.txt").read_text(encoding="ascii")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def write_digests(metadata: Path, target: Path) -> int:
    """Write the digests of a GenEval metadata file (one JSON object a line); returns how many meanings there are."""
    lines = metadata.read_text(encoding="utf-8").splitlines()
    digests = sorted({_digest(Request.from_json(json.loads(line))) for line in lines if line.strip()})
    head = "# Digests of what GenEval's prompts ask for (heldout.py): training never samples these."
    target.write_text("\n".join([head, *digests]) + "\n", encoding="ascii")
    return len(digests)
