"""Flow-GRPO (arXiv 2505.05470): the policy gradient for drawing, from a few stochastic steps of the sampler.

A stochastic step draws x' from a normal distribution around a mean that depends on the predicted velocity
(:func:`irg.engine.flow.stochastic_step`), so it has a density. Its logarithm, a mean over all values of the image,
takes the place of a token's log-probability in PPO's clipped loss. Only the steps of a window are stochastic, and only
those are learned from; all others follow the same velocity by Euler's method.

Legend: I stochastic steps of images in a pack; M their tokens; G latent tokens; N tokens of one image; D values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irg.engine.flow import gaussian_logprob, stochastic_step, time_grid
from irg.engine.ops import StochasticStep
from irg.learning.rl.recipe import Drawing


def step_logprobs(
    velocity_MD: Tensor, steps: Sequence[StochasticStep], how: Drawing
) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    """Log-densities of steps [I] under predicted velocities, and their distributions: mean [N, D] and standard
    deviation."""
    logprobs, distributions, start = [], [], 0
    second_time = float(time_grid(how.num_timesteps, how.timestep_shift)[1])
    for step in steps:
        v_ND = velocity_MD[start : start + len(step.x_ND)]
        start += len(v_ND)
        x_ND, x_after_ND = step.x_ND.to(v_ND.device), step.x_after_ND.to(v_ND.device)
        mean_ND, std = stochastic_step(x_ND, v_ND, step.now, step.after, how.stochastic, how.noise_level, second_time)
        logprobs.append(gaussian_logprob(x_after_ND, mean_ND, std))
        distributions.append((mean_ND, std))
    return torch.stack(logprobs) if logprobs else velocity_MD.new_zeros(0), distributions


@dataclass
class FlowGRPOLosses:
    """Of every step; all but the loss are detached."""

    loss_I: Tensor
    ratio_I: Tensor
    clipped_I: Tensor
    kl_I: Tensor | None
    rollout_gap_I: Tensor


def flow_grpo_losses(
    new_MD: Tensor,
    old_MD: Tensor | None,
    reference_MD: Tensor | None,
    steps: Sequence[StochasticStep],
    advantages_I: Tensor,
    how: Drawing,
) -> FlowGRPOLosses:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) + kl |mean - mean of the reference|^2 / (2 std^2) of every step.

    Args:
        new_MD, old_MD, reference_MD: velocities of the policy being trained (with gradients), of the policy before the
            first update (None: the old densities are those that the sampler reported), and of the model that the run
            started from (None: no divergence is measured).
    """
    new_I, distributions = step_logprobs(new_MD, steps, how)
    rollout_I = torch.stack([step.logprob for step in steps]).to(new_I.device)
    old_I = rollout_I if old_MD is None else step_logprobs(old_MD, steps, how)[0]
    ratio_I = (new_I - old_I).exp()
    gain_I, bounded_I = ratio_I * advantages_I, ratio_I.clamp(1 - how.clip, 1 + how.clip) * advantages_I
    loss_I, kl_I = -torch.minimum(gain_I, bounded_I), None
    if reference_MD is not None:
        _, references = step_logprobs(reference_MD, steps, how)
        kl_I = torch.stack(
            [
                (mean_ND - other_ND).square().mean() / (2 * std**2)
                for (mean_ND, std), (other_ND, _) in zip(distributions, references, strict=True)
            ]
        )
        loss_I = loss_I + how.kl * kl_I
    gap_I = (old_I - rollout_I).abs()
    return FlowGRPOLosses(
        loss_I, ratio_I.detach(), bounded_I.detach() < gain_I.detach(), None if kl_I is None else kl_I.detach(), gap_I
    )
