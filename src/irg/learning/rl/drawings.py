"""Rollouts of images: several for each prompt, drawn behind one shared prefix; and the packs that are learned of them.

Legend: G latent tokens of a pack, M those of targets; D values per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irg.engine import ops
from irg.engine.settings import DrawSettings
from irg.learning.data.packing import Attention, Pack, pack_of
from irg.learning.data.samples import ImageContent, TrajectoryEncoder
from irg.learning.rl.nft import optimality
from irg.learning.rl.packs import filled
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import Drawing, RLRecipe
from irg.learning.rl.rollouts import forked, operations_of, run_together
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.config import ModelConfig
from irg.model.network.unified import UnifiedModel
from irg.results.trajectory import Trajectory, Turn
from irg.sequence.layout import lay_out
from irg.sequence.parts import Part, Target, Text


@dataclass
class DrawnGroup:
    """The images of one prompt, and the texts that they were drawn behind."""

    prompt: Prompt
    prefix: list[Part]
    drawings: list[ops.Drawn]

    def trajectories(self, model: str) -> list[Trajectory]:
        """What rewards look at: one turn each."""
        mode = "direct" if self.prompt.thinking is None else "think"
        turns = [Turn(self.prompt.thinking, drawn.image) for drawn in self.drawings]
        return [Trajectory(self.prompt.text, mode, 0, model, {}, [turn], stopped=True) for turn in turns]


def drawing_prefix(prompt: Prompt, encoder: TrajectoryEncoder) -> list[Part]:
    """What an image is drawn behind: the prompt alone, as mode ``direct`` has it; or, where its source gives a
    thinking, system prompt, prompt and thinking."""
    texts = [encoder.tokenizer.encode(prompt.text)]
    if prompt.thinking is not None:
        texts = [encoder.fixed["system"], *texts, encoder.tokenizer.encode(prompt.thinking)]
    return [Text(ids) for ids in texts if ids]


def settings_of(how: Drawing) -> DrawSettings:
    """The sampler's settings: without guidance, as the implicit policies are."""
    return DrawSettings(how.num_timesteps, how.timestep_shift, cfg_text_scale=1.0, solver=how.solver)


def draw_groups(
    model: UnifiedModel,
    autoencoder: Autoencoder,
    encoder: TrajectoryEncoder,
    prompts: Sequence[Prompt],
    how: Drawing,
    seeds: Sequence[Sequence[int]],
    at_once: int = 0,
) -> list[DrawnGroup]:
    """Let the model draw for prompts, ``seeds`` saying how many for each, ``at_once`` prompts together (0: all)."""
    prefixes = [drawing_prefix(prompt, encoder) for prompt in prompts]
    slots = [len(lay_out(prefix, encoder.config.grammar)) for prefix in prefixes]
    draw = ops.Draw(how.height, how.width, settings_of(how))
    programs = [
        forked(operations_of(prefix, encoder), [_drawn(draw) for _ in own], own)
        for prefix, own in zip(prefixes, seeds, strict=True)
    ]
    drawings = run_together(model, autoencoder, encoder, programs, [len(own) for own in seeds], slots, at_once)
    return [DrawnGroup(*group) for group in zip(prompts, prefixes, drawings, strict=True)]


def _drawn(draw: ops.Draw) -> ops.Program:
    return (yield draw)


@dataclass
class LearnedDrawings:
    """The images of a group that are learned from, and their advantages."""

    group: DrawnGroup
    drawings: list[ops.Drawn]
    advantages: list[float]

    def parts(self, config: ModelConfig, copies: int) -> list[Part]:
        """The sample: the prefix once, and behind it every image at ``copies`` noise levels, unseen by the others."""
        targets: list[Part] = []
        for drawn in self.drawings:
            targets += targets_of(drawn, config, copies, len(targets))
        return [*self.group.prefix, *targets]


def targets_of(drawn: ops.Drawn, config: ModelConfig, copies: int, first: int = 0) -> list[Part]:
    """An image that was drawn as something to learn, at ``copies`` noise levels, which are numbered from ``first``. Its
    latents are those that were drawn, before the autoencoder."""
    rows, columns = (side // config.latent_patch_size for side in drawn.latents.shape[-2:])
    content = ImageContent(np.asarray(drawn.image), drawn.latents.detach().to("cpu", torch.float32))
    return [Target((rows, columns), content, noise=first + i) for i in range(copies)]


@dataclass
class DrawingPack:
    """A pack of samples, and what the loss needs for each token of a target.

    Attributes:
        optimality_M: r of its image.
        velocity_GD: noise - image, once the pack is noised.
        old_MD: the old policy's velocities, once they are known.
    """

    pack: Pack
    optimality_M: Tensor
    velocity_GD: Tensor | None = None
    old_MD: Tensor | None = None

    def counts(self, average: str) -> tuple[int, int]:
        """What the sums over tokens of texts and of targets are divided by for a mean."""
        return 0, len(self.optimality_M)


def learned_drawings(
    groups: Sequence[DrawnGroup], advantages: Sequence[Sequence[float | None]], skip_equal: bool = True
) -> list[LearnedDrawings]:
    """What is learned from: images with an advantage; without groups whose advantages are all 0 if these are to be
    skipped."""
    found = []
    for group, values in zip(groups, advantages, strict=True):
        kept = [(drawn, value) for drawn, value in zip(group.drawings, values, strict=True) if value is not None]
        if kept and not (skip_equal and all(value == 0 for _, value in kept)):
            found.append(LearnedDrawings(group, [drawn for drawn, _ in kept], [value for _, value in kept]))
    return found


def drawing_packs(
    samples: Sequence[LearnedDrawings],
    recipe: RLRecipe,
    config: ModelConfig,
    normal: Callable[[], float],
    attention: Attention,
) -> list[DrawingPack]:
    """Pack samples in order, as many in one pack as ``tokens_per_pack`` allows (at least one)."""
    copies = recipe.noise_copies
    parts = [sample.parts(config, copies) for sample in samples]
    layouts = [lay_out(some, config.grammar) for some in parts]
    found = []
    for members in filled([len(layout) for layout in layouts], recipe.tokens_per_pack):
        pack = pack_of([parts[i] for i in members], [layouts[i] for i in members], config, normal, (), attention)
        found.append(drawing_pack_of(pack, [a for i in members for a in samples[i].advantages], copies))
    return found


def drawing_pack_of(pack: Pack, advantages: Sequence[float], copies: int) -> DrawingPack:
    """A pack whose images have these advantages, in order, each at ``copies`` noise levels."""
    assert pack.image_of_target_M is not None
    levels = torch.tensor([optimality(a) for a in advantages for _ in range(copies)], dtype=torch.float32)
    _, image_M = pack.image_of_target_M.unique(return_inverse=True)
    return DrawingPack(pack, levels[image_M])
