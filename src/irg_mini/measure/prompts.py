"""What is asked for in a benchmark of the mini world: held-out, crowded, or GenEval's own prompts, as requests."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from irg import promptsets
from irg.evaluation.runs import select_prompts
from irg_mini import world
from irg_mini.world.detector import Detector
from irg_mini.world.rules import SCORE_THRESHOLD

TAGS = world.TAGS
RENDERINGS = 6
"""True scenes of a request that a detector has to accept before it may judge images of it."""


def held_out_requests(
    count: int, seed: int, vocab: str | Sequence[str] = "core", tags: Sequence[str] = TAGS
) -> list[world.Request]:
    """Requests of the forms in equal shares, from combinations that training never samples."""
    rng = np.random.default_rng([seed, 2509])
    return [world.sample_request(rng, {tags[i % len(tags)]: 1.0}, vocab, split="test") for i in range(count)]


def crowded_requests(count: int, seed: int, names: Sequence[str]) -> list[world.Request]:
    """Requests of three to six things, and of things on or behind others; for all of them there is room."""
    return list(islice(_crowded(seed, names), count))


def _crowded(seed: int, names: Sequence[str]) -> Iterator[world.Request]:
    vocab = replace(world.find_vocabulary("geneval"), nouns=tuple(names))
    rng = np.random.default_rng([seed, 2510])
    for tag in cycle(("compound", "stacking")):
        yield world.sample_pair(rng, {tag: 1.0}, vocab, split="test")[0]


def verifiable_requests(count: int, seed: int, detector: Detector, sprites: world.Sprites) -> list[world.Request]:
    """Of the crowded requests, in their order, those of which the detector accepts ``RENDERINGS`` true scenes.

    A detector misses things that are half hidden, and then calls right images wrong. Which requests it can judge is
    decided by the world's own renderings, so by no model's images.
    """
    found: list[world.Request] = []
    for index, request in enumerate(_crowded(seed, detector.config.names)):
        if len(found) == count:
            break
        if all(_accepted(request, [seed, 2512, index, k], detector, sprites) for k in range(RENDERINGS)):
            found.append(request)
    return found


def _accepted(request: world.Request, seed: Sequence[int], detector: Detector, sprites: world.Sprites) -> bool:
    scene = world.sample_scene(request, np.random.default_rng(seed))
    pixels = world.render(scene, detector.config.size, sprites)
    (seen,) = detector.detect(pixels[None], threshold=SCORE_THRESHOLD)
    return world.satisfied(request, seen, threshold=SCORE_THRESHOLD)


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
