"""Keys and values of all contexts in flight: one pre-allocated slab of rows per layer.

A context is a *prefix of a row*. Forking one is O(1): both prefixes share the row, and whoever is first to append at
its end goes on in place; the other, should it append too, moves its prefix to a row of its own then. So no one ever
sees another's tokens, and a guidance branch that only leaves the last parts out costs no prefill: just that copy, once
its image is drawn.

Legend: R rows; L slots of a row; K key-value heads; E head size; T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irg.model.network.config import DecoderConfig

GROWTH = 2048


def grown(slots: int, needed: int) -> int:
    """Slots of a row that had ``slots`` and needs more: doubled, but by at most :data:`GROWTH` beyond the need.

    Short rows grow in few steps; long ones, which are gigabytes, do not reserve as much again.
    """
    return max(needed, min(2 * slots, slots + GROWTH))


@dataclass(eq=False)
class Context:
    """The first ``length`` tokens of a row. ``position`` is the rope position of what comes next."""

    row: int
    length: int = 0
    position: int = 0


class KVCache:
    """The slabs, and who holds which row. Grows when rows (by doubling) or slots (see :func:`grown`) run out."""

    def __init__(
        self,
        config: DecoderConfig,
        rows: int = 4,
        slots: int = 512,
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
        self._filled = [0] * rows
        self._holders = [0] * rows

    @property
    def rows(self) -> int:
        return self.keys_RLKE[0].shape[0]

    @property
    def slots(self) -> int:
        return self.keys_RLKE[0].shape[1]

    @property
    def rows_in_use(self) -> int:
        return sum(holders > 0 for holders in self._holders)

    # ---- contexts

    def new(self) -> Context:
        """An empty context on a free row."""
        return Context(self._take_row())

    def fork(self, context: Context, length: int | None = None, position: int | None = None) -> Context:
        """A context that shares ``context``'s first ``length`` tokens (all by default). Copies nothing."""
        length = context.length if length is None else length
        assert 0 <= length <= context.length
        self._holders[context.row] += 1
        return Context(context.row, length, context.position if position is None else position)

    def free(self, context: Context) -> None:
        """Let go of a context; its row is reused once nobody holds it."""
        self._holders[context.row] -= 1
        assert self._holders[context.row] >= 0, "a context was freed twice"

    def detach(self, context: Context) -> None:
        """Make a context the last on its row: if somebody else went on there, it moves to a row of its own."""
        if context.length < self._filled[context.row] and self._holders[context.row] > 1:
            row = self._take_row()
            for slab in (*self.keys_RLKE, *self.values_RLKE):
                slab[row, : context.length] = slab[context.row, : context.length]
            self.free(context)
            context.row = row
        self._filled[context.row] = context.length

    def reserve(self, context: Context, tokens: int) -> None:
        """Claim the next ``tokens`` slots of a context's row; if somebody else went on there, it moves to its own."""
        self.detach(context)
        self._filled[context.row] += tokens
        self.ensure_slots(context.length + tokens)

    def commit(self, context: Context, tokens: int, positions: int) -> None:
        """Count ``tokens`` just written at a context's end, which advance its rope position by ``positions``."""
        context.length += tokens
        context.position += positions
        assert self._filled[context.row] == context.length, "appended to a context that was not reserved"

    def retract(self, context: Context, tokens: int) -> None:
        """Take back the last ``tokens`` text tokens of a context that is the last on its row."""
        assert self._filled[context.row] == context.length, "only the last on a row can be shortened"
        context.length -= tokens
        context.position -= tokens
        self._filled[context.row] = context.length

    def filled(self, row: int) -> int:
        """Slots of a row that hold somebody's tokens or are claimed for them."""
        return self._filled[row]

    # ---- storage

    def write(self, layer: int, slots_T: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Store keys and values at flat slots (row * slots + slot)."""
        self.keys_RLKE[layer].flatten(0, 1).index_copy_(0, slots_T, k_TKE)
        self.values_RLKE[layer].flatten(0, 1).index_copy_(0, slots_T, v_TKE)

    def ensure_slots(self, slots: int) -> None:
        """Grow rows to at least ``slots`` slots."""
        if slots > self.slots:
            self._resize(self.rows, grown(self.slots, slots))

    def _take_row(self) -> int:
        if 0 not in self._holders:
            self._resize(2 * self.rows, self.slots)
        row = self._holders.index(0)
        self._holders[row], self._filled[row] = 1, 0
        return row

    def _slab(self, rows: int, slots: int, device: torch.device) -> Tensor:
        """Zeros [R, L, K, E], in memory by head, row, slot: attention reads a head's slots one after the other."""
        shape = (self.heads, rows, slots, self.head_dim)
        if device.type == "cpu":  # numpy's zeros take no memory, and no time, before they are written
            slab = torch.from_numpy(np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)).view(self.dtype)
        else:
            slab = torch.zeros(math.prod(shape), dtype=self.dtype, device=device)
        return slab.view(shape).permute(1, 2, 0, 3)

    def _resize(self, rows: int, slots: int) -> None:
        old_rows, old_slots = self.rows, self.slots
        for slabs in (self.keys_RLKE, self.values_RLKE):
            for layer, slab in enumerate(slabs):
                bigger = self._slab(rows, slots, slab.device)
                bigger[:old_rows, :old_slots] = slab
                slabs[layer] = bigger
        self._filled += [0] * (rows - old_rows)
        self._holders += [0] * (rows - old_rows)
