"""The path from noise (time 1) to an image (time 0): its times, and one step along it.

Legend: n grid points; N tokens of an image; D values per token.
"""

import math

import torch
from torch import Tensor

from irg.engine.settings import SdeType


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


def stochastic_step(
    x_ND: Tensor, v_ND: Tensor, now: float, after: float, sde_type: SdeType, noise_level: float, second_time: float
) -> tuple[Tensor, float]:
    """The normal distribution that the image at time ``after`` is drawn from: mean, float32 [N, D], and standard
    deviation, by :func:`sde_mean_and_std` (whose std is multiplied by sqrt(d)) or :func:`cps_mean_and_std`."""
    if sde_type == "cps":
        return cps_mean_and_std(x_ND, v_ND, now, after, noise_level)
    mean_ND, std = sde_mean_and_std(x_ND, v_ND, now, after, noise_level, second_time)
    return mean_ND, std * math.sqrt(now - after)


def gaussian_logprob(x_ND: Tensor, mean_ND: Tensor, std: float) -> Tensor:
    """The logarithm of a normal density, a mean over all values (Flow-GRPO): - (x - mean)^2 / (2 std^2) - log(std)
    - log(2 pi) / 2."""
    distance = (x_ND - mean_ND).square().mean() / (2 * std**2)
    return -distance - math.log(std) - 0.5 * math.log(2 * math.pi)


def sde_mean_and_std(
    x_ND: Tensor, v_ND: Tensor, now: float, after: float, noise_level: float, second_time: float
) -> tuple[Tensor, float]:
    """The mean of a stochastic step whose marginals, for small steps, are those of the rectified flow, and the standard
    deviation of its noise in unit time (Flow-GRPO, arXiv 2505.05470).

    With step d and time t, std = noise_level * sqrt(t / (1 - t)) and the mean is
    x (1 - std^2 d / (2 t)) - v d (1 + std^2 (1 - t) / (2 t)).

    Args:
        second_time: the grid's second time, which stands for t where 1 - t would be 0.
    """
    d, rest = now - after, 1 - (second_time if now == 1 else now)
    std = noise_level * math.sqrt(now / rest)
    mean_ND = x_ND * (1 - std**2 * d / (2 * now)) - v_ND * (d * (1 + std**2 * (1 - now) / (2 * now)))
    return mean_ND, std


def cps_mean_and_std(x_ND: Tensor, v_ND: Tensor, now: float, after: float, noise_level: float) -> tuple[Tensor, float]:
    """The mean and the standard deviation of a stochastic step that keeps the noise level, however long it is
    (Flow-CPS, arXiv 2509.05952).

    The velocity predicts the image x0 = x - t v and the noise x1 = x + (1 - t) v. For the time t' they are put together
    with a part of the noise new: mean (1 - t') x0 + t' cos(a) x1, std t' sin(a), where a = pi / 2 * noise_level.

    Args:
        noise_level: from 0 (Euler's step) to 1 (all of the noise is new).
    """
    angle = 0.5 * math.pi * noise_level
    image_ND, noise_ND = x_ND - now * v_ND, x_ND + (1 - now) * v_ND
    return (1 - after) * image_ND + after * math.cos(angle) * noise_ND, after * math.sin(angle)
