"""Steps without the network: a velocity extrapolated from those of the last two steps that ran it.

A Taylor series of first order over time, as TaylorSeer (arXiv 2503.06923) makes of a network's features, made of the
output: it costs no memory that grows with the layers.

Legend: N tokens of an image; D values per token.
"""

from collections.abc import Sequence

from torch import Tensor

WARM_UP = 2
"""First steps, all of which run the network."""
ROUNDING = 1e-6
"""Times are rounded to float32: a gap that is a multiple of the steps is met by as many of them."""


def network_steps(times: Sequence[float], interval: int, gap: float) -> list[bool]:
    """Whether the network runs in each step of a time grid: in the first, the last, and between in every
    ``interval``-th or, with a ``gap`` above 0, where so much time has passed since it ran."""
    last_step, ran, runs = len(times) - 2, times[0], list[bool]()
    for step, now in enumerate(times[:-1]):
        due = ran - now > gap - ROUNDING if gap else (step - WARM_UP + 1) % interval == 0
        runs.append(step < WARM_UP or step == last_step or due)
        ran = now if runs[-1] else ran
    return runs


def extrapolated(time: float, known: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The velocity [N, D] at ``time`` on the line through the last two (time, velocity); the last one if there is no
    other."""
    last, v_ND = known[-1]
    if len(known) < 2:
        return v_ND
    before, v_before_ND = known[-2]
    return v_ND + (v_ND - v_before_ND) * ((time - last) / (last - before))
