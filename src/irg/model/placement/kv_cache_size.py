"""How large the key-value cache becomes: the engine allocates by these rules, and the memory plan counts by them."""

from collections.abc import Iterable

from irg.model.network.config import DecoderConfig

ROWS_PER_REQUEST = 3  # the main context, and those of the unconditional text and image branches
INITIAL_SLOTS = 512
GROWTH = 2048


def grown(slots: int, needed: int) -> int:
    """Slots of a row that had ``slots`` and needs more: doubled, but by at most :data:`GROWTH` beyond the need.

    Short rows grow in few steps; long ones, which are gigabytes, do not reserve as much again.
    """
    return max(needed, min(2 * slots, slots + GROWTH))


def slots_after(steps: Iterable[int]) -> int:
    """Slots of a row once it has taken ``steps`` tokens, one step after the other."""
    length, slots = 0, INITIAL_SLOTS
    for step in steps:
        length += step
        if length > slots:
            slots = grown(slots, length)
    return slots


def bytes_per_slot(decoder: DecoderConfig, itemsize: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * itemsize
