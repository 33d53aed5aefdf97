"""Which token comes next: greedy or sampled, over the tokens that top-k, top-p and given choices leave.

Legend: B requests; V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def allowed_next(choices: Sequence[Sequence[int]], written: Sequence[int]) -> list[int] | None:
    """The tokens with which ``written`` goes on towards one of ``choices``, sorted; None: any, as a choice is complete
    or there are none."""
    got = tuple(written)
    if any(tuple(choice) == got[: len(choice)] for choice in choices):
        return None
    return sorted({choice[len(got)] for choice in choices if tuple(choice[: len(got)]) == got}) or None


def restrict(
    logits_V: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, allowed: Sequence[int] | None = None
) -> Tensor:
    """Logits with minus infinity for every token that can't be chosen; what is left is renormalized by the softmax.

    Args:
        top_k: keep so many likeliest tokens; 0: all.
        top_p: of those, keep the likeliest until their probabilities at ``temperature`` together reach it; the token
            that reaches it is kept. 1: all.
        allowed: keep these alone, before anything else; None: all.
    """
    if allowed is not None:
        index = torch.tensor(list(allowed), device=logits_V.device)
        logits_V = torch.full_like(logits_V, -math.inf).index_copy(0, index, logits_V[index])
    if not temperature or not (top_k or top_p < 1):
        return logits_V
    ranked_V, order_V = logits_V.sort(descending=True, stable=True)
    if top_k:
        ranked_V[top_k:] = -math.inf
    if top_p < 1:
        probabilities_V = (ranked_V / temperature).softmax(dim=0)
        ranked_V[probabilities_V.cumsum(dim=0) - probabilities_V >= top_p] = -math.inf
    return torch.empty_like(logits_V).index_copy(0, order_V, ranked_V)


def sample(logits_BV: Tensor, temperatures: Sequence[float], generators: Sequence[torch.Generator]) -> list[int]:
    """A token for each row: the likeliest at temperature 0, else one of softmax(logits / temperature), drawn by the
    row's own random numbers (the Gumbel-max form of sampling)."""
    if any(temperatures):
        uniform_BV = torch.stack(
            [
                torch.rand(logits_BV.shape[1], generator=generator)
                if temperature
                else torch.full((logits_BV.shape[1],), 0.5)
                for generator, temperature in zip(generators, temperatures, strict=True)
            ]
        ).to(logits_BV.device)
        gumbel_BV = -(-uniform_BV.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        scale_B1 = torch.tensor(temperatures, device=logits_BV.device)[:, None]
        logits_BV = logits_BV + scale_B1 * gumbel_BV
    return logits_BV.argmax(dim=-1).tolist()
