"""The attend() seam for training packs on a GPU: flex attention, its mask read off the grammar's rule.

No dense mask is built: the kernel evaluates the rule, and tiles that are masked altogether are skipped. Queries and
keys stay in stream order; each token has four facts (sample, block, mode, place in reading order).

Legend: T tokens in stream order; H query heads; K key-value heads; E head size.
"""

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from irg.model.network.token_batch import StreamOrder
from irg.sequence.layout import TokenLayout, may_attend

MIN_HEAD_DIM = 16
"""Values of a head that the compiled kernel takes at least."""

KEEPS_COMPILED = hasattr(torch.ops.higher_order, "inductor_compiled_code")
"""Whether this PyTorch shows compiled functions to selective checkpointing as one operation."""


class FlexAttention:
    """Joint attention over a training pack, as :class:`irg.model.network.packed_attention.PackedAttention` computes it.

    On CUDA the kernel and the tile plan are compiled. Elsewhere the uncompiled reference runs, which holds all scores:
    it is there for tests.
    """

    def __init__(self, layouts: Sequence[TokenLayout], order: StreamOrder, device: torch.device | str = "cpu") -> None:
        lens = [len(layout) for layout in layouts]
        facts_4T = np.stack(
            [
                np.repeat(np.arange(len(lens)), lens),
                np.concatenate([layout.splits_T for layout in layouts]),
                np.concatenate([np.asarray(layout.split_modes, np.int64)[layout.splits_T] for layout in layouts]),
                np.arange(sum(lens)),
            ]
        )[:, np.concatenate([order.und_T, order.gen_T])]
        self.facts_4T = torch.from_numpy(facts_4T.astype(np.int32)).to(device)
        self._mask: BlockMask | None = None

    def to(self, device: torch.device | str) -> "FlexAttention":
        """The same plan on another device, with its mask: made here, not inside a layer that is compiled or run again
        for its gradients."""
        moved = copy(self)
        moved.facts_4T = self.facts_4T.to(device)
        moved._mask = moved._made_mask()
        return moved

    @property
    def mask(self) -> BlockMask:
        """Which tiles are seen whole, in part, or not at all; made once."""
        if self._mask is None:
            self._mask = self._made_mask()
        return self._mask

    def _made_mask(self) -> BlockMask:
        sample_T, split_T, mode_T, order_T = self.facts_4T.unbind()

        def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Any:
            one = split_T[q], mode_T[q], order_T[q]
            return (sample_T[q] == sample_T[k]) & may_attend(one, (split_T[k], mode_T[k], order_T[k]))

        tokens, cuda = self.facts_4T.shape[1], self.facts_4T.is_cuda
        create = _compiled_mask() if cuda else create_block_mask
        made: BlockMask = create(visible, None, None, tokens, tokens, device=str(self.facts_4T.device))
        return made

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THE, k_TKE, v_TKE))
        grouped = q_THE.shape[1] != k_TKE.shape[1]
        attend = _compiled() if q_THE.is_cuda else flex_attention
        out: Any = attend(q, k, v, block_mask=self.mask, enable_gqa=grouped)
        return out[0].transpose(0, 1)


@lru_cache
def _compiled() -> Any:
    """The kernel; its results can be kept by selective checkpointing, which otherwise sees nothing compiled."""
    options: dict[str, Any] | None = {"wrap_inductor_compiled_regions": True} if KEEPS_COMPILED else None
    return torch.compile(flex_attention, dynamic=True, options=options)


@lru_cache
def _compiled_mask() -> Any:
    return torch.compile(create_block_mask, dynamic=True)
