"""Rollouts of images: several for each prompt, drawn behind one shared prefix; and the packs that are learned of them.

Legend: G latent tokens of a pack, M those of targets; D values per token; I targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from irg.engine import ops
from irg.engine.settings import DrawSettings
from irg.learning.data.packing import Attention, Pack, pack_of
from irg.learning.data.samples import ImageContent, TrajectoryEncoder
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


def settings_of(how: Drawing, window: int | None = None) -> DrawSettings:
    """The sampler's settings: without guidance, as the policy is learned. ``window``: the first stochastic step."""
    plain = DrawSettings(how.num_timesteps, how.timestep_shift, cfg_text_scale=1.0, solver=how.solver)
    if window is None:
        return plain
    return replace(
        plain,
        sde_type=how.stochastic,
        sde_noise_level=how.noise_level,
        sde_window_start=window,
        sde_window_size=how.window,
    )


def draw_groups(
    model: UnifiedModel,
    autoencoder: Autoencoder,
    encoder: TrajectoryEncoder,
    prompts: Sequence[Prompt],
    how: Drawing,
    seeds: Sequence[Sequence[int]],
    at_once: int = 0,
    window: int | None = None,
) -> list[DrawnGroup]:
    """Let the model draw for prompts, ``seeds`` saying how many for each, ``at_once`` prompts together (0: all), from
    step ``window`` on with stochastic steps."""
    prefixes = [drawing_prefix(prompt, encoder) for prompt in prompts]
    slots = [len(lay_out(prefix, encoder.config.grammar)) for prefix in prefixes]
    draw = ops.Draw(how.height, how.width, settings_of(how, window))
    programs = [
        forked(operations_of(prefix, encoder), [_drawn(draw) for _ in own], own)
        for prefix, own in zip(prefixes, seeds, strict=True)
    ]
    drawings = run_together(model, autoencoder, encoder, programs, [len(own) for own in seeds], slots, at_once)
    return [DrawnGroup(*group) for group in zip(prompts, prefixes, drawings, strict=True)]


def _drawn(draw: ops.Draw) -> ops.Program:
    return on_cpu((yield draw))


def on_cpu(drawn: ops.Drawn) -> ops.Drawn:
    """An image whose tensors are on the CPU, where they wait for their pack and can go to other processes."""
    steps = tuple(
        replace(one, x_ND=one.x_ND.cpu(), x_after_ND=one.x_after_ND.cpu(), logprob=one.logprob.cpu())
        for one in drawn.stochastic
    )
    return replace(drawn, latents=drawn.latents.cpu(), stochastic=steps)


@dataclass
class LearnedDrawings:
    """The images of a group that are learned from, and their advantages."""

    group: DrawnGroup
    drawings: list[ops.Drawn]
    advantages: list[float]

    def parts(self, config: ModelConfig, copies: int) -> list[Part]:
        """The sample: the prefix once, and behind it every image as often as it is learned from (they do not see each
        other)."""
        targets = [target for drawn in self.drawings for target in targets_of(drawn, config, copies)]
        return [*self.group.prefix, *targets]


def targets_of(drawn: ops.Drawn, config: ModelConfig, copies: int) -> list[Part]:
    """An image that was drawn as something to learn: once for every stochastic step or, without such, at ``copies``
    noise levels. Its latents are those that were drawn, before the autoencoder."""
    rows, columns = (side // config.latent_patch_size for side in drawn.latents.shape[-2:])
    content = ImageContent(np.asarray(drawn.image), drawn.latents.detach().to("cpu", torch.float32))
    return [Target((rows, columns), content, noise=i) for i in range(len(drawn.stochastic) or copies)]


@dataclass
class DrawingPack:
    """A pack of samples, and what the loss needs of its targets.

    Attributes:
        advantages_I: of every target.
        target_M: which one each token belongs to.
        steps: the stochastic step of every target; empty where it stands at a noise level of its own.
        velocity_GD: noise - image, once the pack is noised.
        old_MD, reference_MD: velocities of the old policy and of the reference, once they are known.
    """

    pack: Pack
    advantages_I: Tensor
    target_M: Tensor
    steps: list[ops.StochasticStep]
    velocity_GD: Tensor | None = None
    old_MD: Tensor | None = None
    reference_MD: Tensor | None = None

    def to(self, device: torch.device) -> None:
        """Move the pack."""
        self.pack = self.pack.to(device)
        self.advantages_I, self.target_M = self.advantages_I.to(device), self.target_M.to(device)

    def counts(self, average: str) -> tuple[int, int]:
        """What the sums over tokens of texts and of targets are divided by for a mean."""
        return 0, len(self.target_M)


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
        pairs = [pair for i in members for pair in zip(samples[i].drawings, samples[i].advantages, strict=True)]
        found.append(drawing_pack_of(pack, pairs, copies))
    return found


def drawing_pack_of(pack: Pack, drawings: Sequence[tuple[ops.Drawn, float]], copies: int) -> DrawingPack:
    """A pack whose targets are these images with their advantages, in order (see :func:`targets_of`)."""
    assert pack.image_of_target_M is not None
    advantages = [advantage for drawn, advantage in drawings for _ in range(len(drawn.stochastic) or copies)]
    _, target_M = pack.image_of_target_M.unique(return_inverse=True)
    steps = [step for drawn, _ in drawings for step in drawn.stochastic]
    return DrawingPack(pack, torch.tensor(advantages, dtype=torch.float32), target_M, steps)
