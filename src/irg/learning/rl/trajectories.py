"""Rollouts of whole trajectories: siblings that share a first image, each of which writes, draws and looks again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from irg.engine.ops import Draw, Drawn, Program, Write, Written
from irg.learning.data.samples import TrajectoryEncoder, grids_of
from irg.learning.modes import EncodedImage
from irg.learning.rl.drawings import on_cpu, settings_of
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import Drawing
from irg.learning.rl.rollouts import forked, look_at, operations_of, prefix_of, run_together, slots_of
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.unified import UnifiedModel
from irg.results.folder import encode_png
from irg.results.reflection import is_done
from irg.results.trajectory import Trajectory, Turn
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Part


@dataclass
class Round:
    """A text on the image before it, and the next image; None where the text said that nothing was left to improve. (A
    text that was cut off is drawn after, as in a request.)"""

    text: Written
    drawn: Drawn | None

    @property
    def done(self) -> bool:
        """The model said that nothing was left to improve."""
        return self.drawn is None


@dataclass
class TrajectoryGroup:
    """The siblings of one prompt, and the parts that they continue. ``prompt`` has the first turn."""

    prompt: Prompt
    prefix: list[Part]
    siblings: list[list[Round]]

    def trajectories(self, rounds: Sequence[Round], model: str) -> list[Trajectory]:
        """For every image of a sibling, what rewards look at: the trajectory that ends with it."""
        root = _root(self.prompt, self.prefix, model)
        turns = [Turn(r.text.text, r.drawn.image, tokens=len(r.text.ids)) for r in rounds if r.drawn is not None]
        return [replace(root, turns=[*root.turns, *turns[:count]]) for count in range(1, len(turns) + 1)]


def root_of(prompt: Prompt, encoder: TrajectoryEncoder, model: str) -> Trajectory:
    """The first turn of a prompt, as rewards look at it.

    Raises:
        BadRow: its image cannot be decoded.
    """
    return _root(prompt, prefix_of(prompt, encoder), model)


def _root(prompt: Prompt, prefix: Sequence[Part], model: str) -> Trajectory:
    shown = next(part.content for part in prefix if isinstance(part, Latents))
    turn = Turn(prompt.thinking, Image.fromarray(shown.pixels_HW3), given=True)
    return Trajectory(prompt.text, "irg", 0, model, {}, [turn])


def first_turns(
    model: UnifiedModel,
    autoencoder: Autoencoder,
    encoder: TrajectoryEncoder,
    prompts: Sequence[Prompt],
    write: Write,
    drawing: Drawing,
    seeds: Sequence[int],
    at_once: int = 0,
) -> list[Prompt]:
    """Prompts with a first turn: that which is given, or what the model thinks and draws."""
    draw = Draw(drawing.height, drawing.width, settings_of(drawing))
    missing = [number for number, prompt in enumerate(prompts) if prompt.image is None]
    prefixes = [prefix_of(prompts[number], encoder) for number in missing]
    programs = [
        forked(operations_of(prefix, encoder), [_thought_and_drawn(write, draw)], [seeds[number]])
        for prefix, number in zip(prefixes, missing, strict=True)
    ]
    slots = [slots_of(len(lay_out(prefix, encoder.config.grammar)), write.max_tokens) for prefix in prefixes]
    found = list(prompts)
    made = run_together(model, autoencoder, encoder, programs, [1] * len(programs), slots, at_once)
    for number, [(written, drawn)] in zip(missing, made, strict=True):
        found[number] = replace(prompts[number], thinking=written.text, image=encode_png(drawn.image, {}))
    return found


def roll_out_rounds(
    model: UnifiedModel,
    autoencoder: Autoencoder,
    encoder: TrajectoryEncoder,
    prompts: Sequence[Prompt],
    write: Write,
    drawing: Drawing,
    rounds: int,
    seeds: Sequence[Sequence[int]],
    at_once: int = 0,
    window: int | None = None,
) -> list[TrajectoryGroup]:
    """Let the model go on from first turns in at most ``rounds`` rounds, ``seeds`` saying in how many ways from each.
    ``window``: the first stochastic step of each image.

    Raises:
        BadRow: an image cannot be decoded.
    """
    draw = Draw(drawing.height, drawing.width, settings_of(drawing, window))
    prefixes = [prefix_of(prompt, encoder) for prompt in prompts]
    programs = [
        forked(operations_of(prefix, encoder), [_rounds(write, draw, encoder, rounds) for _ in own], own)
        for prefix, own in zip(prefixes, seeds, strict=True)
    ]
    lengths = [len(lay_out(prefix, encoder.config.grammar)) for prefix in prefixes]
    later = (rounds - 1) * (write.max_tokens + 2 + image_tokens(encoder, drawing))
    slots = [slots_of(length, write.max_tokens) + later for length in lengths]
    siblings = run_together(model, autoencoder, encoder, programs, [len(own) for own in seeds], slots, at_once)
    return [TrajectoryGroup(*group) for group in zip(prompts, prefixes, siblings, strict=True)]


def seen(encoder: TrajectoryEncoder, drawing: Drawing) -> EncodedImage:
    """The grids of a drawn image that is looked at; it has no content."""
    width, height = encoder.config.vae_resize.size(drawing.width, drawing.height)
    return EncodedImage(None, *grids_of(height, width, encoder.config))


def image_tokens(encoder: TrajectoryEncoder, drawing: Drawing) -> int:
    """Tokens of a drawn image that is looked at."""
    return len(lay_out(seen(encoder, drawing).as_context(), encoder.config.grammar))


def _thought_and_drawn(write: Write, draw: Draw) -> Program:
    written: Written = yield write
    return written, (yield draw)


def _rounds(write: Write, draw: Draw, encoder: TrajectoryEncoder, rounds: int) -> Program:
    found: list[Round] = []
    while True:
        written: Written = yield write
        if is_done(written.text):
            return [*found, Round(written, None)]
        drawn: Drawn = on_cpu((yield draw))
        found.append(Round(written, drawn))
        if len(found) == rounds:
            return found
        _: object = yield look_at(encoder.config.vae_resize.resized(drawn.image), encoder)
