"""Joint attention of new tokens over the cache: one plan serves prefill, decoding and all guidance branches.

A plan covers several *blocks*: each block is some new tokens behind one context, and behind the blocks before it in the
same forward. New keys and values go straight into the slab, so what a block attends to is a slice of one row: nothing
is concatenated. Every block is an attention call of its own size. An image block sees all of that slice, so it needs no
mask; a text is causal, aligned to the slice's end, which flash attention knows. Equally few tokens on neighboring rows
(decoding) share a call, with a mask for their different lengths.

Legend: T new tokens in stream order; N tokens of a call; R rows of a call; Q tokens a row; L slots attended to;
S slots of the slab; H query heads; K key-value heads; E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from irg.engine.cache import Context, KVCache, Row
from irg.model.network.packed_attention import dense_attention, to_bias

MAX_TOKENS_TO_SHARE = 16
"""Tokens of a row up to which neighboring rows share a call: padding costs less than a call for each row."""

MAX_STRETCHES = 2
"""Of the stream that the queries of an image may lie in, to be attended from one after the other without gathering."""


@dataclass(frozen=True)
class Block:
    """New tokens on top of a context: causal (a text), or all see all (an image). ``offset`` tokens of the same forward
    lie between the context and them, and are seen."""

    context: Context
    tokens: int
    causal: bool = False
    offset: int = 0

    @property
    def row(self) -> Row:
        assert self.context.row is not None, "a context whose slots were not reserved"
        return self.context.row


@dataclass(frozen=True)
class _Placed:
    """A block with the slot of its first token, and its tokens' places in the stream."""

    block: Block
    slot: int
    tokens_N: np.ndarray

    @property
    def seen(self) -> int:
        """Slots from the row's start that all of its tokens see; those from there to ``slot`` are another context's."""
        return self.block.context.length + self.block.offset

    @property
    def end(self) -> int:
        return self.slot + self.block.tokens


@dataclass(frozen=True)
class _Call:
    """One attention call: its query tokens, row by row, and the slots of neighboring rows that they attend to (all,
    causally, or as a mask says), as a view of a slab. Tokens that are neighbors in the stream are a slice, which needs
    no gathering."""

    tokens: Tensor | slice
    view: tuple[tuple[int, ...], tuple[int, ...], int]  # see KVCache.view_of
    causal: bool
    bias_R1QL: Tensor | None

    def to(self, device: torch.device) -> "_Call":
        bias_R1QL = None if self.bias_R1QL is None else self.bias_R1QL.to(device)
        tokens = self.tokens if isinstance(self.tokens, slice) else self.tokens.to(device)
        return replace(self, tokens=tokens, bias_R1QL=bias_R1QL)


class CachedAttention:
    """The attend() of the engine. Built once per prefill, once per decoding step, once per *image* when denoising."""

    def __init__(self, cache: KVCache, blocks: Sequence[Block], stream_of_T: np.ndarray) -> None:
        """Plan the calls; grow the cache's rows if they are too short.

        Args:
            blocks: in reading order; their tokens are concatenated. Their contexts are the last on their rows (see
                :meth:`KVCache.reserve`); should two share a row, they lie behind one another, masked from each other.
            stream_of_T: stream index of each token in that order (see
                :class:`irg.model.network.token_batch.StreamOrder`).
        """
        self.cache = cache
        placed: list[_Placed] = []
        ends: dict[Row, int] = {}
        token_splits = np.split(stream_of_T, np.cumsum([block.tokens for block in blocks])[:-1])
        for block, tokens_N in zip(blocks, token_splits, strict=True):
            row = block.row
            slot = max(block.context.length + block.offset, ends.get(row, 0))
            ends[row] = slot + block.tokens
            placed.append(_Placed(block, slot, tokens_N))
        cache.ensure_slots(ends)
        slots_T = np.empty(len(stream_of_T), np.int64)
        for p in placed:
            slots_T[p.tokens_N] = cache.slots_of(p.block.row).start + p.slot + np.arange(p.block.tokens)
        runs = _runs(placed)
        calls = [call for run in runs for call in self._calls(run)]
        self._in_order = all(isinstance(call.tokens, slice) for call in calls)  # then nothing is gathered
        if self._in_order:
            calls.sort(key=_first_token)
        slots = torch.from_numpy(slots_T).to(cache.device, non_blocking=True)
        self._plans = {cache.device: (slots, calls)}  # by device of the layer

    def _calls(self, run: list[_Placed]) -> list[_Call]:
        """A run's call, or one for each stretch of the stream that its queries lie in: those of an image are two
        stretches (the tokens around it, and itself), and need no order, as all see the same."""
        call = self._call(run)
        tokens_N = np.concatenate([p.tokens_N for p in run])
        if len(run) == 1 and not run[0].block.causal:
            stretches = _stretches(np.sort(tokens_N))
            if len(stretches) <= MAX_STRETCHES:
                bias = call.bias_R1QL
                return [
                    replace(call, tokens=s, bias_R1QL=None if bias is None else bias[:, :, : s.stop - s.start])
                    for s in stretches
                ]
        ordered = _stretches(tokens_N)
        return [replace(call, tokens=ordered[0])] if len(ordered) == 1 else [call]

    def _call(self, run: list[_Placed]) -> _Call:
        first, n, length = run[0].block, run[0].block.tokens, max(p.end for p in run)
        whole = all(p.seen == p.slot and p.end == length for p in run)  # no slot between or behind that is another's
        causal = any(p.block.causal for p in run) and n > 1
        bias_R1QL = None
        if not whole or (causal and not self._causal_without_mask(first, length)):
            visible_RQL = np.zeros((len(run), n, length), bool)
            for visible_QL, p in zip(visible_RQL, run, strict=True):
                visible_QL[:, : p.seen] = True
                visible_QL[:, p.slot : p.end] = np.tri(n, dtype=bool) if p.block.causal else True
            bias_R1QL = to_bias(
                torch.from_numpy(visible_RQL)[:, None].to(self.cache.device, non_blocking=True), self.cache.dtype
            )
        tokens_N = torch.from_numpy(np.concatenate([p.tokens_N for p in run])).to(self.cache.device, non_blocking=True)
        view = self.cache.view_of(first.row, len(run), length)
        return _Call(tokens_N, view, causal and bias_R1QL is None, bias_R1QL)

    def _causal_without_mask(self, block: Block, length: int) -> bool:
        """Whether a kernel knows a causal block's mask by itself: behind other tokens only flash attention on CUDA."""
        return block.tokens == length or self.cache.device.type == "cuda"

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        slots_T, calls = self._plan_on(self.cache.devices[layer])
        self.cache.write(layer, slots_T, k_TKE, v_TKE)
        if self._in_order:
            outs = [self._attend(call, layer, q_THE[call.tokens]) for call in calls]
            return outs[0] if len(outs) == 1 else torch.cat(outs)
        out_THE = torch.empty_like(q_THE)
        for call in calls:
            out_THE[call.tokens] = self._attend(call, layer, q_THE[call.tokens])
        return out_THE

    def _plan_on(self, device: torch.device) -> tuple[Tensor, list[_Call]]:
        if device not in self._plans:
            slots_T, calls = self._plans[self.cache.device]
            self._plans[device] = slots_T.to(device), [call.to(device) for call in calls]
        return self._plans[device]

    def _attend(self, call: _Call, layer: int, q_NHE: Tensor) -> Tensor:
        slabs_SKE = (self.cache.keys_SKE[layer], self.cache.values_SKE[layer])
        k_RKLE, v_RKLE = (slab_SKE.as_strided(*call.view) for slab_SKE in slabs_SKE)
        q_RHQE = q_NHE.unflatten(0, (len(k_RKLE), -1)).transpose(1, 2)
        out_RHQE = dense_attention(q_RHQE, k_RKLE, v_RKLE, call.bias_R1QL, call.causal)
        return out_RHQE.transpose(1, 2).flatten(0, 1)


def _first_token(call: _Call) -> int:
    assert isinstance(call.tokens, slice)
    return int(call.tokens.start)


def _stretches(tokens_N: np.ndarray) -> list[slice]:
    """Tokens in the given order as slices of the stream."""
    breaks = np.flatnonzero(np.diff(tokens_N) != 1) + 1
    return [slice(int(piece[0]), int(piece[-1]) + 1) for piece in np.split(tokens_N, breaks)]


def _runs(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    """Blocks that share a call, by row: equally few tokens on neighboring rows; any other block alone."""
    runs: list[list[_Placed]] = []
    for p in sorted(placed, key=lambda p: (p.block.row.kind, p.block.row.number)):
        last = runs[-1][-1].block if runs else p.block  # the first is not its own neighbor
        if last.tokens == p.block.tokens <= MAX_TOKENS_TO_SHARE and last.row.precedes(p.block.row):
            runs[-1].append(p)
        else:
            runs.append([p])
    return runs
