"""The time grid."""

import pytest
import torch

from irg.engine.flow import time_grid


def test_grid_has_both_ends_and_falls() -> None:
    grid = time_grid(50, 3.0)
    assert grid.dtype == torch.float32
    assert (len(grid), grid[0].item(), grid[-1].item()) == (50, 1.0, 0.0)
    assert bool((grid.diff() < 0).all())


def test_shift_moves_times_towards_noise() -> None:
    assert time_grid(3, 1.0).tolist() == [1.0, 0.5, 0.0]
    assert time_grid(3, 3.0).tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize(("points", "shift"), [(1, 3.0), (0, 3.0), (5, 0.0), (5, -1.0), (5, float("nan"))])
def test_bad_grids_are_refused(points: int, shift: float) -> None:
    with pytest.raises(ValueError, match=r"num_timesteps|timestep_shift"):
        time_grid(points, shift)
