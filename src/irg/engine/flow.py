"""The path from noise (time 1) to an image (time 0): its times, and one step along it.

Legend: n grid points; N tokens of an image; D values per token.
"""

import math

import torch
from torch import Tensor


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t -> s t / (1 + (s - 1) t): moves times in [0, 1] towards noise (1) for s > 1; keeps 0 and 1."""
    return shift * t / (1 + (shift - 1) * t)


def time_grid(num_timesteps: int, shift: float) -> Tensor:
    """Times of a sampling run, float32 [n], from 1 down to 0, both included: ``num_timesteps`` - 1 steps.

    Computed in float32 on the CPU, as the reference does: whether a step lies inside a guidance interval can hang on
    the last bit.

    Raises:
        ValueError: fewer than two points, or a shift that is not positive.
    """
    if num_timesteps < 2:
        raise ValueError(f"num_timesteps must be at least 2 (the two ends of the grid), got {num_timesteps}")
    if not shift > 0:
        raise ValueError(f"timestep_shift must be more than 0, got {shift}")
    return shift_time(torch.linspace(1, 0, num_timesteps, dtype=torch.float32), shift)


def euler_step(x_ND: Tensor, v_ND: Tensor, now: float, after: float) -> Tensor:
    """One step of Euler's method along the velocity: the image at time ``after``, float32 [N, D]."""
    return torch.sub(x_ND, v_ND, alpha=now - after)


def sde_step(
    x_ND: Tensor, v_ND: Tensor, now: float, after: float, noise_level: float, noise_ND: Tensor, second_time: float
) -> Tensor:
    """One stochastic step, whose marginals are those of the rectified flow (Flow-GRPO, arXiv 2505.05470).

    With step d, time t and std = noise_level * sqrt(t / (1 - t)) the mean is
    x (1 - std^2 d / (2 t)) - v d (1 + std^2 (1 - t) / (2 t)), to which std sqrt(d) times a standard normal is added.

    Args:
        noise_ND: standard normal numbers.
        second_time: the grid's second time, which stands for t where 1 - t would be 0.

    Returns:
        The image at time ``after``, float32 [N, D].
    """
    mean_ND, std = sde_mean_and_std(x_ND, v_ND, now, after, noise_level, second_time)
    return mean_ND + std * math.sqrt(now - after) * noise_ND


def sde_scale(now: float, after: float, noise_level: float, second_time: float) -> float:
    """By what a stochastic step multiplies its noise: std sqrt(d) of :func:`sde_step`."""
    return noise_level * math.sqrt(now / (1 - (second_time if now == 1 else now))) * math.sqrt(now - after)


def gaussian_logprob(x_ND: Tensor, mean_ND: Tensor, std: float) -> Tensor:
    """The logarithm of a normal density, a mean over all values (Flow-GRPO): - (x - mean)^2 / (2 std^2) - log(std)
    - log(2 pi) / 2."""
    distance = (x_ND - mean_ND).square().mean() / (2 * std**2)
    return -distance - math.log(std) - 0.5 * math.log(2 * math.pi)


def sde_mean_and_std(
    x_ND: Tensor, v_ND: Tensor, now: float, after: float, noise_level: float, second_time: float
) -> tuple[Tensor, float]:
    """The mean of a stochastic step [N, D], and the ``std`` of :func:`sde_step` (without the square root of d)."""
    d, rest = now - after, 1 - (second_time if now == 1 else now)
    std = noise_level * math.sqrt(now / rest)
    mean_ND = x_ND * (1 - std**2 * d / (2 * now)) - v_ND * (d * (1 + std**2 * (1 - now) / (2 * now)))
    return mean_ND, std
