"""The mini world's requests as prompts of a run by reward: kind ``miniworld``."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from irg.learning.rl.prompts import Prompt, PromptSource
from irg_mini import world
from irg_mini.data.requests import check_tags, drawable, random_request
from irg_mini.data.stages import Sprites


@dataclass(frozen=True)
class MiniPrompts(PromptSource):
    """Random requests in random words; their truth is what they ask for. ``weights``: of the forms (``stacking``,
    ``compound``, ...); default: those of training rows. ``split`` test: combinations that are never trained on, for all
    of which there is room, in plain words, the forms in turn."""

    kind: Literal["miniworld"]
    weights: dict[str, float] = field(default_factory=dict)
    split: Literal["train", "test"] = "train"
    sprites: Sprites = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"

    def __post_init__(self) -> None:
        check_tags(tuple(self.weights), self.vocab)

    def draw(self, seed: int, step: int, count: int) -> list[Prompt]:
        vocab = drawable(self.vocab, world.load_sprites(self.sprites))
        rng = np.random.default_rng([seed, step, 2511])
        return [self._prompt(rng, vocab, index) for index in range(count)]

    def _prompt(self, rng: np.random.Generator, vocab: world.Vocabulary, index: int) -> Prompt:
        if self.split == "train":
            request, text = random_request(rng, vocab, self.weights or None)
            return Prompt(text, request.to_json())
        tags = list(self.weights or world.FULL_TAGS)
        request, _ = world.sample_pair(rng, {tags[index % len(tags)]: 1.0}, vocab, split="test")
        return Prompt(world.caption(request), request.to_json())
