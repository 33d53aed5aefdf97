"""The attend() seam for training packs on a CPU: blocks that nobody else sees share the keys of their context.

A sample is a context (texts, images read) and, mostly at its end, such leaves: noised copies of one target, or sibling
texts that continue the same context. A dense mask over all of it is mainly empty. Here every token is scored against
the context's keys, and a leaf besides against itself alone, by plain matrix products (``bench/pack_attention.py``).

Legend: T tokens in stream order; R samples side by side; C slots of the context; M leaves of a sample; B slots of
each; N = M x B; H query heads; K key-value heads; E head size.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irg.model.network.packed_attention import to_bias
from irg.model.network.token_batch import StreamOrder
from irg.sequence.layout import SplitMode, TokenLayout, visibility


@dataclass(frozen=True)
class _Group:
    """Samples of about equal shape. Slots of a row: C of the context, then M x B of the leaves."""

    rows: int
    context: int
    leaves: int
    block: int
    context_bias_R1CC: Tensor
    leaf_bias_R1NC: Tensor | None
    own_bias_R1MBB: Tensor | None  # or [R, 1, M, 1, B] where no leaf is causal; None: no block is padded either

    @property
    def slots(self) -> int:
        return self.rows * (self.context + self.leaves * self.block)

    def to(self, device: torch.device | str) -> "_Group":
        biases: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **biases)


@dataclass(frozen=True)
class _Split:
    """A sample's tokens, by their places in reading order."""

    context_C: np.ndarray
    leaves: tuple[np.ndarray, ...]
    visible_TT: np.ndarray
    causal: bool  # a leaf is a text

    @staticmethod
    def of(layout: TokenLayout) -> "_Split":
        ends = np.cumsum(layout.split_lens)
        blocks = [np.arange(end - n, end) for end, n in zip(ends, layout.split_lens, strict=True)]
        is_leaf = [mode in (SplitMode.NOISE, SplitMode.SIBLING) for mode in layout.split_modes]
        context = [block for block, leaf in zip(blocks, is_leaf, strict=True) if not leaf]
        leaves = tuple(block for block, leaf in zip(blocks, is_leaf, strict=True) if leaf)
        context_C = np.concatenate(context) if context else np.zeros(0, np.int64)
        return _Split(context_C, leaves, visibility(layout), SplitMode.SIBLING in layout.split_modes)

    @property
    def shape(self) -> tuple[bool, int, int, int]:
        """(whether a leaf is a text, leaves, tokens of the largest, tokens of the context)."""
        return self.causal, len(self.leaves), max((len(b) for b in self.leaves), default=0), len(self.context_C)


class SharedPrefixAttention:
    """Joint attention over a training pack, as :class:`.packed_attention.PackedAttention` computes it."""

    def __init__(
        self, layouts: Sequence[TokenLayout], order: StreamOrder, device: torch.device | str = "cpu", slack: float = 0.8
    ) -> None:
        """``slack``: the shortest context of a group has at least this share of the longest one's length."""
        splits = [_Split.of(layout) for layout in layouts]
        lens = np.array([len(layout) for layout in layouts])
        starts = np.cumsum(lens) - lens
        slot_T = np.empty(int(lens.sum()), np.int64)
        streams, self.groups, first = [], list[_Group](), 0
        for members in _alike([split.shape for split in splits], slack):
            group, places_RS = _group([splits[m] for m in members])
            stream_RS = np.zeros(places_RS.shape, np.int64)  # padding points at token 0, which is masked
            for row, member in enumerate(members):
                held = np.flatnonzero(places_RS[row] >= 0)
                tokens = order.stream_of_T[starts[member] + places_RS[row, held]]
                stream_RS[row, held] = tokens
                slot_T[tokens] = first + row * places_RS.shape[1] + held
            streams.append(stream_RS.reshape(-1))
            self.groups.append(group.to(device))
            first += stream_RS.size
        self.stream_of_slot = torch.from_numpy(np.concatenate(streams)).to(device)
        self.slot_of_stream = torch.from_numpy(slot_T).to(device)

    def to(self, device: torch.device | str) -> "SharedPrefixAttention":
        """The same plan on another device."""
        moved = copy(self)
        moved.stream_of_slot = self.stream_of_slot.to(device)
        moved.slot_of_stream = self.slot_of_stream.to(device)
        moved.groups = [group.to(device) for group in self.groups]
        return moved

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        repeats = q_THE.shape[1] // k_TKE.shape[1]
        if repeats > 1:
            k_TKE, v_TKE = (x.repeat_interleave(repeats, dim=1) for x in (k_TKE, v_TKE))
        q_THE = q_THE * q_THE.shape[-1] ** -0.5
        sizes = [group.slots for group in self.groups]
        slotted = (x[self.stream_of_slot].split(sizes) for x in (q_THE, k_TKE, v_TKE))
        out = [_attend(group, *qkv) for group, *qkv in zip(self.groups, *slotted, strict=True)]
        return torch.cat(out)[self.slot_of_stream]


def _attend(group: _Group, *qkv: Tensor) -> Tensor:
    """Attention of one group: [slots, H, E] each, q scaled -> [slots, H, E]."""
    heads = [x.unflatten(0, (group.rows, -1)).transpose(1, 2) for x in qkv]
    (q_RHCE, q_RHNE), (k_RHCE, k_RHNE), (v_RHCE, v_RHNE) = (x.tensor_split([group.context], dim=2) for x in heads)
    out = []
    if group.context:
        scores_RHCC = q_RHCE @ k_RHCE.transpose(-1, -2) + group.context_bias_R1CC.to(q_RHCE.dtype)
        out.append(scores_RHCC.softmax(-1) @ v_RHCE)
    if group.leaves:
        blocks = (group.leaves, group.block)
        q_RHMBE, k_RHMBE, v_RHMBE = (x.unflatten(2, blocks) for x in (q_RHNE, k_RHNE, v_RHNE))
        own_RHMBB = q_RHMBE @ k_RHMBE.transpose(-1, -2)
        if group.own_bias_R1MBB is not None:
            own_RHMBB = own_RHMBB + group.own_bias_R1MBB.to(own_RHMBB.dtype)
        assert group.leaf_bias_R1NC is not None
        past_RHNC = q_RHNE @ k_RHCE.transpose(-1, -2) + group.leaf_bias_R1NC.to(q_RHNE.dtype)
        weights = torch.cat([past_RHNC, own_RHMBB.flatten(2, 3)], dim=-1).softmax(-1)
        past_RHNC, own_RHNB = weights.split([group.context, group.block], dim=-1)
        seen_RHNE = (own_RHNB.unflatten(2, blocks) @ v_RHMBE).flatten(2, 3)
        out.append(past_RHNC @ v_RHCE + seen_RHNE)
    return torch.cat(out, dim=2).transpose(1, 2).flatten(0, 1)


def _group(splits: Sequence[_Split]) -> tuple[_Group, np.ndarray]:
    """The biases of samples set side by side, and the token (in reading order, -1: padding) in each of their slots."""
    causal, leaves = splits[0].shape[:2]
    block, context = (max(split.shape[k] for split in splits) for k in (2, 3))
    rows, width = len(splits), context + leaves * block
    places_RS = np.full((rows, width), -1, np.int64)
    sees_RCC = np.zeros((rows, context, context), bool)
    sees_RNC = np.zeros((rows, leaves * block, context), bool)
    own_RMBB = np.zeros((rows, leaves, block if causal else 1, block), bool)
    sees_RCC[:, :, :1] = True  # padding must see something, or softmax gives NaN
    own_RMBB[..., :1] = True
    for row, split in enumerate(splits):
        held = len(split.context_C)
        places_RS[row, :held] = split.context_C
        sees_RCC[row, :held, :held] = split.visible_TT[np.ix_(split.context_C, split.context_C)]
        for m, tokens in enumerate(split.leaves):
            n = len(tokens)
            places_RS[row, context + m * block :][:n] = tokens
            own_RMBB[row, m, : n if causal else 1, :n] = split.visible_TT[np.ix_(tokens, tokens)] if causal else True
            sees_RNC[row, m * block :][:n, :held] = split.visible_TT[np.ix_(tokens, split.context_C)]
    biases = [to_bias(torch.from_numpy(x), torch.float32) for x in (sees_RCC[:, None], sees_RNC[:, None])]
    own = None if own_RMBB.all() else to_bias(torch.from_numpy(own_RMBB[:, None]), torch.float32)
    return _Group(rows, context, leaves, block, biases[0], biases[1] if leaves else None, own), places_RS


def _alike(shapes: Sequence[tuple[bool, int, int, int]], slack: float) -> list[list[int]]:
    """Sample indices in groups of equally many leaves of one kind, images of equal size or texts of similar length, and
    contexts of similar length."""
    groups: list[list[int]] = []
    for index in sorted(range(len(shapes)), key=lambda i: shapes[i], reverse=True):
        causal, leaves, block, context = shapes[index]
        if groups:
            first = shapes[groups[-1][0]]
            fits = block >= slack * first[2] if causal else block == first[2]
            near = min(context, first[3]) >= slack * max(context, first[3])
            if (causal, leaves) == first[:2] and fits and near:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups
