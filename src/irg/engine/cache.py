"""Keys and values of all contexts in flight: one pre-allocated slab of rows per layer.

A context is a *prefix of a row*. Forking one is O(1): both prefixes share the row, and whichever is appended to first
goes on in place; the other, if it is appended to as well, is first copied to a row of its own. So no context sees
another's tokens, and an unconditional branch that only leaves the last parts out costs no prefill: just that copy. A
context without tokens has no row yet.

Legend: R rows; L slots of a row; K key-value heads; E head size; T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irg.model.network.config import DecoderConfig
from irg.model.placement.kv_cache_size import grown


@dataclass(eq=False)
class Context:
    """The first ``length`` tokens of a row. ``position`` is the rope position of what comes next."""

    row: int
    length: int = 0
    position: int = 0


NO_ROW = -1


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
        """``device``: of all slabs, or one for each layer."""
        self.heads, self.head_dim = config.num_key_value_heads, config.head_dim
        if isinstance(device, str | torch.device):
            device = [torch.device(device)] * config.num_hidden_layers
        self.devices = list(device)
        self.dtype, self.device = dtype, self.devices[0]
        self.keys_RLKE = [self._slab(rows, slots, device) for device in self.devices]
        self.values_RLKE = [self._slab(rows, slots, device) for device in self.devices]
        self._filled = [0] * rows  # slots that hold a context's tokens or are reserved for them
        self._holders = [0] * rows  # contexts on the row
        self._expected = (0, 0)  # rows and slots that are allocated as soon as more than there are is needed
        self.row_multiple = 1  # rows have a multiple of so many slots

    @property
    def rows(self) -> int:
        return self.keys_RLKE[0].shape[0]

    @property
    def slots(self) -> int:
        return self.keys_RLKE[0].shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that the rows in use hold, reserved slots included."""
        return sum(filled for filled, held in zip(self._filled, self._holders, strict=True) if held)

    # ---- contexts

    def new(self) -> Context:
        """An empty context; it gets a row with its first tokens."""
        return Context(NO_ROW)

    def fork(self, context: Context, length: int | None = None, position: int | None = None) -> Context:
        """A context that shares ``context``'s first ``length`` tokens (all by default). Copies nothing."""
        length = context.length if length is None else length
        assert 0 <= length <= context.length
        row = context.row if length else NO_ROW
        if row != NO_ROW:
            self._holders[row] += 1
        return Context(row, length, context.position if position is None else position)

    def free(self, context: Context) -> None:
        """Give a context up; its row is used again once no context is on it."""
        if context.row != NO_ROW:
            self._holders[context.row] -= 1
            assert self._holders[context.row] >= 0, "a context was freed twice"

    def expect(self, rows: int, slots: int) -> None:
        """Tell how many rows of how many slots the requests in flight will need."""
        self._expected = (rows, slots)

    def reserve(self, wanted: Sequence[tuple[Context, int]]) -> None:
        """Make every context the last on a row and claim its next slots; a claim ends with commit or release.

        A context behind which another has gone on is copied to a row of its own. All growth is done at once, before
        anything else: when it fails, nothing has changed.

        Args:
            wanted: contexts, each with the number of slots it needs; 0 only makes it the last on its row.
        """
        moving = self._moving(wanted)
        rows = max(self.rows, self.rows - self._holders.count(0) + len(moving))
        self._grow(rows, max((context.length + tokens for context, tokens in wanted), default=0))
        for context, tokens in wanted:
            if context in moving:
                self._move(context)
                moving.discard(context)
            self._filled[context.row] = context.length + tokens

    def _moving(self, wanted: Sequence[tuple[Context, int]]) -> set[Context]:
        """The contexts that need a row of their own when slots are reserved in this order."""
        holders, filled, moving = self._holders.copy(), self._filled.copy(), set[Context]()
        for context, tokens in wanted:
            row = context.row
            if context in moving:
                continue
            if row == NO_ROW:
                moving.add(context)
            elif context.length < filled[row] and holders[row] > 1:
                moving.add(context)
                holders[row] -= 1
            else:
                filled[row] = context.length + tokens
        return moving

    def _move(self, context: Context) -> None:
        row = self._holders.index(0)
        if context.length:
            for slab in (*self.keys_RLKE, *self.values_RLKE):
                slab[row, : context.length] = slab[context.row, : context.length]
        self.free(context)
        self._holders[row], context.row = 1, row

    def commit(self, context: Context, tokens: int, positions: int) -> None:
        """Count ``tokens`` just written at a context's end, which advance its rope position by ``positions``."""
        context.length += tokens
        context.position += positions
        assert self._filled[context.row] == context.length, "appended to a context that was not reserved"

    def release(self, contexts: Sequence[Context]) -> None:
        """Give up slots that were reserved and not committed."""
        for context in contexts:
            self._filled[context.row] = context.length

    def retract(self, context: Context, tokens: int) -> None:
        """Take back the last ``tokens`` text tokens of a context that is the last on its row."""
        assert self._filled[context.row] == context.length, "only the last on a row can be shortened"
        context.length -= tokens
        context.position -= tokens
        self._filled[context.row] = context.length

    # ---- storage

    def write(self, layer: int, slots_T: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Store keys and values at flat slots (row * slots + slot)."""
        self.keys_RLKE[layer].flatten(0, 1).index_copy_(0, slots_T, k_TKE)
        self.values_RLKE[layer].flatten(0, 1).index_copy_(0, slots_T, v_TKE)

    def ensure_slots(self, slots: int) -> None:
        """Grow rows to at least ``slots`` slots."""
        if slots > self.slots:
            self._grow(self.rows, slots)

    def _slab(self, rows: int, slots: int, device: torch.device) -> Tensor:
        """Zeros [R, L, K, E], in memory by head, row, slot: attention reads a head's slots one after the other."""
        shape = (self.heads, rows, slots, self.head_dim)
        if device.type == "cpu" and rows * slots:  # numpy's zeros take no memory, and no time, before they are written
            slab = torch.from_numpy(np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)).view(self.dtype)
        else:
            slab = torch.zeros(math.prod(shape), dtype=self.dtype, device=device)
        return slab.view(shape).permute(1, 2, 0, 3)

    def _grow(self, rows: int, slots: int) -> None:
        """Grow to at least so many rows and slots, and to what is expected if there is memory for that."""
        if rows <= self.rows and slots <= self.slots:
            return
        wide, long = (max(self._expected[0], rows, self.rows), max(self._expected[1], slots, self.slots))
        if slots > max(self.slots, self._expected[1]):
            long = grown(self.slots, slots)
        long, slots = (-(-n // self.row_multiple) * self.row_multiple for n in (long, slots))
        least = (max(rows, self.rows), max(slots, self.slots))
        try:
            self._resize(wide, long)
        except (torch.OutOfMemoryError, MemoryError):
            if (wide, long) == least:
                raise
            self._resize(*least)

    def _resize(self, rows: int, slots: int) -> None:
        """Grow every slab, one after the other; when one can't be allocated, all keep their size."""
        old = (self.rows, self.slots)
        if (rows, slots) == old:
            return
        slabs = [(kind, layer) for kind in (self.keys_RLKE, self.values_RLKE) for layer in range(len(kind))]
        resized = 0
        try:
            for kind, layer in slabs:
                kind[layer] = self._resized(kind[layer], rows, slots)
                resized += 1
        except BaseException:
            for kind, layer in slabs[:resized]:
                kind[layer] = self._resized(kind[layer], *old)
            raise
        self._filled += [0] * (rows - old[0])
        self._holders += [0] * (rows - old[0])

    def _resized(self, slab: Tensor, rows: int, slots: int) -> Tensor:
        new = self._slab(rows, slots, slab.device)
        rows, slots = min(rows, slab.shape[0]), min(slots, slab.shape[1], max(self._filled, default=0))
        new[:rows, :slots] = slab[:rows, :slots]
        return new
