"""Steps without the network: a velocity extrapolated from those of the last two steps that ran it.

A Taylor series of first order over time, as TaylorSeer (arXiv 2503.06923) makes of a network's features, made of the
output: it costs no memory that grows with the layers.

Legend: N tokens of an image; D values per token.
"""

from collections.abc import Sequence

from torch import Tensor

WARM_UP = 2
"""First steps, all of which run the network."""


def runs_network(step: int, total: int, interval: int) -> bool:
    """Whether the network runs in a step (from 0) of ``total``: in the first, the last, and every ``interval``-th."""
    return step < WARM_UP or step == total - 1 or (step - WARM_UP + 1) % interval == 0


def extrapolated(time: float, known: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The velocity [N, D] at ``time`` on the line through the last two (time, velocity); the last one if there is no
    other."""
    last, v_ND = known[-1]
    if len(known) < 2:
        return v_ND
    before, v_before_ND = known[-2]
    return v_ND + (v_ND - v_before_ND) * ((time - last) / (last - before))
