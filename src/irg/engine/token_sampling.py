"""Which token comes next: greedy or sampled, over the tokens that top-k, top-p and given choices leave.

All positions of a forward are chosen at once, where the logits are. What each needs is known before the forward
(:class:`Position`), so the host waits for the device once, when it reads the result.

Legend: P positions: those of one text after the other; V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1  # in the place of a token


@dataclass(frozen=True)
class Position:
    """How the token at one position is chosen.

    Attributes:
        temperature: of the softmax; 0 takes the likeliest token.
        uniform: a random number in [0, 1), which chooses at a temperature above 0.
        top_k: only so many likeliest tokens can be chosen; 0: all.
        top_p: of those, only the likeliest whose probabilities together reach it; 1: all.
        allowed: only these can be chosen; None: any.
        forced: the token that is taken whatever is chosen; ``NONE``: the chosen one.
    """

    temperature: float = 0.0
    uniform: float = 0.5
    top_k: int = 0
    top_p: float = 1.0
    allowed: Sequence[int] | None = None
    forced: int = NONE


def allowed_next(choices: Sequence[Sequence[int]], written: Sequence[int]) -> list[int] | None:
    """The tokens with which ``written`` goes on towards one of ``choices``, sorted; None: any, as a choice is complete
    or there are none."""
    got = tuple(written)
    if any(tuple(choice) == got[: len(choice)] for choice in choices):
        return None
    return sorted({choice[len(got)] for choice in choices if tuple(choice[: len(got)]) == got}) or None


def choose(logits_PV: Tensor, positions: Sequence[Position], logprobs: bool = False) -> tuple[Tensor, Tensor | None]:
    """The token chosen at each position, int64 [P], on the logits' device; nothing here waits for it.

    Args:
        logits_PV: float32.
        logprobs: return, too, the log-probabilities [P] of the tokens taken (the forced ones, where there are any), at
            each position's temperature (1 where that is 0), whatever top-k, top-p and choices leave out.
    """
    rows = [[p.temperature, p.uniform, p.top_k, p.top_p, p.forced] for p in positions]
    temperature_P1, uniform_P1, top_k_P1, top_p_P1, forced_P1 = (
        torch.tensor(rows, dtype=torch.float32).T[:, :, None].to(logits_PV.device, non_blocking=True).unbind()
    )
    scaled_PV = logits_PV / torch.where(temperature_P1 > 0, temperature_P1, 1.0)
    left_PV = allow(scaled_PV, [p.allowed for p in positions])
    if any(p.temperature and (p.top_k or p.top_p < 1) for p in positions):
        left_PV = restrict(left_PV, top_k_P1, top_p_P1)
    chosen_P = left_PV.argmax(dim=-1)
    if any(p.temperature for p in positions):
        chosen_P = torch.where(temperature_P1[:, 0] > 0, draw(left_PV, uniform_P1), chosen_P)
    if not logprobs:
        return chosen_P, None
    taken_P1 = torch.where(forced_P1 == NONE, chosen_P[:, None], forced_P1.to(torch.int64))
    return chosen_P, scaled_PV.log_softmax(dim=-1).gather(1, taken_P1)[:, 0]


def allow(logits_PV: Tensor, allowed: Sequence[Sequence[int] | None]) -> Tensor:
    """Logits with minus infinity for every token that is not among the allowed ones of its position."""
    if all(tokens is None for tokens in allowed):
        return logits_PV
    rows = [row for row, tokens in enumerate(allowed) for _ in tokens or ()]
    columns = [token for tokens in allowed for token in tokens or ()]
    device = logits_PV.device
    restricted_P = torch.tensor([tokens is not None for tokens in allowed], device=device)
    refused_PV = restricted_P[:, None].repeat(1, logits_PV.shape[-1])
    refused_PV[torch.tensor(rows, device=device), torch.tensor(columns, device=device)] = False
    return logits_PV.masked_fill(refused_PV, -math.inf)


def restrict(scaled_PV: Tensor, top_k_P1: Tensor, top_p_P1: Tensor) -> Tensor:
    """Logits, divided by the temperature, with minus infinity for what top-k and top-p leave out; what is left is
    renormalized by the softmax. The token that reaches top-p is kept."""
    ranked_PV, order_PV = scaled_PV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(scaled_PV.shape[-1], device=scaled_PV.device)
    ranked_PV = ranked_PV.masked_fill((top_k_P1 > 0) & (rank_V >= top_k_P1), -math.inf)
    probabilities_PV = ranked_PV.softmax(dim=-1)
    before_PV = probabilities_PV.cumsum(dim=-1) - probabilities_PV
    ranked_PV = ranked_PV.masked_fill((top_p_P1 < 1) & (before_PV >= top_p_P1), -math.inf)
    return torch.empty_like(scaled_PV).scatter_(1, order_PV, ranked_PV)


def draw(scaled_PV: Tensor, uniform_P1: Tensor) -> Tensor:
    """A token of each softmax, int64 [P]: the first at which the cumulated probability exceeds the random number."""
    cumulated_PV = scaled_PV.softmax(dim=-1).cumsum(dim=-1)
    mass_P1 = cumulated_PV[:, -1:]  # 1 but for rounding
    return torch.searchsorted(cumulated_PV, uniform_P1 * mass_P1, right=True)[:, 0].clamp_max(scaled_PV.shape[-1] - 1)
