"""Reading golden folders, and building our inputs from what they record.

Run: ``pytest tests/golden --golden DIR`` (``--golden-device cuda`` for the GPU). Nothing about a particular folder is
written down here or in the tests: sizes, ids and settings come from ``config.json`` and the cases' JSON files.

A case is ``X.json`` (``about``, ``values``, ``tensors``) and ``X.safetensors``; tensors are named ``sub-case.what``.
:class:`Case` opens one; :func:`sub_cases` lists the sub-cases that hold some tensor, so a test loops over whatever the
folder has. The fixtures ``case`` (a function from name to :class:`Case`), ``loaded`` (the network), ``device`` and
``case_names`` are in ``conftest.py``.

To add a case that runs on the engine's cache: a folder's texts are ids (``values`` of the case, or its packed inputs
``*.in.*``), so build parts with :func:`text`, :func:`patches_of` and, from an encode with the recorded ``*eps``,
:func:`latents_of`; append them to a context with the engine's prefill; hold the result against :meth:`Case.context`
(keys, values, KV lengths, rope positions) with :func:`close` and :func:`equal`. Guidance contexts are the same parts
without some. A batch's caches are laid end to end: :meth:`Context.of` cuts one sample out. Settings of sampling runs
are ``case.values["<run>.settings"]``, the IRG sequence is ``case.values["steps_in_call_order"]``.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from irg.model.network.config import ModelConfig
from irg.model.network.unified import UnifiedModel
from irg.sequence.images import patchify
from irg.sequence.parts import Latents, Patches, Target, Text

ATOL = 1e-4  # what a correct float32 implementation may differ by


@dataclass(frozen=True)
class Context:
    """A recorded context, or several: keys and values [layer, token, kv head, head size], one length each."""

    keys: Tensor | None
    values: Tensor | None
    lens: list[int]
    positions: list[int]

    def of(self, sample: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one sample of a batch."""
        assert self.keys is not None and self.values is not None
        start = sum(self.lens[:sample])
        rows = slice(start, start + self.lens[sample])
        return self.keys[:, rows], self.values[:, rows]


class Case:
    """One recorded case. Tensors are read when they are asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.path = name, folder / f"{name}.safetensors"
        self.record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    @property
    def about(self) -> str:
        return self.record["about"]

    @property
    def values(self) -> dict[str, Any]:
        """Settings and outputs that are not tensors."""
        return self.record.get("values", {})

    @cached_property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self.record["tensors"])

    def __contains__(self, name: str) -> bool:
        return name in self.record["tensors"]

    def __getitem__(self, name: str) -> Tensor:
        """A tensor (on the CPU)."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def what(self, name: str) -> str:
        """The folder's own words on a tensor."""
        return self.record["tensors"][name]["what"]

    def integers(self, name: str) -> list[int]:
        """A tensor of whole numbers as a list; one that is not there is empty."""
        return self[name].tolist() if name in self else []

    def starting(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with ``prefix``, by the rest of their name."""
        return {name.removeprefix(prefix): self[name] for name in self.names if name.startswith(prefix)}

    def context(self, prefix: str) -> Context:
        """The context ``prefix``.k, .v, .kv_lens, .rope."""
        cached = f"{prefix}.k" in self
        k, v = (self[f"{prefix}.k"], self[f"{prefix}.v"]) if cached else (None, None)
        return Context(k, v, self.integers(f"{prefix}.kv_lens"), self.integers(f"{prefix}.rope"))


def sub_cases(case: Case, what: str) -> list[str]:
    """Sub-cases that have a tensor ``.what``, in the file's order.

    Raises:
        AssertionError: none has. A test that loops over nothing would pass on nothing.
    """
    found = [name.removesuffix(f".{what}") for name in case.names if name.endswith(f".{what}")]
    assert found, f"{case.name} has no sub-case with {what}"
    return found


def numbered(case: Case, pattern: str) -> Iterator[Tensor]:
    """Tensors ``pattern.format(0)``, ``pattern.format(1)``, ... for as long as there are any (at least one)."""
    index = 0
    while (name := pattern.format(index)) in case:
        yield case[name]
        index += 1
    assert index, f"{case.name} has no {pattern.format(0)}"


# --------------------------------------------------------------------------------------------------------- comparing


def close(got: Tensor, wanted: Tensor, what: str, atol: float = ATOL) -> None:
    """Equal shapes, and no value further than ``atol``. Says how far and where, in one line."""
    got, wanted = got.detach().cpu(), wanted.detach()
    assert got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(wanted.shape)}"
    if got.numel() == 0:
        return
    difference = (got.double() - wanted.double()).abs()
    worst = int(difference.argmax())
    place = tuple(int(i) for i in np.unravel_index(worst, got.shape))
    assert bool(torch.isfinite(difference).all()), f"{what}: not finite"
    assert difference.max() <= atol, f"{what}: off by {difference.max():.3g} at {place} (at most {atol:g})"


def close_relative(got: Tensor, wanted: Tensor, what: str, noise: float = 0.0, rtol: float = 1e-3) -> None:
    """The difference's norm is at most ``rtol`` of the wanted tensor's norm.

    Args:
        noise: a wanted tensor of a smaller norm is zero but for rounding, and only has to be that small.
    """
    got, wanted = got.detach().cpu().double(), wanted.double()
    assert got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(wanted.shape)}"
    error, size = (got - wanted).norm().item(), wanted.norm().item()
    if size < noise:
        assert got.norm() < noise, f"{what}: norm {got.norm():.3g} where there should be none"
    else:
        assert error <= rtol * size, f"{what}: off by {error:.3g}, norm {size:.3g}"


def equal(got: Any, wanted: Any, what: str) -> None:
    """Exactly equal whole numbers: sequences, arrays or tensors."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"{what}: shape {got.shape} instead of {wanted.shape}"
    wrong = np.argwhere(got != wanted)
    assert not len(wrong), f"{what}: {len(wrong)} values differ, the first at {tuple(wrong[0].tolist())}"


def close_uint8(got: np.ndarray, wanted: Tensor, pixels_3HW: Tensor, what: str) -> None:
    """Equal gray levels; one level off is forgiven only where the recorded value lies on a truncation edge.

    Args:
        pixels_3HW: the recorded decoder output of which ``wanted`` is the truncation.
    """
    levels_HW3 = ((pixels_3HW.double() / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    edge = np.abs(levels_HW3 - np.round(levels_HW3)) < 255 * ATOL
    off = np.abs(got.astype(int) - wanted.numpy().astype(int))
    assert off.shape == edge.shape, f"{what}: shape {off.shape} instead of {edge.shape}"
    assert off.max() <= 1 and not (off[~edge] > 0).any(), f"{what}: {int((off > 0).sum())} grey levels differ"


# ---------------------------------------------------------------------------------------------------- building inputs


def read_image(case: Case, name: str) -> Image.Image:
    """A recorded uint8 image [H, W, 3]."""
    return Image.fromarray(case[name].numpy())


def text(ids: Sequence[int], loss: bool = False) -> Text:
    """A text of ids as the folder lists them, without bos and eos."""
    return Text(tuple(ids), loss)


def patches_of(config: ModelConfig, image: Image.Image) -> Patches:
    """An image to be read by the ViT, resized by the model's rule."""
    pixels_3HW = config.vit_resize(image)
    patch = config.vit.patch_size
    grid = (pixels_3HW.shape[1] // patch, pixels_3HW.shape[2] // patch)
    return Patches(grid, patchify(pixels_3HW, patch))


def latent_grid(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """Latent tokens of an image of these pixels."""
    return height // config.image_stride, width // config.image_stride


def latents_of(config: ModelConfig, latent_chw: Tensor, target: bool = False) -> Latents | Target:
    """An encoded image [C, h, w], to be read or to be drawn."""
    grid = (latent_chw.shape[1] // config.latent_patch_size, latent_chw.shape[2] // config.latent_patch_size)
    return (Target if target else Latents)(grid, latent_chw)


def pad_together(pixels: Sequence[Tensor]) -> Tensor:
    """Images [3, H, W] of several sizes as one batch, zeros (mid gray) at the right and bottom."""
    height, width = (max(p.shape[side] for p in pixels) for side in (1, 2))
    batch = torch.zeros(len(pixels), pixels[0].shape[0], height, width)
    for row, p in zip(batch, pixels, strict=True):
        row[:, : p.shape[1], : p.shape[2]] = p
    return batch


def crop_apart(latents_BChw: Tensor, grids: Sequence[tuple[int, int]], patch: int) -> list[Tensor]:
    """The inverse for latents: each image's own part of a padded batch, by its grid of tokens."""
    pairs = zip(latents_BChw, grids, strict=True)
    return [latent[:, : rows * patch, : columns * patch] for latent, (rows, columns) in pairs]


def to_reading_order(model_streams: tuple[Tensor, Tensor | None], order: Any) -> Tensor:
    """Streams [U, C], [G, C] of :class:`UnifiedModel` as one tensor [T, C] in reading order."""
    und, gen = model_streams
    stream = und if gen is None else torch.cat([und, gen])
    return stream[torch.from_numpy(order.stream_of_T).to(stream.device)]


def trainable(model: UnifiedModel) -> dict[str, torch.nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
