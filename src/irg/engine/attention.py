"""Joint attention of new tokens over the cache: one plan serves prefill, decoding and all guidance branches.

A plan covers several *blocks*: each block is some new tokens on top of one context. Blocks on the same row (branches
of one picture, say) become one row of queries; a mask keeps them apart. New keys and values are written straight into
the slab, behind everything that is in use, so nothing is ever concatenated.

Legend: T new tokens in stream order; R rows of the slab taken part; Q queries of a row; L slots looked at;
H query heads; K key-value heads; E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irg.engine.cache import Context, KVCache
from irg.model.attention import dense_attention, to_bias


@dataclass(frozen=True)
class Block:
    """New tokens on top of a context. ``visible`` is bool [n, n] among the new tokens (None = all see all)."""

    context: Context
    tokens: int
    visible: np.ndarray | None = None


class CachedAttention:
    """The attend() of the engine. Built once per prefill, once per decoding step, once per *picture* when drawing."""

    def __init__(self, cache: KVCache, blocks: Sequence[Block], stream_of_T: np.ndarray, scratch: bool) -> None:
        """Plan.

        Args:
            blocks: in reading order; their tokens are concatenated.
            stream_of_T: stream index of each token in that order (see :class:`irg.model.inputs.StreamOrder`).
            scratch: the new tokens are not to stay (drawing): they are written behind all used slots.
        """
        self.cache = cache
        rows = sorted({block.context.row for block in blocks})
        self.low, self.high = rows[0], rows[-1] + 1
        self.picked: Tensor | None = None
        if self.high - self.low > 2 * len(rows):  # far apart: looking at all rows between would cost more
            self.picked = torch.tensor(rows)
        lane = {row: i if self.picked is not None else row - self.low for i, row in enumerate(rows)}
        lanes = len(rows) if self.picked is not None else self.high - self.low

        base = max(cache.filled(row) for row in rows) if scratch else 0
        used = dict.fromkeys(rows, 0)
        places: list[tuple[int, int, int]] = []  # (lane, first query, first slot) of every block
        for block in blocks:
            row = block.context.row
            first = base + used[row] if scratch else block.context.length
            assert scratch or used[row] == 0, "two blocks append to one row"
            places.append((lane[row], used[row], first))
            used[row] += block.tokens
        queries = max(used.values())
        length = max(first + block.tokens for block, (_, _, first) in zip(blocks, places, strict=True))
        cache.ensure_slots(length)

        visible_RQL = np.zeros((lanes, queries, length), bool)
        query_T, slot_T = [], []
        for block, (at, query, first) in zip(blocks, places, strict=True):
            n = block.tokens
            visible_RQL[at, query : query + n, : block.context.length] = True
            visible_RQL[at, query : query + n, first : first + n] = True if block.visible is None else block.visible
            query_T.append(at * queries + query + np.arange(n))
            slot_T.append(block.context.row * cache.slots + first + np.arange(n))
        visible_RQL[~visible_RQL.any(-1), 0] = True  # padding queries: softmax over nothing is NaN
        self._finish(np.concatenate(query_T), np.concatenate(slot_T), stream_of_T, visible_RQL)

    def _finish(
        self, query_T: np.ndarray, slot_T: np.ndarray, stream_of_T: np.ndarray, visible_RQL: np.ndarray
    ) -> None:
        keys = self.cache.keys_RLKE[0]
        device, dtype = keys.device, keys.dtype
        lanes, queries, self.length = visible_RQL.shape
        self.shape = (lanes, queries)
        source = np.zeros(lanes * queries, np.int64)
        source[query_T] = stream_of_T
        in_stream = np.empty((2, len(stream_of_T)), np.int64)
        in_stream[:, stream_of_T] = query_T, slot_T
        # one block per row in stream order: padding and permuting would be the identity
        self.plain = len(source) == len(stream_of_T) and bool((source == np.arange(len(source))).all())
        self.source = torch.from_numpy(source).to(device)
        self.query_T, self.slots_T = torch.from_numpy(in_stream).to(device)
        self.bias_R1QL = None
        if not visible_RQL.all():
            self.bias_R1QL = to_bias(torch.from_numpy(visible_RQL)[:, None].to(device), dtype)

    def _look(self, slab_RLKE: Tensor) -> Tensor:
        rows = slab_RLKE[self.low : self.high] if self.picked is None else slab_RLKE[self.picked]
        return rows[:, : self.length].transpose(1, 2)

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        cache = self.cache
        cache.write(layer, self.slots_T, k_TKE, v_TKE)
        q_RHQE = (q_THE if self.plain else q_THE[self.source]).unflatten(0, self.shape).transpose(1, 2)
        k_RKLE, v_RKLE = self._look(cache.keys_RLKE[layer]), self._look(cache.values_RLKE[layer])
        out_RQHE = dense_attention(q_RHQE, k_RKLE, v_RKLE, self.bias_R1QL).transpose(1, 2)
        return out_RQHE.flatten(0, 1) if self.plain else out_RQHE.flatten(0, 1)[self.query_T]
