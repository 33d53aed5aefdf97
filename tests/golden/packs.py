"""The recorded training samples as parts, and a packed batch's fields out of layouts (cases i_*)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from irg.model.network.config import ModelConfig
from irg.sequence.layout import IGNORE, UND, TokenKind, TokenLayout, visibility
from irg.sequence.parts import Latents, Part, Patches, Target, Text

from .fixture import Case, close, equal, latent_grid, patches_of, read_image, text


def images_of(case: Case, sample: int) -> dict[str, Image.Image]:
    """A sample's images by their role: ``target``, ``cond``."""
    found = {}
    for name in case.names:
        role = name.removeprefix(f"image_s{sample}_").removesuffix("_u8")
        if name == f"image_s{sample}_{role}_u8":
            found[role] = read_image(case, name)
    return found


def vae_part(config: ModelConfig, image: Image.Image, target: bool) -> Part:
    """An image as a block of latents; its content is the pixels, normalized."""
    pixels = config.vae_resize(image)
    return (Target if target else Latents)(latent_grid(config, *pixels.shape[1:]), pixels)


def sample_parts(
    config: ModelConfig,
    plan: Sequence[dict[str, Any]],
    texts: Sequence[Sequence[int]],
    images: dict[str, Image.Image],
    grids: Sequence[Sequence[int]] | None = None,
) -> list[Part]:
    """A sample by its plan, whose items are texts (taken in order), VAE and ViT images.

    Args:
        grids: latent grid of each VAE item, where a plan uses one image in several roles; else ``loss`` decides
            between target and condition.
    """
    remaining, vae_items = iter(texts), iter(grids or ())
    last = "cond"
    parts: list[Part] = []
    for item in plan:
        loss = bool(item["loss"])
        if item["type"] == "text":
            parts.append(text(next(remaining), loss))
        elif item["type"] == "vae_image":
            last = "target" if loss else "cond"
            if grids is not None:
                grid = tuple(next(vae_items))
                last = next(role for role in ("cond", "target") if vae_part(config, images[role], loss).grid == grid)
            parts.append(vae_part(config, images[last], loss))
        else:
            parts.append(patches_of(config, images[last if grids is not None else "cond"]))
    return parts


def training_samples(case: Case, config: ModelConfig) -> list[list[Part]]:
    """All samples of ``i_training``."""
    texts = case.values["texts"]
    return [
        sample_parts(config, plan, texts[f"sample{i}"], images_of(case, i))
        for i, plan in enumerate(case.values["sequence_plan"])
    ]


def loss_weights(parts: Sequence[Part]) -> torch.Tensor:
    """CE weight of every loss token: 1 / sqrt(n + 1) for a text of n ids, which has n + 1 of them."""
    lens = [len(part.ids) + 1 for part in parts if isinstance(part, Text) and part.loss]
    return torch.tensor([1 / math.sqrt(n) for n in lens for _ in range(n)], dtype=torch.float32)


def check_packing(
    case: Case, prefix: str, values: str, layouts: Sequence[TokenLayout], samples: list[list[Part]]
) -> None:
    """Hold every field of a recorded packed batch against layouts, exactly.

    Args:
        prefix: of the tensors.
        values: prefix of the case's values.
        samples: the parts of which ``layouts`` are the layouts; what was dropped is not there, or a gap.
    """
    ids, positions, kinds, cells, labels = (
        np.concatenate([getattr(layout, f"{name}_T") for layout in layouts])
        for name in ("ids", "positions", "kinds", "cells", "labels")
    )
    where = {kind: np.flatnonzero(kinds == kind) for kind in TokenKind}
    latent, loss = np.flatnonzero(kinds >= TokenKind.LATENT), np.flatnonzero(labels != IGNORE)
    parts = [part for sample in samples for part in sample]
    fields = {
        "packed_text_ids": ids[where[TokenKind.TEXT]],
        "packed_text_indexes": where[TokenKind.TEXT],
        "packed_position_ids": positions,
        "packed_latent_position_ids": cells[latent],
        "packed_vae_token_indexes": latent,
        "packed_vit_position_ids": cells[where[TokenKind.PATCH]],
        "packed_vit_token_indexes": where[TokenKind.PATCH],
        "vit_token_seqlens": [part.tokens for part in parts if isinstance(part, Patches)],
        "mse_loss_indexes": where[TokenKind.NOISY],
        "packed_label_ids": labels[loss],
        "ce_loss_indexes": loss,
    }
    for name, got in fields.items():
        equal(got, case.integers(prefix + name), prefix + name)
    if len(loss):
        close(loss_weights(parts), case[f"{prefix}ce_loss_weights"], f"{prefix}ce_loss_weights", atol=1e-6)
    experts = np.concatenate([layout.experts_T for layout in layouts])
    equal(np.flatnonzero(experts != UND), latent, "tokens of the generation expert")
    for index, layout in enumerate(layouts):
        equal(visibility(layout), case[f"{prefix}mask{index}"], f"{prefix}mask{index}")
    _check_values(case.values, values, layouts, parts)
    _check_noise_levels(case, prefix, parts)


def _check_values(recorded: dict[str, Any], prefix: str, layouts: Sequence[TokenLayout], parts: Sequence[Part]) -> None:
    def value(name: str) -> Any:
        return recorded[prefix + name] if prefix + name in recorded else recorded[name]

    assert [mode.name.lower() for layout in layouts for mode in layout.split_modes] == value("attn_modes")
    assert [n for layout in layouts for n in layout.split_lens] == value("split_lens")
    assert [len(layout) for layout in layouts] == value("sample_lens")
    assert sum(len(layout) for layout in layouts) == value("sequence_length")
    grids = [list(part.grid) for part in parts if isinstance(part, Latents | Target)]
    assert grids == value("patchified_vae_latent_shapes")


def _check_noise_levels(case: Case, prefix: str, parts: Sequence[Part]) -> None:
    """One normal number per target, minus infinity for an image that is read."""
    blocks = [part for part in parts if isinstance(part, Latents | Target)]
    pieces = case[f"{prefix}packed_timesteps"].split([part.tokens for part in blocks])
    for part, piece in zip(blocks, pieces, strict=True):
        assert len(piece.unique()) == 1
        assert bool(torch.isfinite(piece[0])) == isinstance(part, Target)
