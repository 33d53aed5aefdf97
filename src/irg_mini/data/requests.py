"""Requests of the mini world and their prompts, for training; and as a source of prompts: kind ``miniworld``."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from irg.curation.content import check_share
from irg.curation.parts import Prompt, Source
from irg.curation.resources import Resources
from irg_mini import world

# A thing in a color not its own is the hardest to draw, so it is drawn most.
TAG_WEIGHTS = {
    "single_object": 1.2,
    "two_object": 0.8,
    "counting": 1.2,
    "colors": 2.5,
    "position": 1.0,
    "color_attr": 2.2,
    "compound": 0.9,
    "stacking": 0.7,
}
UNKNOWN = 0.05
"""Share of requests with a word that the world does not know, where the vocabulary has more than the core's grammar."""


@dataclass(frozen=True)
class MiniSource(Source):
    """Requests of the mini world, without the combinations held out for testing. ``repairs`` of them become two-turn
    rows, the others one-turn rows."""

    kind: Literal["miniworld"]
    rows: int
    repairs: float = 0.5
    weights: dict[str, float] | None = None
    sprites: Literal["fluent", "builtin"] = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"

    def __post_init__(self) -> None:
        check_share("repairs", self.repairs)

    async def prompts(self, seed: int, resources: Resources) -> AsyncIterator[Prompt]:
        vocab = drawable(self.vocab, world.load_sprites(self.sprites))
        rng = np.random.default_rng([seed, 300])
        for _ in range(self.rows):
            request, prompt = random_request(rng, vocab, self.weights)
            turns = 2 if rng.random() < self.repairs else 1
            yield Prompt(prompt, "mini world", "Apache-2.0", json.dumps(request.to_json()), turns)


def drawable(vocab: str, sprites: world.Sprites) -> world.Vocabulary:
    """A vocabulary, as far as there are sprites of its nouns.

    Raises:
        ValueError: there is no vocabulary of that name.
    """
    found = world.find_vocabulary(vocab)
    return replace(found, nouns=tuple(name for name in found.nouns if name in sprites.images))


def check_tags(tags: Sequence[str], vocab: str) -> None:
    """Raises ValueError where a vocabulary has no requests of a form."""
    stacking = "on" in world.find_vocabulary(vocab).relations
    possible = [tag for tag in TAG_WEIGHTS if stacking or tag != "stacking"]
    for tag in tags:
        if tag not in possible:
            raise ValueError(f"tags: {vocab} has no requests of the form {tag!r}; choose from {', '.join(possible)}")


def random_request(
    rng: np.random.Generator, vocab: world.Vocabulary, weights: Mapping[str, float] | None = None
) -> tuple[world.Request, str]:
    """A random request within a vocabulary and its prompt; never a combination held out for tests, nor one of
    GenEval's prompts."""
    stacking = "on" in vocab.relations
    weights = weights or {tag: w for tag, w in TAG_WEIGHTS.items() if stacking or tag != "stacking"}
    unknown = UNKNOWN if stacking else 0.0
    request = world.sample_request(rng, weights=weights, vocab=vocab, split="train", background=0.2, unknown=unknown)
    styles = None if stacking else {"plain": 0.5, "varied": 0.5}
    return request, world.training_caption(request, rng, styles)[0]
