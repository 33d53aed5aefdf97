"""Numbers of weights that are not finite: a fine-tune that diverged, or a conversion that overflowed."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from irg.model.weights.manifest import TensorEntry
from irg.model.weights.tensor_reader import TensorReader

WHOLE_BYTES = 4_000_000_000  # up to so many every number is looked at
SAMPLE_BYTES = 1 << 16  # of larger weights: so many at the beginning and at the end of each tensor


def check_finite(key: str, tensor: Tensor) -> Tensor:
    """The tensor.

    Raises:
        ValueError: it has a NaN, or a number too large for its dtype.
    """
    if not tensor.dtype.is_floating_point or _is_finite(tensor):
        return tensor
    if tensor.dtype == torch.float16 and not tensor.isnan().any():
        raise ValueError(f"{key} has numbers that float16 can't hold: convert to bfloat16 or float32 instead")
    raise ValueError(f"{key} has NaN or infinite numbers: such weights draw nothing, so they are not written")


def not_finite(entries: Mapping[str, TensorEntry]) -> tuple[list[str], bool]:
    """Tensors with NaN or infinite numbers, and whether every number was looked at.

    Raises:
        ValueError: a file can't be read.
    """
    plain = {key: e for key, e in entries.items() if e.dtype.is_floating_point and e.encoding is None}
    whole = sum(entry.stop - entry.start for entry in plain.values()) <= WHOLE_BYTES
    reader = TensorReader()
    bad = [
        key
        for key, entry in plain.items()
        if not all(_is_finite(reader.read(piece)) for piece in ([entry] if whole else _ends(entry)))
    ]
    return bad, whole and len(plain) == sum(entry.dtype.is_floating_point for entry in entries.values())


def _is_finite(tensor: Tensor) -> bool:
    flat = tensor.reshape(-1)
    if tensor.dtype.itemsize == 1:  # float8 has no such test of its own
        flat = flat.to(torch.float32)
    return all(bool(piece.isfinite().all()) for piece in flat.split(1 << 24)) if len(flat) else True


def _ends(entry: TensorEntry) -> list[TensorEntry]:
    """A tensor's first and last numbers, as tensors of their own."""
    size = entry.dtype.itemsize
    count = (entry.stop - entry.start) // size
    take = min(count, SAMPLE_BYTES // size)
    first = replace(entry, shape=(take,), stop=entry.start + take * size)
    return [first, replace(entry, shape=(take,), start=entry.stop - take * size)]
