"""Classifier-free guidance of velocities: pure functions, batched over images with the same settings.

With main velocity m, that of the unconditional text branch u and that of the unconditional image branch w:
g = u + text * (m - u), then g = w + image * (g - w). Renormalizing brings g back towards the norm of m, by a factor
clamp(norm(m) / (norm(g) + 1e-8), renorm_min, 1): of the whole image (``global``), of each token (``channel``), or of
each token before image guidance, which then is not renormalized (``text_channel``).

A scale counts only if it is above 1, and without text guidance there is none at all. Nothing here waits for the device.

Legend: G latent tokens of all images; D values per token.
"""

import numpy as np
import torch
from torch import Tensor

from irg.engine.settings import RenormType

_EPSILON = 1e-8


def scales_at(
    t: float | Tensor, text_scale: float, image_scale: float, interval: tuple[float, float]
) -> tuple[float, float]:
    """The (text, image) scales that act at shifted time ``t``: the given ones while low < t <= high, else 1.

    Compared in float32, in which the grid's times are: a grid point that equals an end of the interval in float32
    counts as that end. ``t`` should be a number or a CPU tensor; one on a device would be waited for.
    """
    low, high = np.float32(interval[0]), np.float32(interval[1])
    return (text_scale, image_scale) if low < np.float32(float(t)) <= high else (1.0, 1.0)


def guide(
    main_GD: Tensor,
    text_uncond_GD: Tensor | None,
    image_uncond_GD: Tensor | None,
    text_scale: float,
    image_scale: float,
    renorm_type: RenormType = "global",
    renorm_min: float = 0.0,
    groups_G: Tensor | None = None,
) -> Tensor:
    """The guided velocity, float32 [G, D].

    Args:
        main_GD, text_uncond_GD, image_uncond_GD: velocities with the full context, without the text and without the
            image; None: no guidance that way.
        groups_G: int64, each in [0, G): tokens of equal number are one image, which shares a ``global`` factor. None:
            all tokens are one image.
    """
    main_GD = main_GD.float()
    if text_uncond_GD is None or text_scale <= 1:
        return main_GD
    guided_GD = torch.lerp(text_uncond_GD.float(), main_GD, text_scale)
    if renorm_type == "text_channel":
        guided_GD = guided_GD * _factor(_norms(main_GD), _norms(guided_GD), renorm_min)
    if image_uncond_GD is not None and image_scale > 1:
        guided_GD = torch.lerp(image_uncond_GD.float(), guided_GD, image_scale)
    if renorm_type == "text_channel":
        return guided_GD
    norms = [_norms(main_GD), _norms(guided_GD)]
    if renorm_type == "global":
        norms = [_over_groups(norms_G1, groups_G) for norms_G1 in norms]
    return guided_GD * _factor(norms[0], norms[1], renorm_min)


def _norms(x_GD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_GD, dim=1, keepdim=True)


def _over_groups(norms_G1: Tensor, groups_G: Tensor | None) -> Tensor:
    """The norm of every token's group: [G, 1], or [1, 1] for a single group."""
    if groups_G is None:
        return torch.linalg.vector_norm(norms_G1, dim=0, keepdim=True)
    # as many sums as there are tokens: knowing the number of groups would mean waiting for the device
    return torch.zeros_like(norms_G1).index_add(0, groups_G, norms_G1.square())[groups_G].sqrt()


def _factor(main_norm: Tensor, guided_norm: Tensor, renorm_min: float) -> Tensor:
    return (main_norm / (guided_norm + _EPSILON)).clamp(renorm_min, 1.0)
