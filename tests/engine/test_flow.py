"""The time grid and the Euler step."""

import pytest
import torch

from irg.engine.flow import euler_step, time_grid


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


def test_euler_follows_a_straight_path_exactly() -> None:
    data, noise = torch.randn(4, 3), torch.randn(4, 3)
    grid, x = time_grid(7, 2.0), noise
    for now, after in zip(grid[:-1], grid[1:], strict=True):
        x = euler_step(x, noise - data, now - after)
    assert torch.allclose(x, data, atol=1e-6)


def test_each_token_may_have_its_own_step() -> None:
    x, v = torch.ones(2, 3), torch.ones(2, 3)
    assert euler_step(x, v, torch.tensor([1.0, 0.25])).tolist() == [[0.0] * 3, [0.75] * 3]
