"""What one forward of the unified model takes: tokens in stream order, built from layouts.

Reading order is how a sequence is written; stream order is how the network runs it: all tokens of the understanding
expert, then all tokens of the generation expert, each in reading order.

Legend: T tokens of the whole pack; U understanding, G generation tokens; P ViT patches; D values per token;
R rows (samples); S longest row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irg.sequence.layout import UND, TokenKind, TokenLayout


@dataclass
class Repeated:
    """What many forwards of one batch have in common, computed by the first of them.

    Attributes:
        times_S: all times that will come, if they are known.
        step: which of them this forward's latents are all at; None: the batch's ``times_G`` say it.
        kept: tensors by name.
    """

    times_S: Tensor | None
    step: int | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What was kept under a name, computed now if it is not there."""
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]


@dataclass
class TokenBatch:
    """Inputs of one forward. Latents and times are those of the generation stream, clean ones at time 0.

    ``times_G`` may be a single time for all latents.
    """

    ids_U: Tensor
    positions_T: Tensor
    patch_rows_P: Tensor | None = None  # where in the understanding stream the ViT tokens go
    patches_PD: Tensor | None = None
    patch_cells_P: Tensor | None = None
    patch_lens: list[int] | None = None
    latents_GD: Tensor | None = None
    latent_cells_G: Tensor | None = None
    times_G: Tensor | None = None
    repeated: Repeated | None = None  # where only latents and times change from one forward to the next

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What does not change from one forward to the next: kept, if there will be more of them."""
        return compute() if self.repeated is None else self.repeated.once(name, compute)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device; the host does not wait for copies from pinned memory."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)

    def pinned(self) -> "TokenBatch":
        """The same batch in pinned memory."""
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **pinned)


@dataclass(frozen=True)
class StreamOrder:
    """The permutation between reading order and stream order of a pack of sequences (numpy int64)."""

    und_T: np.ndarray  # reading-order index of each understanding token
    gen_T: np.ndarray  # reading-order index of each generation token
    stream_of_T: np.ndarray  # stream index of each reading-order token

    @staticmethod
    def of(layouts: Sequence[TokenLayout]) -> "StreamOrder":
        """Order of the concatenation of ``layouts``."""
        experts_T = np.concatenate([layout.experts_T for layout in layouts])
        und_T, gen_T = np.flatnonzero(experts_T == UND), np.flatnonzero(experts_T != UND)
        stream_of_T = np.empty(len(experts_T), np.int64)
        stream_of_T[und_T] = np.arange(len(und_T))
        stream_of_T[gen_T] = len(und_T) + np.arange(len(gen_T))
        return StreamOrder(und_T, gen_T, stream_of_T)


def token_batch(
    layouts: Sequence[TokenLayout],
    order: StreamOrder,
    patches_PD: Tensor | None = None,
    latents_GD: Tensor | None = None,
    times_G: Tensor | None = None,
) -> TokenBatch:
    """Lay several sequences end to end as one forward's input.

    Pixel contents are given in reading order: all patches, all latent tokens.
    """
    ids_T, positions_T, kinds_T, cells_T = (
        np.concatenate([getattr(layout, name) for layout in layouts])
        for name in ("ids_T", "positions_T", "kinds_T", "cells_T")
    )
    kinds_U = kinds_T[order.und_T]
    patch_rows_P = np.flatnonzero(kinds_U == TokenKind.PATCH)
    batch = TokenBatch(
        ids_U=torch.from_numpy(ids_T[order.und_T]),
        positions_T=torch.from_numpy(positions_T[np.concatenate([order.und_T, order.gen_T])]),
    )
    if len(patch_rows_P):
        lens = [
            int((layout.kinds_T[start : start + n] == TokenKind.PATCH).sum())
            for layout in layouts
            for start, n in zip(np.cumsum([0, *layout.split_lens[:-1]]), layout.split_lens, strict=True)
        ]
        batch.patch_rows_P = torch.from_numpy(patch_rows_P)
        batch.patches_PD = patches_PD
        batch.patch_cells_P = torch.from_numpy(cells_T[order.und_T][patch_rows_P])
        batch.patch_lens = [n for n in lens if n]
    if len(order.gen_T):
        batch.latents_GD, batch.times_G = latents_GD, times_G
        batch.latent_cells_G = torch.from_numpy(cells_T[order.gen_T])
    return batch
