"""Multistep solvers of the flow: one network evaluation a step, and what earlier ones tell of the curve.

At time t an image is x = (1 - t) data + t noise, and its velocity v = noise - data, so data = x - t v. The solvers of
diffusion models work on the data prediction, over lambda = log((1 - t) / t), half the logarithm of the signal-to-noise
ratio. Lambda is infinite at both ends of the grid: a step that touches one is of first order, which is Euler's.

Legend: N tokens of an image; D values per token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from irg.engine.flow import euler_step
from irg.engine.settings import Solver

HISTORY = 2
"""Earlier evaluations that a step may use."""


@dataclass(frozen=True)
class Evaluation:
    """What the network said at a time: the velocity, and the data prediction. ``x_ND`` is the image that the step from
    there began with."""

    time: float
    x_ND: Tensor
    v_ND: Tensor
    data_ND: Tensor


def solver_step(solver: Solver, now: Evaluation, after: float, history: Sequence[Evaluation]) -> tuple[Tensor, Tensor]:
    """One step to time ``after``.

    Args:
        history: the evaluations before, oldest first, without a change of guidance between them.

    Returns:
        The image at ``after``, and the one at ``now``, which ``unipc`` corrects; float32 [N, D].
    """
    if solver == "euler" or not history:
        return euler_step(now.x_ND, now.v_ND, now.time, after), now.x_ND
    if solver == "adams":
        return adams_step(now, after, history[-1]), now.x_ND
    data_ND, x_ND = now.data_ND, now.x_ND
    if solver == "unipc":
        x_ND = unipc_corrected(data_ND, now, history)
    return dpm_step(x_ND, data_ND, now.time, after, history[-1]), x_ND


def adams_step(now: Evaluation, after: float, before: Evaluation) -> Tensor:
    """Adams and Bashforth's second-order step over t: the velocity goes on changing as it did."""
    ratio = (now.time - after) / (2 * (before.time - now.time))
    return euler_step(now.x_ND, now.v_ND + ratio * (now.v_ND - before.v_ND), now.time, after)


def dpm_step(x_ND: Tensor, data_ND: Tensor, now: float, after: float, before: Evaluation) -> Tensor:
    """A second-order step of DPM-Solver++ (2M, arXiv 2211.01095), whose data prediction goes on changing over lambda.

    UniPC's predictor (arXiv 2302.04867, B(h) = e^h - 1) is the same.
    """
    h = _lambda(after) - _lambda(now)
    ratio = (_lambda(now) - _lambda(before.time)) / h if math.isfinite(h) else math.inf
    if math.isfinite(ratio):
        data_ND = data_ND + (data_ND - before.data_ND) / (2 * ratio)
    return (after / now) * x_ND + (1 - after / now) * data_ND


def unipc_corrected(data_ND: Tensor, now: Evaluation, history: Sequence[Evaluation]) -> Tensor:
    """The image at ``now`` by a corrector as UniPC's (arXiv 2302.04867): the last step again, now that the data
    prediction of its end is known. A step from the grid's first point stays as it is.

    The data prediction is the polynomial through both ends, and through the evaluation before where there is one;
    its integral with the weight e^lambda is exact.
    """
    last = history[-1]
    h = _lambda(now.time) - _lambda(last.time)
    if not math.isfinite(h):
        return now.x_ND
    constant = -math.expm1(-h)  # integrals of 1, s and s^2 over the step, s from 0 to 1
    linear = 1 - constant / h
    change_ND = data_ND - last.data_ND
    curve_ND = linear * change_ND
    before = (_lambda(history[-2].time) - _lambda(last.time)) / h if len(history) > 1 else -math.inf
    if math.isfinite(before):
        quadratic = 1 - 2 * linear / h
        share = (quadratic - linear) / (1 - before)
        curve_ND = curve_ND + share * (change_ND - (history[-2].data_ND - last.data_ND) / before)
    return (now.time / last.time) * last.x_ND + (1 - now.time) * (constant * last.data_ND + curve_ND)


def _lambda(t: float) -> float:
    if t <= 0:
        return math.inf
    return -math.inf if t >= 1 else math.log((1 - t) / t)
