"""Rollouts: several texts for each prompt, written by the engine behind one shared prefix, many prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from irg.engine.engine import Engine
from irg.engine.ops import Fork, Look, Operation, Program, Say, Write, Written
from irg.engine.runner import Runner
from irg.learning.data.samples import ImageContent, TrajectoryEncoder
from irg.learning.rl.prompts import Prompt
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.unified import UnifiedModel
from irg.results.trajectory import Trajectory, Turn
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Part, Text


@dataclass
class Group:
    """The texts of one prompt, and the parts that they continue."""

    prompt: Prompt
    prefix: list[Part]
    texts: list[Written]

    def trajectory(self, text: Written, model: str) -> Trajectory:
        """What a reward looks at: the turn that was given, if any, and the one that was written."""
        turns = [Turn(text.text, None, tokens=len(text.ids))]
        if self.prompt.image is not None:
            image = next(part.content for part in self.prefix if isinstance(part, Latents))
            turns.insert(0, Turn(self.prompt.thinking, Image.fromarray(image.pixels_HW3), given=True))
        return Trajectory(self.prompt.text, "irg" if len(turns) > 1 else "think", 0, model, {}, turns, stopped=True)


def prefix_of(prompt: Prompt, encoder: TrajectoryEncoder) -> list[Part]:
    """What stands before the text: system prompt, prompt and, where a first turn is given, its thinking and its image.

    Raises:
        BadRow: the image cannot be decoded.
    """
    texts = [encoder.fixed["system"], encoder.tokenizer.encode(prompt.text)]
    if prompt.image is None:
        return [Text(ids) for ids in texts if ids]
    image = encoder.image(prompt.image, f"the prompt {prompt.text!r}")
    texts += [encoder.tokenizer.encode(prompt.thinking or "")]
    return [*(Text(ids) for ids in texts if ids), *image.as_context()]


def roll_out(
    model: UnifiedModel,
    autoencoder: Autoencoder,
    encoder: TrajectoryEncoder,
    prompts: Sequence[Prompt],
    write: Write,
    seeds: Sequence[Sequence[int]],
    at_once: int = 0,
) -> list[Group]:
    """Let the model write texts for prompts, ``seeds`` saying how many for each, ``at_once`` prompts together (0: all).

    Raises:
        BadRow: an image cannot be decoded.
    """
    prefixes = [prefix_of(prompt, encoder) for prompt in prompts]
    slots = [slots_of(len(lay_out(prefix, encoder.config.grammar)), write.max_tokens) for prefix in prefixes]
    programs = [
        forked(operations_of(prefix, encoder), [_written(write) for _ in own], own)
        for prefix, own in zip(prefixes, seeds, strict=True)
    ]
    texts = run_together(model, autoencoder, encoder, programs, [len(own) for own in seeds], slots, at_once)
    return [Group(*group) for group in zip(prompts, prefixes, texts, strict=True)]


def run_together(
    model: UnifiedModel,
    autoencoder: Autoencoder,
    encoder: TrajectoryEncoder,
    programs: Sequence[Program],
    rows: Sequence[int],
    slots: Sequence[int],
    at_once: int = 0,
) -> list[Any]:
    """The results of programs, of which ``at_once`` run together (0: all).

    The engine and its cache are new every time: what was done before must not change the rounding. It drafts nothing:
    with so many texts at once, verifying drafts costs more than it saves.

    Args:
        rows, slots: of the cache, that each program will need: sequences beside one another, and their longest.
    """
    size, found = at_once or len(programs) or 1, list[Any]()
    for start in range(0, len(programs), size):
        some = slice(start, start + size)
        runner = Runner(model, autoencoder, sum(rows[some]), max(slots[some]))
        found += Engine(runner, encoder.tokenizer, speculative=False).run([(one, 0) for one in programs[some]])
    return found


def slots_of(prefix: int, max_tokens: int) -> int:
    """Slots of a row of the cache that a prefix of so many tokens and a text fit into."""
    return prefix + max_tokens + 2


def operations_of(prefix: Sequence[Part], encoder: TrajectoryEncoder) -> list[Operation]:
    """What puts the parts of a prefix into a sequence."""
    found: list[Operation] = []
    for part in prefix:
        if isinstance(part, Text):
            found.append(Say(part.ids))
        elif isinstance(part, Latents):
            assert isinstance(part.content, ImageContent)
            found.append(look_at(Image.fromarray(part.content.pixels_HW3), encoder))  # its patches follow
    return found


def look_at(image: Image.Image, encoder: TrajectoryEncoder) -> Look:
    """Show an image as packs do: resized as in training, and read by the posterior's mean."""
    config = encoder.config
    return Look(image, vae_resize=config.vae_resize, vit_resize=config.vit_resize, posterior="mean")


def forked(operations: Sequence[Operation], programs: Sequence[Program], seeds: Sequence[int]) -> Program:
    """A program that does operations, and then goes on in several ways."""
    for operation in operations:
        _: object = yield operation
    return (yield Fork(tuple(programs), tuple(seeds)))


def _written(write: Write) -> Program:
    return (yield write)
