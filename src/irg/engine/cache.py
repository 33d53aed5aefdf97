"""Keys and values of all contexts in flight: one pre-allocated slab per layer, which is cut into rows.

A context is a *prefix of a row*. Forking one is O(1): both prefixes share the row, and whichever is appended to first
goes on in place; the other, if it is appended to as well, is first copied to a row of its own. So no context sees
another's tokens, and an unconditional branch that only leaves the last parts out costs no prefill: just that copy. A
context without tokens has no row yet.

Rows of a kind (:class:`RowKind`) are equally long and lie side by side: those of texts alone are short.

Legend: S slots of all rows; R rows of a kind; L slots of one; K key-value heads; E head size; T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irg.model.network.config import DecoderConfig
from irg.model.placement.kv_cache_size import RowKind, grown


@dataclass(eq=False)
class Row:
    """A row, by its kind and its number in that."""

    kind: RowKind
    number: int
    filled: int = 0  # slots that hold a context's tokens or are reserved for them
    holders: int = 0  # contexts on it

    def precedes(self, other: "Row") -> bool:
        """Whether ``other`` is the row behind this one."""
        return (self.kind, self.number + 1) == (other.kind, other.number)


@dataclass(eq=False)
class Context:
    """The first ``length`` tokens of a row. ``position`` is the rope position of what comes next, ``kind`` that of the
    row it moves to when it needs one of its own."""

    row: Row | None
    length: int = 0
    position: int = 0
    kind: RowKind = RowKind.MAIN


@dataclass
class _Kind:
    """The rows of a kind: so many slots each, from a slot of the slab on."""

    rows: list[Row]
    slots: int
    first: int

    @property
    def size(self) -> int:
        """Slots of all rows."""
        return len(self.rows) * self.slots

    def of(self, slab_SKE: Tensor) -> Tensor:
        """A view of the rows, [R, L, K, E]."""
        return slab_SKE[self.first : self.first + self.size].unflatten(0, (len(self.rows), self.slots))


class KVCache:
    """The slabs, and how many contexts share which row.

    Nothing is allocated before the first tokens come; then at once what :meth:`expect` told. Beyond that it grows by as
    many rows as are needed, and in slots as :func:`grown` says; free rows are used again.
    """

    def __init__(
        self,
        config: DecoderConfig,
        rows: int = 0,
        slots: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | Sequence[torch.device] = "cpu",
    ) -> None:
        """Args:
        rows, slots: of the main kind, at first.
        device: of all slabs, or one for each layer.
        """
        self.heads, self.head_dim = config.num_key_value_heads, config.head_dim
        if isinstance(device, str | torch.device):
            device = [torch.device(device)] * config.num_hidden_layers
        self.devices = list(device)
        self.dtype, self.device = dtype, self.devices[0]
        self._kinds = _laid_out([(rows, slots), *[(0, 0)] * (len(RowKind) - 1)])
        self._expected = [(0, 0) for _ in RowKind]  # allocated as soon as more than there is is needed
        self.row_multiple = 1  # main rows have a multiple of so many slots
        self.keys_SKE = [self._slab(rows * slots, device) for device in self.devices]
        self.values_SKE = [self._slab(rows * slots, device) for device in self.devices]

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """Rows of every kind, and slots of each of them."""
        return tuple((len(kind.rows), kind.slots) for kind in self._kinds)

    @property
    def rows_in_use(self) -> int:
        """Rows that a context is on."""
        return sum(row.holders > 0 for kind in self._kinds for row in kind.rows)

    @property
    def tokens(self) -> int:
        """Tokens that the rows in use hold, reserved slots included."""
        return sum(row.filled for kind in self._kinds for row in kind.rows if row.holders)

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs."""
        return sum(slab.nbytes for slab in (*self.keys_SKE, *self.values_SKE))

    # ---- contexts

    def new(self) -> Context:
        """An empty context; it gets a row with its first tokens."""
        return Context(None)

    def fork(
        self,
        context: Context,
        length: int | None = None,
        position: int | None = None,
        kind: RowKind | None = None,
    ) -> Context:
        """A context that shares ``context``'s first ``length`` tokens (all by default). Copies nothing.

        ``kind``: of the row it moves to, should it need one; by default ``context``'s.
        """
        length = context.length if length is None else length
        assert 0 <= length <= context.length
        row = context.row if length else None
        if row is not None:
            row.holders += 1
        position = context.position if position is None else position
        return Context(row, length, position, context.kind if kind is None else kind)

    def free(self, context: Context) -> None:
        """Give a context up; its row is used again once no context is on it."""
        if context.row is not None:
            context.row.holders -= 1
            assert context.row.holders >= 0, "a context was freed twice"

    def expect(self, shape: Sequence[tuple[int, int]]) -> None:
        """Tell how many rows of every kind the requests in flight will need, and how many slots those have."""
        self._expected = list(shape)

    def reserve(self, wanted: Sequence[tuple[Context, int]]) -> None:
        """Make every context the last on a row and claim its next slots; a claim ends with commit or release.

        A context behind which another has gone on is copied to a row of its own. All growth is done at once, before
        anything else: when it fails, nothing has changed.

        Args:
            wanted: contexts, each with the number of slots it needs; 0 only makes it the last on its row.
        """
        moving = self._moving(wanted)
        self._grow([self._needed(kind, wanted, moving) for kind in RowKind])
        for context, tokens in wanted:
            if context in moving:
                self._move(context)
                moving.discard(context)
            _row(context).filled = context.length + tokens

    def _moving(self, wanted: Sequence[tuple[Context, int]]) -> set[Context]:
        """The contexts that need a row of their own when slots are reserved in this order."""
        holders, filled, moving = dict[Row, int](), dict[Row, int](), set[Context]()
        for context, tokens in wanted:
            row = context.row
            if context in moving:
                continue
            if row is None:
                moving.add(context)
            elif context.length < filled.get(row, row.filled) and holders.get(row, row.holders) > 1:
                moving.add(context)
                holders[row] = holders.get(row, row.holders) - 1
            else:
                filled[row] = context.length + tokens
        return moving

    def _needed(self, kind: RowKind, wanted: Sequence[tuple[Context, int]], moving: set[Context]) -> tuple[int, int]:
        """Rows and slots of a kind that are needed to reserve."""
        used = sum(row.holders > 0 for row in self._kinds[kind].rows) + sum(one.kind == kind for one in moving)
        lengths = [
            context.length + tokens
            for context, tokens in wanted
            if (context.kind if context in moving else _row(context).kind) == kind
        ]
        return used, max(lengths, default=0)

    def _move(self, context: Context) -> None:
        row = next(row for row in self._kinds[context.kind].rows if not row.holders)
        if context.row is not None:
            old, new = self.slots_of(context.row, context.length), self.slots_of(row, context.length)
            for slab in (*self.keys_SKE, *self.values_SKE):
                slab[new] = slab[old]
        self.free(context)
        row.holders, context.row = 1, row

    def commit(self, context: Context, tokens: int, positions: int) -> None:
        """Count ``tokens`` just written at a context's end, which advance its rope position by ``positions``."""
        context.length += tokens
        context.position += positions
        assert _row(context).filled == context.length, "appended to a context that was not reserved"

    def release(self, contexts: Sequence[Context]) -> None:
        """Give up slots that were reserved and not committed."""
        for context in contexts:
            _row(context).filled = context.length

    def retract(self, context: Context, tokens: int) -> None:
        """Take back the last ``tokens`` text tokens of a context that is the last on its row."""
        assert _row(context).filled == context.length, "only the last on a row can be shortened"
        context.length -= tokens
        context.position -= tokens
        _row(context).filled = context.length

    # ---- storage

    def slots_of(self, row: Row, length: int | None = None) -> slice:
        """Slots of the slab that are a row's first ``length``, or all."""
        kind = self._kinds[row.kind]
        first = kind.first + row.number * kind.slots
        return slice(first, first + (kind.slots if length is None else length))

    def view_of(self, first: Row, rows: int, length: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Size, strides and offset by which ``as_strided`` views the first slots of neighboring rows: [R, K, L, E]."""
        start, size, slots = self.slots_of(first).start, self.head_dim, self._kinds[first.kind].slots
        every = sum(kind.size for kind in self._kinds)
        return (rows, self.heads, length, size), (slots * size, every * size, size, 1), start * size

    def write(self, layer: int, slots_T: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Store keys and values at slots of the slab."""
        self.keys_SKE[layer].index_copy_(0, slots_T, k_TKE)
        self.values_SKE[layer].index_copy_(0, slots_T, v_TKE)

    def ensure_slots(self, needed: Mapping[Row, int]) -> None:
        """Grow rows to at least so many slots."""
        slots = [max((n for row, n in needed.items() if row.kind == kind), default=0) for kind in RowKind]
        self._grow([(rows, n) for (rows, _), n in zip(self.shape, slots, strict=True)])

    def _slab(self, slots: int, device: torch.device) -> Tensor:
        """Zeros [S, K, E], in memory by head, then slot: attention reads a head's slots one after the other."""
        shape = (self.heads, slots, self.head_dim)
        if device.type == "cpu" and slots:  # numpy's zeros take no memory, and no time, before they are written
            slab = torch.from_numpy(np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)).view(self.dtype)
        else:
            slab = torch.zeros(math.prod(shape), dtype=self.dtype, device=device)
        return slab.view(shape).transpose(0, 1)

    def _grow(self, needed: Sequence[tuple[int, int]]) -> None:
        """Grow to at least so many rows and slots of every kind, and to what is expected if there is memory for it."""
        old = self.shape
        least = [(max(rows, r), max(slots, s)) for (rows, slots), (r, s) in zip(needed, old, strict=True)]
        if tuple(least) == old:
            return
        wide = [
            (max(rows, more_rows), grown(before, slots) if slots > max(before, more) else max(before, more))
            for (rows, slots), (more_rows, more), (_, before) in zip(least, self._expected, old, strict=True)
        ]
        for shape in (least, wide):
            rows, slots = shape[RowKind.MAIN]
            shape[RowKind.MAIN] = rows, -(-slots // self.row_multiple) * self.row_multiple
        try:
            self._resize(wide)
        except (torch.OutOfMemoryError, MemoryError):
            if wide == least:
                raise
            self._resize(least)

    def _resize(self, shape: Sequence[tuple[int, int]]) -> None:
        """Resize every slab, one after the other; when one can't be allocated, all keep their size."""
        old, new = self._kinds, _laid_out(shape, self._kinds)
        slabs = [(slabs, layer) for slabs in (self.keys_SKE, self.values_SKE) for layer in range(len(slabs))]
        resized = 0
        try:
            for kind, layer in slabs:
                kind[layer] = self._resized(kind[layer], old, new)
                resized += 1
        except BaseException:
            for kind, layer in slabs[:resized]:
                kind[layer] = self._resized(kind[layer], new, old)
            raise
        self._kinds = new

    def _resized(self, slab_SKE: Tensor, old: Sequence["_Kind"], new: Sequence["_Kind"]) -> Tensor:
        resized_SKE = self._slab(sum(kind.size for kind in new), slab_SKE.device)
        for before, after in zip(old, new, strict=True):
            rows = min(len(before.rows), len(after.rows))
            slots = min(before.slots, after.slots, max((row.filled for row in before.rows), default=0))
            after.of(resized_SKE)[:rows, :slots] = before.of(slab_SKE)[:rows, :slots]
        return resized_SKE


def _laid_out(shape: Sequence[tuple[int, int]], old: Sequence[_Kind] = ()) -> list[_Kind]:
    """Kinds of a shape side by side, with the rows that were there."""
    kinds, first = list[_Kind](), 0
    for kind, (rows, slots) in zip(RowKind, shape, strict=True):
        known = old[kind].rows if old else []
        more = [Row(kind, number) for number in range(len(known), rows)]
        kinds.append(_Kind([*known, *more], slots, first))
        first += kinds[-1].size
    return kinds


def _row(context: Context) -> Row:
    """The row of a context that has one."""
    assert context.row is not None, "a context without a row"
    return context.row
