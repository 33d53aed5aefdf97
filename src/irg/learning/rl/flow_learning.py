"""How drawing is learned from a pack: by DiffusionNFT at random noise levels, or by Flow-GRPO at the sampler's steps.

Legend: I targets of a pack; M their tokens; G latent tokens; D values per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from irg.learning.objective import flow_targets
from irg.learning.recipe import Draw
from irg.learning.rl.drawings import DrawingPack
from irg.learning.rl.flow_grpo import flow_grpo_losses
from irg.learning.rl.nft import nft_losses, optimality
from irg.learning.rl.recipe import Drawing, RLRecipe
from irg.model.network.unified import UnifiedModel
from irg.randomness import numpy_generator


def window_of(recipe: RLRecipe, step: int) -> int | None:
    """The first stochastic step of the images of a training step; None where none is stochastic."""
    if recipe.drawing.learning != "flow-grpo":
        return None
    rng = numpy_generator(recipe.seed, Draw.DRAWING, step, 2)
    return int(rng.integers(recipe.drawing.last_window_start + 1))


def prepare_targets(own: DrawingPack, recipe: RLRecipe, noise: torch.Generator) -> None:
    """Put a pack's targets where they are learned from: at their stochastic steps, or at random noise levels."""
    pack = own.pack
    assert pack.clean_GD is not None
    if own.steps:
        rows_M, device = pack.target_rows_M, pack.clean_GD.device
        times_I = torch.tensor([step.now for step in own.steps], dtype=torch.float32, device=device)
        latents_GD, times_G = pack.clean_GD.clone(), torch.zeros_like(pack.normal_G)
        latents_GD[rows_M] = torch.cat([step.x_ND.to(device) for step in own.steps])
        times_G[rows_M] = times_I[own.target_M]
        pack.batch.latents_GD, pack.batch.times_G = latents_GD, times_G
        return
    noise_GD = torch.randn(pack.clean_GD.shape, generator=noise).to(pack.clean_GD.device)
    flow = flow_targets(pack.clean_GD, noise_GD, pack.normal_G, recipe.timestep_shift)
    pack.batch.latents_GD, pack.batch.times_G, own.velocity_GD = flow.noisy_GD, flow.times_G, flow.velocity_GD


def velocities(model: UnifiedModel, own: DrawingPack) -> Tensor:
    """Velocities that a model predicts for a prepared pack's targets, float32 [M, D]."""
    _, hidden_GC = model(own.pack.batch, own.pack.attend)
    return velocities_of(model, own, hidden_GC)


def velocities_of(model: UnifiedModel, own: DrawingPack, hidden_GC: Tensor | None) -> Tensor:
    """The same from the generation stream's last hidden states."""
    rows_M, batch = own.pack.target_rows_M, own.pack.batch
    assert hidden_GC is not None and batch.latents_GD is not None and batch.times_G is not None
    return model.velocity(hidden_GC[rows_M], batch.latents_GD[rows_M], batch.times_G[rows_M]).to(torch.float32)


@dataclass
class FlowLosses:
    """Of every token of a target; ``figures_M`` are detached and for the log, ``ratio_gap`` is the largest distance of
    a ratio from 1 (0 where there are none)."""

    loss_M: Tensor
    figures_M: dict[str, Tensor]
    ratio_gap: float = 0.0


def flow_losses(new_MD: Tensor, old_MD: Tensor | None, own: DrawingPack, how: Drawing) -> FlowLosses:
    """The loss of a prepared pack, from the velocities of the policy being trained (with gradients) and the old one
    (None, with stochastic steps: the sampler's own densities count)."""
    figures_M = {} if old_MD is None else {"old_gap": (new_MD.detach() - old_MD).square().mean(dim=-1)}
    if not own.steps:
        assert own.velocity_GD is not None and old_MD is not None
        velocity_MD = own.velocity_GD[own.pack.target_rows_M]
        figures_M["rollout_mse"] = (new_MD.detach() - velocity_MD).square().mean(dim=-1)
        optimality_M = optimality(own.advantages_I)[own.target_M]
        return FlowLosses(nft_losses(new_MD, old_MD, velocity_MD, optimality_M, how.beta), figures_M)
    scored = flow_grpo_losses(new_MD, old_MD, own.reference_MD, own.steps, own.advantages_I, how)
    of_steps = {"flow_clipped": scored.clipped_I.to(torch.float32), "flow_rollout_gap": scored.rollout_gap_I}
    if scored.kl_I is not None:
        of_steps["flow_kl"] = scored.kl_I
    figures_M |= {name: value_I[own.target_M] for name, value_I in of_steps.items()}
    return FlowLosses(scored.loss_I[own.target_M], figures_M, float((scored.ratio_I - 1).abs().max()))
