"""Weights as bitsandbytes writes them: nf4 and fp4, and int8 of LLM.int8(). Read without the library.

**4 bits** (Dettmers et al. 2023, QLoRA). ``X.weight`` holds two levels a byte, the first in the high half, of the
flattened weight; ``X.weight.quant_map`` the 16 levels; ``X.weight.absmax`` a scale for every block of ``blocksize``
numbers. With double quantization the scales are 8-bit levels of ``nested_quant_map``, with a scale of their own
(``nested_absmax``) for every ``nested_blocksize`` of them and ``nested_offset`` added. Sizes, shape and dtype stand as
JSON in the bytes of ``X.weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``).

**8 bits** (Dettmers et al. 2022). ``X.weight`` is int8, ``X.SCB`` the largest magnitude of each output row, so the
weight is ``weight * SCB / 127``. That is the format of our own int8 layers: in the decoder's layers nothing is decoded.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irg.model.weights.manifest import MAX_AXES, TensorEntry
from irg.model.weights.quantize import LAYERS
from irg.model.weights.tensor_reader import TensorReader

_STATE = re.compile(r"(.+\.weight)\.quant_state\.bitsandbytes__(nf4|fp4)")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ROWS, _FORMAT = "SCB", "weight_format"
_MAX_STATE_BYTES = 1 << 16
_PIECE = 1 << 22  # bytes of a 4-bit weight that are decoded at a time


def decode_entries(path: Path, entries: Mapping[str, TensorEntry]) -> tuple[str, dict[str, TensorEntry]] | None:
    """The format's name and the tensors that a file stands for; None if it is not of this format.

    Raises:
        ValueError: it is, but is damaged or of an older version.
    """
    states = {match[1]: (match[2], key) for key in entries if (match := _STATE.fullmatch(key))}
    rows = [key.removesuffix(f".{_ROWS}") for key in entries if key.endswith(f".{_ROWS}")]
    if not states and not rows:
        return None
    decoded = dict(entries)
    for weight, (_, state) in states.items():
        for key in (state, *(f"{weight}.{part}" for part in _PARTS)):
            decoded.pop(key, None)
        decoded[weight] = _four_bits(path, weight, state, entries)
    for module in rows:
        decoded |= _eight_bits(path, module, decoded)
        for leaf in (_ROWS, _FORMAT, "weight") if module.startswith(LAYERS) else (_ROWS, _FORMAT):
            decoded.pop(f"{module}.{leaf}", None)
    kinds = sorted({kind for kind, _ in states.values()} | ({"int8"} if rows else set()))
    return f"bitsandbytes {' and '.join(kinds)}", decoded


# -------------------------------------------------------------------------------------------------------------- 4 bits


@dataclass(frozen=True)
class FourBitTensor:
    """A weight of 4-bit levels; ``nested`` are the scales' own: levels, scales, how many share one, what is added."""

    packed: TensorEntry
    levels: TensorEntry
    absmax: TensorEntry
    blocksize: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    nested: tuple[TensorEntry, TensorEntry, int, float] | None

    def decode(self) -> Tensor:
        reader = TensorReader(map_files=False)
        packed, levels = reader.read(self.packed).flatten(), reader.read(self.levels, torch.float32)
        scales = self._scales(reader)
        numbers = math.prod(self.shape)
        flat = torch.empty(len(packed) * 2, dtype=self.dtype)
        step = math.lcm(self.blocksize, 2) * max(1, _PIECE // self.blocksize)  # numbers: whole blocks, whole bytes
        for start in range(0, len(flat), step):
            piece = packed[start // 2 : (start + step) // 2]
            values = levels[torch.stack([piece >> 4, piece & 15], dim=-1).flatten().int()]
            blocks = scales[start // self.blocksize :][: -(-len(values) // self.blocksize)]
            values *= blocks.repeat_interleave(self.blocksize)[: len(values)]
            flat[start : start + len(values)] = values.to(self.dtype)
        return flat[:numbers].view(self.shape)

    def _scales(self, reader: TensorReader) -> Tensor:
        if self.nested is None:
            return reader.read(self.absmax, torch.float32)
        levels, absmax, blocksize, offset = self.nested
        scales = reader.read(levels, torch.float32)[reader.read(self.absmax).int()]
        return scales * reader.read(absmax, torch.float32).repeat_interleave(blocksize)[: len(scales)] + offset


def _four_bits(path: Path, weight: str, state_key: str, entries: Mapping[str, TensorEntry]) -> TensorEntry:
    state = _state(path, state_key, entries[state_key])
    shape, blocksize = tuple(state["shape"]), state["blocksize"]
    blocks = -(-math.prod(shape) // blocksize)
    nested_size = state.get("nested_blocksize", 1) if f"{weight}.nested_absmax" in entries else None
    wanted = {
        "": (-(-math.prod(shape) // 2), torch.uint8),
        ".quant_map": (16, torch.float32),
        ".absmax": (blocks, torch.float32 if nested_size is None else torch.uint8),
    }
    if nested_size is not None:
        wanted[".nested_absmax"] = (-(-blocks // nested_size), torch.float32)
        wanted[".nested_quant_map"] = (256, torch.float32)
    parts = {name: _part(path, weight, name, entries, *size) for name, size in wanted.items()}
    nested = None
    if nested_size is not None:
        offset = float(state.get("nested_offset", 0.0))
        nested = (parts[".nested_quant_map"], parts[".nested_absmax"], nested_size, offset)
    dtype, packed = _DTYPES[state["dtype"]], parts[""]
    encoding = FourBitTensor(packed, parts[".quant_map"], parts[".absmax"], blocksize, dtype, shape, nested)
    return TensorEntry(packed.file, dtype, shape, packed.start, packed.stop, encoding)


def _part(
    path: Path, weight: str, part: str, entries: Mapping[str, TensorEntry], count: int, dtype: torch.dtype
) -> TensorEntry:
    entry, needed = entries.get(weight + part), f"{count} {str(dtype)[6:]}"
    if entry is None:
        raise ValueError(f"{path}: {weight}{part} of bitsandbytes is missing, {needed}")
    if math.prod(entry.shape) != count or entry.dtype != dtype:
        found = f"{str(entry.dtype)[6:]} {list(entry.shape)}"
        raise ValueError(f"{path}: {weight}{part} of bitsandbytes is {found} instead of {needed}")
    return entry


def _state(path: Path, key: str, entry: TensorEntry) -> dict[str, Any]:
    """The JSON that describes a 4-bit weight, checked."""
    try:
        if entry.dtype != torch.uint8 or entry.stop - entry.start > _MAX_STATE_BYTES:
            raise ValueError
        state = json.loads(bytes(TensorReader(map_files=False).read(entry).flatten().tolist()))
        shape, blocksize, nested = state["shape"], state["blocksize"], state.get("nested_blocksize", 1)
        sane = isinstance(shape, list) and len(shape) <= MAX_AXES and blocksize % 2 == 0
        sane = sane and all(type(n) is int and n > 0 for n in (*shape, blocksize, nested))
        sane = sane and state["dtype"] in _DTYPES and isinstance(state.get("nested_offset", 0.0), int | float)
    except (ValueError, KeyError, TypeError, RecursionError):
        sane = False
    if not sane:
        raise ValueError(f"{path} is corrupt: {key} does not describe a 4-bit weight of bitsandbytes")
    return dict(state)


# -------------------------------------------------------------------------------------------------------------- 8 bits


@dataclass(frozen=True)
class RowScale:
    """The scales [O, 1] of an int8 weight's rows, float32, from their largest magnitudes [O]."""

    largest: TensorEntry

    def decode(self) -> Tensor:
        return (TensorReader(map_files=False).read(self.largest, torch.float32) / 127).view(-1, 1)


@dataclass(frozen=True)
class EightBitTensor:
    """An int8 weight [O, I] with a scale for each row."""

    numbers: TensorEntry
    scale: RowScale

    def decode(self) -> Tensor:
        return TensorReader(map_files=False).read(self.numbers, torch.float32).mul_(self.scale.decode())


def _eight_bits(path: Path, module: str, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """An int8 layer as ours (``qdata``, ``scale``) where the model has such layers, else as a weight to decode."""
    weight, rows = entries.get(f"{module}.weight"), entries[f"{module}.{_ROWS}"]
    if weight is None or weight.dtype != torch.int8 or len(weight.shape) != 2:
        raise ValueError(
            f"{path}: {module}.{_ROWS} is there, but {module}.weight is not an int8 weight of bitsandbytes"
        )
    if not rows.dtype.is_floating_point or rows.shape != weight.shape[:1]:
        raise ValueError(f"{path}: {module}.{_ROWS} must be {list(weight.shape[:1])}, one number for each row")
    layout = entries.get(f"{module}.{_FORMAT}")
    if layout is not None and (
        math.prod(layout.shape) != 1 or TensorReader(map_files=False).read(layout).flatten().tolist() != [0]
    ):
        raise ValueError(
            f"{path}: {module}.weight is in a GPU's own order (bitsandbytes before 0.45): load and save it with the "
            "bitsandbytes it was made with, or start from the bf16 weights"
        )
    scale = RowScale(rows)
    if module.startswith(LAYERS):
        scales = TensorEntry(rows.file, torch.float32, (weight.shape[0], 1), rows.start, rows.stop, scale)
        return {f"{module}.qdata": weight, f"{module}.scale": scales}
    encoding = EightBitTensor(weight, scale)
    return {
        f"{module}.weight": TensorEntry(weight.file, torch.bfloat16, weight.shape, weight.start, weight.stop, encoding)
    }
