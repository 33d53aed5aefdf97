"""Samples to the tensors of a pack.

Legend: T tokens; U, G tokens of the understanding and generation stream; D values per token; M noised target tokens;
L text tokens with loss.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irg.learning.costs import Work, work_of
from irg.learning.data.samples import ImageContent
from irg.learning.modes import MODES, Mode
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.config import ModelConfig
from irg.model.network.flex_attention import FlexAttention
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.network.token_batch import StreamOrder, TokenBatch, token_batch
from irg.sequence.images import patchify
from irg.sequence.layout import IGNORE, TokenKind, TokenLayout
from irg.sequence.parts import Latents, Part, Patches, Target

PackAttention = PackedAttention | SharedPrefixAttention | FlexAttention
Attention = Callable[[Sequence[TokenLayout], StreamOrder], PackAttention]

EMPTY = object()
"""Content of an image of zeros: see :func:`dummy_sample`."""
PIXELS_AT_ONCE = 1 << 21  # that the autoencoder reads in one call: its first layers hold 128 numbers for each


@dataclass
class UnreadImages:
    """Images that the autoencoder has yet to read: float [3, H, W] each, and which one every block of latents shows
    (-1: zeros)."""

    pixels: list[Tensor]
    of_block: list[int]


@dataclass
class Pack:
    """One training step's inputs. ``clean_GD`` and ``normal_G`` are what :func:`.objective.flow_targets` takes;
    ``clean_GD`` waits for the images in ``unread``, if there are any."""

    batch: TokenBatch
    attend: PackAttention
    clean_GD: Tensor | None
    normal_G: Tensor
    loss_rows_L: Tensor
    labels_L: Tensor
    target_rows_M: Tensor
    modes: dict[str, int] = field(default_factory=dict)
    mode_of_loss_L: Tensor | None = None  # indices into MODES, like the next
    mode_of_target_M: Tensor | None = None
    image_of_target_M: Tensor | None = None  # numbers of the images that the targets belong to, rising
    tokens: int = 0
    longest: int = 0
    work: Work | None = None
    unread: UnreadImages | None = None
    state: dict[str, Any] = field(default_factory=dict)  # of the data stream after this pack: what a checkpoint keeps

    def to(self, device: torch.device | str) -> "Pack":
        """The same pack on another device; the host does not wait for copies from pinned memory."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, batch=self.batch.to(device), attend=self.attend.to(device), **moved)

    def pinned(self) -> "Pack":
        """The same pack in pinned memory, its unread images included."""
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, Tensor)}
        if self.unread is not None:
            pixels = [image.pin_memory() for image in self.unread.pixels]
            pinned["unread"] = UnreadImages(pixels, self.unread.of_block)
        return replace(self, batch=self.batch.pinned(), **pinned)


def pack_of(
    parts: Sequence[Sequence[Part]],
    layouts: Sequence[TokenLayout],
    config: ModelConfig,
    normal: Callable[[], float],
    modes: Sequence[Mode] = (),
    attention: Attention = PackedAttention,
) -> Pack:
    """Samples, whose images are :class:`ImageContent` (or :data:`EMPTY`), as a pack; see :func:`assemble`."""
    flat = [part for sample in parts for part in sample]
    patches = [_patches(part.content, config) for part in flat if isinstance(part, Patches)]
    shown = [part.content for part in flat if isinstance(part, Latents | Target)]
    latents: list[Tensor] | UnreadImages = []
    if any(isinstance(content, ImageContent) and content.latents_Zhw is None for content in shown):
        images = list({id(content): content for content in shown if content is not EMPTY}.values())
        numbers = {id(image): number for number, image in enumerate(images)}
        latents = UnreadImages([image.tensor() for image in images], [numbers.get(id(c), -1) for c in shown])
    elif shown:
        latents = [_latents(content, config) for content in shown]
    return assemble(layouts, flat, patches, latents, normal, modes, attention)


def _patches(content: Any, config: ModelConfig) -> Tensor:
    return torch.zeros(1, config.vit.patch_values) if content is EMPTY else content.patches(config)


def _latents(content: Any, config: ModelConfig) -> Tensor:
    if content is EMPTY:
        return torch.zeros(1, config.latent_values)
    return patchify(content.latents_Zhw, config.latent_patch_size)


def dummy_sample(samples: Sequence[Sequence[Part]]) -> list[Part] | None:
    """A sample of two empty image tokens for a pack that has no ViT patches or no latents, else None.

    Sharded weights are gathered by all ranks together, so every rank must run every layer; the dummy carries no loss
    and no other sample sees it, so no gradient changes.
    """
    kinds = {type(part) for sample in samples for part in sample}
    if Patches in kinds and (Latents in kinds or Target in kinds):
        return None
    return [Patches((1, 1), EMPTY), Latents((1, 1), EMPTY)]


def assemble(
    layouts: Sequence[TokenLayout],
    parts: Sequence[Part],
    patches: Sequence[Tensor],
    latents: Sequence[Tensor] | UnreadImages,
    normal: Callable[[], float],
    modes: Sequence[Mode] = (),
    attention: Attention = PackedAttention,
) -> Pack:
    """Tensors of a pack. ``patches`` [N, D] and ``latents`` [N, D] are listed in reading order; ``normal`` draws the
    one number per target that decides its noise level (clean images get -inf). ``modes``: of the samples."""
    order = StreamOrder.of(layouts)
    levels = [
        (part.tokens, normal() if isinstance(part, Target) else -np.inf)
        for part in parts
        if isinstance(part, Latents | Target)
    ]
    image_G = np.repeat(np.arange(len(levels)), [k for k, _ in levels])
    normal_G = torch.tensor(np.repeat([n for _, n in levels], [k for k, _ in levels]), dtype=torch.float32)
    unread = latents if isinstance(latents, UnreadImages) else None
    clean_GD = None if isinstance(latents, UnreadImages) or not latents else torch.cat(list(latents)).to(torch.float32)
    batch = token_batch(layouts, order, torch.cat(list(patches)) if patches else None, clean_GD, None)
    labels_T = np.concatenate([layout.labels_T for layout in layouts])
    kinds_T = np.concatenate([layout.kinds_T for layout in layouts])
    lens = [len(layout) for layout in layouts]
    numbers = [MODES.index(mode) for mode in modes]
    mode_T = np.repeat([*numbers, *[-1] * (len(lens) - len(numbers))], lens)  # -1: a dummy sample, or not given
    labels_U = labels_T[order.und_T]
    rows_L, rows_M = np.flatnonzero(labels_U != IGNORE), np.flatnonzero(kinds_T[order.gen_T] == TokenKind.NOISY)
    return Pack(
        batch=batch,
        attend=attention(layouts, order),
        clean_GD=clean_GD,
        normal_G=normal_G,
        loss_rows_L=torch.from_numpy(rows_L),
        labels_L=torch.from_numpy(labels_U[rows_L]),
        target_rows_M=torch.from_numpy(rows_M),
        modes={mode: list(modes).count(mode) for mode in dict.fromkeys(modes)},
        mode_of_loss_L=torch.from_numpy(mode_T[order.und_T][rows_L]),
        mode_of_target_M=torch.from_numpy(mode_T[order.gen_T][rows_M]),
        image_of_target_M=torch.from_numpy(image_G[rows_M]),
        tokens=len(labels_T),
        longest=max(lens),
        work=work_of(layouts),
        unread=unread,
    )


@torch.no_grad()
def read_images(
    pack: Pack, autoencoder: Autoencoder, config: ModelConfig, generator: torch.Generator, sample: bool = False
) -> None:
    """Let the autoencoder read a pack's unread images; sets ``clean_GD``. Each image is read once, however often
    it stands in the pack. With ``sample`` the latents are drawn from the posterior instead of being its mean."""
    if pack.unread is None:
        return
    weight = next(autoencoder.parameters())
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for index, pixels in enumerate(pack.unread.pixels):
        by_size[pixels.shape].append(index)
    tokens: dict[int, Tensor] = {-1: torch.zeros(1, config.latent_values, device=weight.device)}
    for (_, height, width), members in by_size.items():
        count = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(members), count):
            some = members[start : start + count]
            on_device = [pack.unread.pixels[i].to(weight.device, non_blocking=True) for i in some]
            x_N3HW = torch.stack(on_device).to(weight.dtype)
            shape = (
                len(some),
                config.autoencoder.z_channels,
                height // config.autoencoder.downsample,
                width // config.autoencoder.downsample,
            )
            eps = torch.randn(shape, generator=generator).to(x_N3HW) if sample else None
            for i, latents in zip(some, autoencoder.encode(x_N3HW, eps).to(torch.float32), strict=True):
                tokens[i] = patchify(latents, config.latent_patch_size)
    pack.clean_GD, pack.unread = torch.cat([tokens[i] for i in pack.unread.of_block]), None
