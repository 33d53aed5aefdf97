"""What is asked for in a benchmark of the mini world: held-out, crowded, or GenEval's own prompts, as requests."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from irg import promptsets
from irg.evaluation.runs import select_prompts
from irg_mini import world

TAGS = world.TAGS


def held_out_requests(
    count: int, seed: int, vocab: str | Sequence[str] = "core", tags: Sequence[str] = TAGS
) -> list[world.Request]:
    """Requests of the forms in equal shares, from combinations that training never samples."""
    rng = np.random.default_rng([seed, 2509])
    return [world.sample_request(rng, {tags[i % len(tags)]: 1.0}, vocab, split="test") for i in range(count)]


def crowded_requests(count: int, seed: int, names: Sequence[str]) -> list[world.Request]:
    """Requests of three to six things, and of things on or behind others; for all of them there is room."""
    vocab = replace(world.find_vocabulary("geneval"), nouns=tuple(names))
    rng, tags = np.random.default_rng([seed, 2510]), ("compound", "stacking")
    return [world.sample_pair(rng, {tags[i % 2]: 1.0}, vocab, split="test")[0] for i in range(count)]


def geneval_requests(count: int, path: str | None, names: Sequence[str]) -> list[world.Request]:
    """GenEval's prompts as requests, as far as the nouns are known; ``count`` of them (0: all), evenly from the six
    forms.

    Raises:
        ValueError: the prompts are not there, or none is understood.
    """
    known = {}
    for prompt in promptsets.load("geneval", path).prompts:
        request = world.parse_prompt(prompt.text)
        if request is not None and all(entry.name in names for entry in request.include):
            known[prompt.id] = (prompt, request)
    if not known:
        raise ValueError("none of GenEval's prompts is about things that this detector knows")
    chosen = select_prompts([prompt for prompt, _ in known.values()], count or None)
    return [known[prompt.id][1] for prompt in chosen]
