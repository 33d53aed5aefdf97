"""Times of the path from noise (1) to an image (0).

Legend: n grid points.
"""

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
