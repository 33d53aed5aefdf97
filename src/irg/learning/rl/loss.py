"""The policy's loss, token by token.

PPO's clipped ratio (Schulman et al. 2017) with the two bounds apart (DAPO, Yu et al. 2025), the divergence from a
reference by the estimator k3 (Schulman 2020), the exact entropy of every token's distribution.

Legend: L text tokens with loss; C hidden size; N tokens of a chunk; V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from irg.learning.costs import LOGITS_AT_ONCE
from irg.learning.rl.recipe import Loss
from irg.model.network.unified import UnifiedModel


def token_scores(
    model: UnifiedModel, hidden_LC: Tensor, labels_L: Tensor, temperature: float, limit: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens in softmax(logits / temperature), and the entropies of these distributions in nats:
    float32 [L] each. Logits are made in chunks of at most ``limit`` numbers, and made again in the backward pass."""
    rows = max(1, limit // model.config.decoder.vocab_size)

    def score(hidden_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_NV = (model.logits(hidden_NC).to(torch.float32) / temperature).log_softmax(dim=-1)
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
        return logprobs_NV.gather(1, labels_N[:, None]).squeeze(1), entropy_N

    if len(hidden_LC) <= rows:
        return score(hidden_LC, labels_L)
    pieces = zip(hidden_LC.split(rows), labels_L.split(rows), strict=True)
    scored = [checkpoint(score, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    logprobs, entropies = zip(*scored, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def k3(logprobs_L: Tensor, reference_L: Tensor) -> Tensor:
    """An estimate of KL(policy, reference) for each token that the policy chose: exp(d) - d - 1 >= 0 with
    d = log p_reference - log p. Its mean over such tokens is the divergence; its gradient pulls towards the
    reference."""
    d_L = reference_L - logprobs_L
    return d_L.exp() - d_L - 1


@dataclass
class PolicyLosses:
    """Per token, unreduced."""

    loss_L: Tensor
    ratio_L: Tensor  # detached, like the next
    clipped_L: Tensor  # bool: the ratio is beyond a bound, and has no gradient there
    kl_L: Tensor | None


def policy_losses(
    logprobs_L: Tensor,
    entropy_L: Tensor,
    old_L: Tensor,
    advantages_L: Tensor,
    reference_L: Tensor | None,
    how: Loss,
) -> PolicyLosses:
    """The loss of every token.

    Args:
        logprobs_L, entropy_L: of the model being trained, with gradients.
        old_L: log-probabilities before the first update on these tokens.
        reference_L: of the model that the run started from; None: no divergence is measured.
    """
    ratio_L = (logprobs_L - old_L).exp()
    gain_L = ratio_L * advantages_L
    clipped_L = torch.zeros_like(ratio_L, dtype=torch.bool)
    if how.clips:
        bounded_L = ratio_L.clamp(1 - how.clip_low, 1 + how.clip_high) * advantages_L
        clipped_L = bounded_L < gain_L
        gain_L = torch.minimum(gain_L, bounded_L)
    kl_L = None if reference_L is None else k3(logprobs_L, reference_L)
    loss_L = -gain_L - how.entropy * entropy_L if how.entropy else -gain_L
    if kl_L is not None and how.kl:
        loss_L = loss_L + how.kl * kl_L
    return PolicyLosses(loss_L, ratio_L.detach(), clipped_L, None if kl_L is None else kl_L.detach())
