"""Multistep solvers and extrapolated steps, on flows whose path is known."""

import math

import pytest
import torch
from torch import Tensor

from irg.engine.engine import Engine
from irg.engine.flow import time_grid
from irg.engine.ops import Draw, Program, Say
from irg.engine.runner import Branches, Runner
from irg.engine.settings import DrawSettings, Solver
from irg.engine.solvers import HISTORY, Evaluation, solver_step
from irg.engine.step_cache import extrapolated, network_steps
from irg.model.weights.checkpoint import LoadedModel

NOISE = torch.tensor([[0.7, -1.9, 0.3]], dtype=torch.float64)
SPREAD = 0.5  # of the data, normal around 0: then the exact path is x = noise * sqrt((1 - t)^2 spread^2 + t^2)


def exact(t: float) -> Tensor:
    return NOISE * math.sqrt((1 - t) ** 2 * SPREAD**2 + t**2)


def velocity(x: Tensor, t: float) -> Tensor:
    """Of that flow: E[noise - data | x]."""
    return x * (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)


def error(solver: Solver, steps: int) -> float:
    times, x, history = time_grid(steps + 1, 1.6).tolist(), NOISE, list[Evaluation]()
    for now, after in zip(times, times[1:], strict=False):
        v = velocity(x, now)
        evaluation = Evaluation(now, x, v, x - now * v)
        x, start = solver_step(solver, evaluation, after, history)
        history = [*history, Evaluation(now, start, v, evaluation.data_ND)][-HISTORY:]
    return float((x - exact(0.0)).abs().max())


def test_euler_is_of_first_order() -> None:
    assert error("euler", 40) / error("euler", 80) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("solver", ["adams", "dpm", "unipc"])
def test_multistep_solvers_are_of_higher_order(solver: Solver) -> None:
    """Twice the steps: up to a fourth of the error; less where first-order steps at the ends of the grid count."""
    assert error(solver, 40) / error(solver, 80) > 2.4
    assert error(solver, 20) < 0.3 * error("euler", 20)


def test_the_corrector_helps() -> None:
    assert error("unipc", 20) < 0.8 * error("dpm", 20)


@pytest.mark.parametrize("solver", ["adams", "dpm", "unipc"])
def test_a_straight_path_is_followed_exactly(solver: Solver) -> None:
    """Data that is one point: the velocity never changes, and any step is right."""
    data, times = torch.tensor([[0.2, -0.4, 1.0]], dtype=torch.float64), time_grid(5, 3.0).tolist()
    x, history = NOISE, list[Evaluation]()
    for now, after in zip(times, times[1:], strict=False):
        v = NOISE - data
        x, start = solver_step(solver, Evaluation(now, x, v, x - now * v), after, history)
        history = [*history, Evaluation(now, start, v, x - after * v)][-HISTORY:]
    torch.testing.assert_close(x, data)


def test_which_steps_run_the_network() -> None:
    times = time_grid(10, 1.0).tolist()
    assert network_steps(times, 1, 0.0) == [True] * 9
    assert [step for step, runs in enumerate(network_steps(times, 3, 0.0)) if runs] == [0, 1, 4, 7, 8]


def test_a_gap_is_measured_in_time() -> None:
    """Times are 1, .9, .8, ..., .1; shifted by 3 the steps are short at first: 1, .964, .923, .875, .818, .75, .667,
    .563, .429, .25."""
    runs = [
        [step for step, run in enumerate(network_steps(time_grid(11, shift).tolist(), 1, 0.2)) if run]
        for shift in (1.0, 3.0)
    ]
    assert runs == [[0, 1, 3, 5, 7, 9], [0, 1, 5, 8, 9]]
    with pytest.raises(ValueError, match="network_interval and network_gap both say"):
        DrawSettings(network_interval=2, network_gap=0.1)


def test_velocities_are_extrapolated_on_a_line() -> None:
    known = [(1.0, torch.tensor([[3.0]])), (0.75, torch.tensor([[2.0]]))]
    assert extrapolated(0.25, known).item() == 0.0
    assert extrapolated(0.25, known[1:]).item() == 2.0


def test_the_network_is_run_where_guidance_changes(tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, every fourth by the network, and the fifth, which is the first without guidance."""
    branches, velocity = list[int](), Branches.velocity

    def counted(self: Branches, noisy_GD: Tensor, times_G: Tensor) -> Tensor:
        branches.append(len(noisy_GD) // 4)
        return velocity(self, noisy_GD, times_G)

    def program() -> Program:
        yield Say((5, 6))
        settings = DrawSettings(11, 1.0, cfg_interval=(0.65, 1.0), solver="dpm", network_interval=4)
        return (yield Draw(32, 32, settings))

    monkeypatch.setattr(Branches, "velocity", counted)
    (drawn,) = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder)).run([(program(), 0)])
    assert branches == [2, 2, 1, 1, 1] and drawn.latents.isfinite().all()
