"""Rollouts: several texts for each prompt, written by the engine behind one shared prefix, many prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass

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

    The engine and its cache are new every time: what was done before must not change the rounding. It drafts nothing:
    with so many texts at once, verifying drafts costs more than it saves.

    Raises:
        BadRow: an image cannot be decoded.
    """
    prefixes = [prefix_of(prompt, encoder) for prompt in prompts]
    size = at_once or len(prompts)
    texts: list[list[Written]] = []
    for start in range(0, len(prompts), size):
        some, own = prefixes[start : start + size], seeds[start : start + size]
        longest = [len(lay_out(prefix, encoder.config.grammar)) for prefix in some]
        runner = Runner(model, autoencoder, sum(map(len, own)), slots_of(longest, write.max_tokens))
        programs = [
            (_continued(_operations(prefix, encoder), write, tuple(seeds_)), 0)
            for prefix, seeds_ in zip(some, own, strict=True)
        ]
        texts += Engine(runner, encoder.tokenizer, speculative=False).run(programs)
    return [Group(*group) for group in zip(prompts, prefixes, texts, strict=True)]


def slots_of(prefixes: Sequence[int], max_tokens: int) -> int:
    """Slots of a row of the cache that the longest prefix and text fit into."""
    return max(prefixes) + max_tokens + 2


def _operations(prefix: Sequence[Part], encoder: TrajectoryEncoder) -> list[Operation]:
    """What puts the parts of a prefix into a sequence; an image is read by the posterior's mean, as packs read it."""
    found: list[Operation] = []
    for part in prefix:
        if isinstance(part, Text):
            found.append(Say(part.ids))
        elif isinstance(part, Latents):
            assert isinstance(part.content, ImageContent)
            image, config = Image.fromarray(part.content.pixels_HW3), encoder.config
            found.append(
                Look(image, vae_resize=config.vae_resize, vit_resize=config.vit_resize, posterior="mean")
            )  # both forms of the image: its patches follow
    return found


def _continued(operations: Sequence[Operation], write: Write, seeds: tuple[int, ...]) -> Program:
    for operation in operations:
        _: object = yield operation
    return (yield Fork(tuple(_written(write) for _ in seeds), seeds))


def _written(write: Write) -> Program:
    return (yield write)
