"""The attend() seam: dense-mask attention over a pack of sequences. The reference, and the CPU path.

Linear layers see a pack without padding; only here are its samples set side by side as rows of equal length.

Legend: T tokens in stream order; R rows; S slots of a row; H query heads; K key-value heads; E head size.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from irg.model.network.token_batch import StreamOrder
from irg.sequence.layout import TokenLayout, visibility


def dense_attention(
    q_RHSE: Tensor, k_RKSE: Tensor, v_RKSE: Tensor, bias_RSS: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention with grouped key-value heads.

    With a mask, the query heads of a group become more queries of one head: no fused kernel takes both a mask and
    groups.

    Args:
        bias_RSS: broadcastable to [R, 1, queries, keys]: where a query may look (bool), or 0 there and -inf elsewhere.
        causal: the last query sees all keys, each one before it one less; without ``bias_RSS``.
    """
    heads, kv_heads, queries, keys = q_RHSE.shape[1], k_RKSE.shape[1], q_RHSE.shape[2], k_RKSE.shape[2]
    if bias_RSS is not None and heads != kv_heads:
        q_RKSE = q_RHSE.unflatten(1, (kv_heads, -1)).flatten(2, 3)
        bias_RSS = bias_RSS.repeat(*[1] * (bias_RSS.ndim - 2), heads // kv_heads, 1)
        out_RKSE = F.scaled_dot_product_attention(q_RKSE, k_RKSE, v_RKSE, attn_mask=bias_RSS)
        return out_RKSE.unflatten(2, (-1, queries)).flatten(1, 2)
    square = causal and queries == keys
    mask = _lower_right(queries, keys, q_RHSE.device) if causal and not square else bias_RSS
    grouped = heads != kv_heads
    return F.scaled_dot_product_attention(q_RHSE, k_RKSE, v_RKSE, attn_mask=mask, is_causal=square, enable_gqa=grouped)


def _lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """The causal mask whose last query sees all keys: on CUDA in the form that fused kernels take without a mask in
    memory. Elsewhere that form becomes this plain mask, and importing it takes seconds."""
    if device.type != "cuda":
        return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(queries, keys)


def to_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """True/False -> 0/-inf."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


class PackedAttention:
    """Joint attention over a training pack: every sample sees itself by the grammar's visibility, and nothing else.

    Samples of about equal length share a batch of rows (attention over padding grows with its square).
    """

    def __init__(
        self,
        layouts: Sequence[TokenLayout],
        order: StreamOrder,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        slack: float = 0.85,
    ) -> None:
        """``slack``: the shortest sample of a batch has at least this share of the longest one's length."""
        lens = np.array([len(layout) for layout in layouts])
        starts = np.cumsum(lens) - lens
        slot_T = np.empty(int(lens.sum()), np.int64)
        streams: list[np.ndarray] = []
        self.batches: list[tuple[tuple[int, int], Tensor]] = []
        first = 0
        for members in _by_length(lens, slack):
            slots = int(lens[members].max())
            stream_RS = np.zeros((len(members), slots), np.int64)  # padding points at token 0, which is masked as a key
            visible_RSS = np.zeros((len(members), slots, slots), bool)
            visible_RSS[:, :, 0] = True  # padding queries must see something, or softmax gives NaN
            for row, sample in enumerate(members):
                n = lens[sample]
                stream_RS[row, :n] = order.stream_of_T[starts[sample] : starts[sample] + n]
                visible_RSS[row, :n, :n] = visibility(layouts[sample])
                slot_T[stream_RS[row, :n]] = first + row * slots + np.arange(n)
            first += stream_RS.size
            bias_R1SS = to_bias(torch.from_numpy(visible_RSS)[:, None].to(device), dtype)
            streams.append(stream_RS.reshape(-1))
            self.batches.append(((len(members), slots), bias_R1SS))
        self.stream_of_slot = torch.from_numpy(np.concatenate(streams)).to(device)
        self.slot_of_stream = torch.from_numpy(slot_T).to(device)

    def to(self, device: torch.device | str) -> "PackedAttention":
        """The same plan on another device."""
        moved = copy(self)
        moved.stream_of_slot = self.stream_of_slot.to(device)
        moved.slot_of_stream = self.slot_of_stream.to(device)
        moved.batches = [(shape, bias_R1SS.to(device)) for shape, bias_R1SS in self.batches]
        return moved

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        sizes = [rows * slots for (rows, slots), _ in self.batches]
        slotted = (x[self.stream_of_slot].split(sizes) for x in (q_THE, k_TKE, v_TKE))
        out = []
        for (shape, bias_R1SS), *qkv in zip(self.batches, *slotted, strict=True):
            q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)
            out_RHSE = dense_attention(q, k, v, bias_R1SS.to(q.dtype))
            out.append(out_RHSE.transpose(1, 2).flatten(0, 1))
        return torch.cat(out)[self.slot_of_stream]


def _by_length(lens: np.ndarray, slack: float) -> list[list[int]]:
    """Sample indices in groups of similar length, longest first."""
    groups: list[list[int]] = []
    for index in np.argsort(-lens, kind="stable").tolist():
        if groups and lens[index] >= slack * lens[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
