"""The two losses of IRGL: next-token cross-entropy on texts, rectified-flow velocity error on images drawn.

Legend: G latent tokens, clean and noised; D values per token; M noised tokens; L text tokens with loss; V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from irg.engine.flow import shift_time
from irg.learning.costs import LOGITS_AT_ONCE
from irg.model.network.decoder import Attend
from irg.model.network.token_batch import TokenBatch
from irg.model.network.unified import UnifiedModel


@dataclass
class FlowTargets:
    """Noised inputs of a pack: x = (1 - t) * clean + t * noise for targets, the clean latents for images read."""

    noisy_GD: Tensor
    times_G: Tensor
    velocity_GD: Tensor  # noise - clean


def flow_targets(clean_GD: Tensor, noise_GD: Tensor, normal_G: Tensor, shift: float) -> FlowTargets:
    """Noise the targets of a pack.

    Args:
        clean_GD: clean latents of all latent tokens.
        noise_GD: standard normal noise of the same shape.
        normal_G: one standard normal number per token, equal within an image; -inf marks a clean image (t = 0).
        shift: timestep shift, > 0.
    """
    times_G = shift_time(torch.sigmoid(normal_G), shift)
    t_G1 = times_G[:, None]
    return FlowTargets((1 - t_G1) * clean_GD + t_G1 * noise_GD, times_G, noise_GD - clean_GD)


@dataclass
class Losses:
    """Per-token losses of a pack; reduce them with :func:`total`."""

    ce_L: Tensor
    mse_MD: Tensor


def losses(
    model: UnifiedModel,
    batch: TokenBatch,
    attend: Attend,
    velocity_GD: Tensor | None,
    loss_rows_L: Tensor,
    labels_L: Tensor,
    target_rows_M: Tensor,
) -> Losses:
    """Run a pack and score it, unreduced.

    Args:
        loss_rows_L, labels_L: rows of the understanding stream with text loss, and the tokens they should predict.
        target_rows_M: rows of the generation stream that are noised targets.
    """
    hidden_UC, hidden_GC = model(batch, attend)
    ce_L = cross_entropy(model, hidden_UC[loss_rows_L], labels_L)
    if hidden_GC is None or velocity_GD is None:
        return Losses(ce_L, ce_L.new_zeros(0, model.config.latent_values))
    assert batch.latents_GD is not None and batch.times_G is not None
    rows = target_rows_M
    predicted_MD = model.velocity(hidden_GC[rows], batch.latents_GD[rows], batch.times_G[rows])
    return Losses(ce_L, (predicted_MD - velocity_GD[rows].to(torch.float32)) ** 2)


def cross_entropy(model: UnifiedModel, hidden_LC: Tensor, labels_L: Tensor, limit: int = LOGITS_AT_ONCE) -> Tensor:
    """Per-token cross-entropy, float32 [L]. Where all logits would be more than ``limit`` numbers they are made chunk
    by chunk, and made again in the backward pass: with 152k words they would be most of a pack's memory."""
    rows = max(1, limit // model.config.decoder.vocab_size)

    def score(hidden_NC: Tensor, labels_N: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden_NC).to(torch.float32), labels_N, reduction="none")

    if len(hidden_LC) <= rows:
        return score(hidden_LC, labels_L)
    pieces = zip(hidden_LC.split(rows), labels_L.split(rows), strict=True)
    return torch.cat([checkpoint(score, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])


def detail_weights(clean_MD: Tensor, image_of_target_M: Tensor, patch: int, strength: float) -> Tensor:
    """Weights of latent tokens in the flow loss that favor detail: [M], with mean 1 in every image.

    A token covers ``patch`` x ``patch`` latents. How much these differ from each other (the root of their variance,
    meaned over channels) is its detail d; its weight is 1 + strength * d / mean(d), scaled to mean 1. In a flat
    background, most of an image's cells, d is near 0, so that things and edges count more.

    Args:
        clean_MD: clean latents of all target tokens; D is patch, patch, channels in this order.
        image_of_target_M: the image that each belongs to.
    """
    spread_MD = clean_MD.to(torch.float32).unflatten(-1, (patch * patch, -1)).var(dim=1, correction=0)
    detail_M = spread_MD.mean(dim=-1).sqrt()
    _, images_M = image_of_target_M.unique(return_inverse=True)
    count_I = torch.bincount(images_M)
    mean_I = torch.zeros(len(count_I), device=detail_M.device).index_add_(0, images_M, detail_M) / count_I
    relative_M = detail_M / mean_I.clamp(min=1e-6)[images_M]
    weights_M = 1 + strength * relative_M
    scale_I = torch.zeros(len(count_I), device=detail_M.device).index_add_(0, images_M, weights_M) / count_I
    return weights_M / scale_I[images_M]


def total(
    scored: Losses,
    ce_weight: float = 1.0,
    mse_weight: float = 1.0,
    ce_weights_L: Tensor | None = None,
    divisors: tuple[float, float] | None = None,
    mse_weights_M: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, mean CE, mean MSE), each a mean over tokens.

    ``divisors`` are the numbers of text tokens and target tokens to divide by, where the pack is one of several whose
    losses add up to a mean over all of them; default: the pack's own.

    With ``ce_weights_L`` (1 / sqrt(n + 1) for a text of n tokens: BAGEL's re-weighting, off in IRG) CE is the weighted
    mean. ``mse_weights_M`` weigh the target tokens (:func:`detail_weights`).
    """
    if ce_weights_L is None:
        ce = scored.ce_L.sum() / max(1, divisors[0] if divisors else len(scored.ce_L))
    else:
        ce = (scored.ce_L * ce_weights_L).sum() / ce_weights_L.sum()
    mse_M = scored.mse_MD.mean(dim=-1)
    mse_M = mse_M if mse_weights_M is None else mse_M * mse_weights_M
    mse = mse_M.sum() / max(1, divisors[1] if divisors else len(scored.mse_MD))
    return ce_weight * ce + mse_weight * mse, ce, mse
