"""How well a model understands images of the mini world, and through which encoder.

``python -m irg_mini.measure.understanding --model DIR``: true texts about rendered images are scored token by token.
*Plan*: the layout of a right image. *Seen*: what a reflection says is in an image, which may be flawed, with and
without the plan in its context. A text that is no likelier with an image than without means that this encoder is not
used.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import tensor

from irg.engine.ops import Look, Say
from irg.reasoning.pipeline import IRGPipeline
from irg_mini import world

ENCODERS = {"both": (True, True), "vit": (False, True), "vae": (True, False), "none": (False, False)}  # vae, vit
KINDS = ("background", "size", "place", "other words")
_PLACE = re.compile(r"\(\d+,\d+\)")


@dataclass(frozen=True)
class Understanding:
    """What is measured."""

    model: str = "mini"
    images: int = 100
    """Of each kind: right ones, and ones that may be flawed."""
    vocab: Literal["core", "geneval", "full"] = "geneval"
    sprites: Literal["fluent", "builtin"] = "fluent"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")


@dataclass(frozen=True)
class _Case:
    """A text to be scored: its first ``counted`` characters count. ``row`` names the line of the table."""

    row: str
    ops: tuple[Say | Look, ...]
    text: str
    counted: int


def cases(options: Understanding, pipe: IRGPipeline) -> Iterator[_Case]:
    """All texts, with what comes before them."""
    rng, size = np.random.default_rng([options.seed, 47]), pipe.defaults.height or 128
    sprites = world.load_sprites(options.sprites)
    nouns = [name for name in world.classes(options.vocab) if name in sprites.images]
    system, how = Say(pipe.profile.system_prompt), Say(pipe.profile.how_to_think)
    for _ in range(options.images):
        request, scene = world.sample_pair(rng, vocab=nouns, background=0.3)
        prompt, plan = Say(world.caption(request)), world.think(request, scene)
        image = Image.fromarray(world.render(scene, size, sprites, rng))
        for name, (vae, vit) in ENCODERS.items():
            look = (Look(image, vae, vit),) if vae or vit else ()
            yield _Case(f"plan, encoders: {name}", (system, prompt, *look, how), plan, len(plan))
        shown, flaws = world.corrupt(request, scene, rng, vocab=nouns)
        seen = world.see(shown, size)
        text = world.reflect(request, flaws, world.correct(request, seen, scene, rng, size=size), seen, size)
        image = Image.fromarray(world.render(shown, size, sprites, rng))
        counted = text.index(". ", text.index("in the picture: "))
        for name in ("both", "vit", "vae"):
            yield _Case(f"seen, encoders: {name}", (system, prompt, Look(image, *ENCODERS[name])), text, counted)
        yield _Case("seen, encoders: both, and the plan", (system, prompt, Say(plan), Look(image)), text, counted)


def kinds_of(words: Sequence[str]) -> list[str]:
    """The kind of every word of a ground-truth text."""
    found = []
    for i, word in enumerate(words):
        if _PLACE.fullmatch(word):
            found.append("place")
        elif word in world.SIZES:
            found.append("size")
        else:
            found.append("background" if i >= 2 and words[i - 2] == "Scene" else "other words")
    return found


def measure(options: Understanding) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Row -> kind of word -> (cross-entropy in nats, share of words that are the likeliest, number of words).

    Raises:
        ValueError: there is no such model, or the sprites are missing.
    """
    pipe = IRGPipeline.from_pretrained(options.model)
    engine, tokenizer = pipe.engine, pipe.engine.tokenizer
    assert tokenizer is not None
    scores: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for case in cases(options, pipe):
        ids = tokenizer.encode(case.text)
        logits_NV = engine.score(case.ops, ids)[: len(ids)].cpu()
        loss_N = F.cross_entropy(logits_NV, tensor(ids), reduction="none").tolist()
        right_N = (logits_NV.argmax(dim=-1) == tensor(ids)).tolist()
        tokens = len(tokenizer.encode(case.text[: case.counted]))
        kinds = kinds_of([tokenizer.decode([token]).strip() for token in ids])
        for kind, *pair in list(zip(kinds, loss_N, right_N, strict=True))[:tokens]:
            scores[case.row][kind].append(pair)
    return {
        row: {kind: (*map(float, np.mean(pairs, axis=0)), len(pairs)) for kind, pairs in of.items()}  # type: ignore[misc]
        for row, of in scores.items()
    }


def table(results: dict[str, dict[str, tuple[float, float, int]]]) -> str:
    """Markdown: cross-entropy and share of words right, per kind of word."""
    lines = ["| | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for row, of in results.items():
        cells = [f"{of[k][0]:.2f} ({100 * of[k][1]:.0f} %)" if k in of else "–" for k in KINDS]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    import tyro

    print(table(measure(tyro.cli(Understanding))))
