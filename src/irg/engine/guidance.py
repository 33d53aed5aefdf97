"""Classifier-free guidance of velocities: pure functions, batched over all images in flight.

With main velocity m, text-free u and image-free w: g = u + text * (m - u), then g = w + image * (g - w). Renormalizing
brings g back towards the norm of m, by a factor clamp(norm(m) / (norm(g) + 1e-8), renorm_min, 1): of the whole image
(``global``), of each token (``channel``), or of each token before image guidance, which then is not renormalized
(``text_channel``).

A scale counts only if it is above 1, and without text guidance there is none at all. Settings are numbers, or tensors
with one value per token, so images with different settings share one call. Nothing here waits for the device.

Legend: G latent tokens of all images in flight; D values per token.
"""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from irg.engine.settings import RenormType

RENORM_TYPES: tuple[str, ...] = get_args(RenormType)
_EPSILON = 1e-8


def renorm_code(renorm_type: str) -> int:
    """Number of a renorm type, for tensors of them.

    Raises:
        ValueError: there is no such type.
    """
    if renorm_type not in RENORM_TYPES:
        raise ValueError(f"cfg_renorm_type must be one of {', '.join(RENORM_TYPES)}, got {renorm_type!r}")
    return RENORM_TYPES.index(renorm_type)


def scales_at(
    t: float | Tensor, text_scale: float, image_scale: float, interval: tuple[float, float]
) -> tuple[float, float]:
    """The (text, image) scales that act at shifted time ``t``: the given ones while low < t <= high, else 1.

    Compared in float32, in which the grid's times are: a grid point that equals an end of the interval in float32
    counts as that end. ``t`` should be a number or a CPU tensor; one on a device would be waited for.
    """
    low, high = np.float32(interval[0]), np.float32(interval[1])
    return (text_scale, image_scale) if low < np.float32(float(t)) <= high else (1.0, 1.0)


def branches_needed(text_scale: float, image_scale: float) -> tuple[bool, bool]:
    """Whether the (text-free, image-free) velocity changes the result: the others need not be computed."""
    return text_scale > 1, text_scale > 1 and image_scale > 1


def guide(
    main_GD: Tensor,
    text_free_GD: Tensor | None,
    image_free_GD: Tensor | None,
    text_scale: float | Tensor,
    image_scale: float | Tensor,
    renorm_type: str | Tensor = "global",
    renorm_min: float | Tensor = 0.0,
    groups: Tensor | None = None,
) -> Tensor:
    """The guided velocity, float32 [G, D].

    Args:
        main_GD, text_free_GD, image_free_GD: velocities with the full context, without the text and without the
            image. A None means that nobody is guided that way. Rows of tokens that are not may hold any finite
            numbers.
        text_scale, image_scale, renorm_min: numbers, or one per token [G].
        renorm_type: a name, or one :func:`renorm_code` per token, int64 [G].
        groups: int64 [G], each in [0, G): tokens of equal number share a ``global`` factor. That is the number of the
            image, or one number for several images that are to be treated as one. None: all tokens are one group.
    """
    main_GD = main_GD.float()
    if text_free_GD is None:
        return main_GD
    code = renorm_code(renorm_type) if isinstance(renorm_type, str) else renorm_type
    kind, text, image, least = (_column(value, main_GD) for value in (code, text_scale, image_scale, renorm_min))
    early = kind == renorm_code("text_channel")
    main_sq_G1 = _squares(main_GD)

    text_free_GD = text_free_GD.float()
    text_guided_GD = text_free_GD + text * (main_GD - text_free_GD)
    guided_GD = _choose(
        early,
        lambda: text_guided_GD * _factor(main_sq_G1, _squares(text_guided_GD), least),
        lambda: text_guided_GD,
    )
    if image_free_GD is not None:
        only_text_GD, image_free_GD = guided_GD, image_free_GD.float()
        guided_GD = _choose(
            image > 1, lambda: image_free_GD + image * (only_text_GD - image_free_GD), lambda: only_text_GD
        )

    def renormed() -> Tensor:
        guided_sq_G1 = _squares(guided_GD)
        factor_G1 = _choose(
            kind == renorm_code("global"),
            lambda: _factor(_over_groups(main_sq_G1, groups), _over_groups(guided_sq_G1, groups), least),
            lambda: _factor(main_sq_G1, guided_sq_G1, least),
        )
        return guided_GD * factor_G1

    return _choose(text > 1, lambda: _choose(early, lambda: guided_GD, renormed), lambda: main_GD)


def _column(value: float | Tensor, like_GD: Tensor) -> Any:
    """A setting as something that broadcasts over [G, D]: a number as it is, a tensor as a column."""
    if isinstance(value, Tensor):
        return value.to(like_GD.device, non_blocking=True).reshape(-1, 1)
    return value


def _choose(condition: bool | Tensor, yes: Callable[[], Tensor], no: Callable[[], Tensor]) -> Tensor:
    """One of two results; both are computed only where the condition differs from token to token."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes(), no())
    return yes() if condition else no()


def _squares(x_GD: Tensor) -> Tensor:
    return x_GD.square().sum(dim=1, keepdim=True)


def _over_groups(squares_G1: Tensor, groups: Tensor | None) -> Tensor:
    """Every token's group sum: [G, 1], or [1, 1] for a single group."""
    if groups is None:
        return squares_G1.sum(dim=0, keepdim=True)
    # As many sums as there are tokens: knowing the number of groups would mean waiting for the device.
    return torch.zeros_like(squares_G1).index_add(0, groups, squares_G1)[groups]


def _factor(main_sq: Tensor, guided_sq: Tensor, least: float | Tensor) -> Tensor:
    return (main_sq.sqrt() / (guided_sq.sqrt() + _EPSILON)).clamp(min=least).clamp(max=1.0)
