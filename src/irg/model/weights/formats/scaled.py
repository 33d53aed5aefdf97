"""8-bit weights with a scale beside each: fp8 as ComfyUI, transformers and vLLM write it, and int8 of the same format.

``X.weight`` is stored as float8 or int8, its scale as ``X.scale_weight`` (ComfyUI until 2025, with an empty marker
tensor ``scaled_fp8``), ``X.weight_scale`` (ComfyUI since then, compressed-tensors) or ``X.weight_scale_inv``
(transformers' finegrained fp8). In all of them the weight is the stored number times the scale. A scale stands for the
whole weight, for an output row, or for a block of 128 x 128. Scales of activations (``scale_input``, ``input_scale``)
are for kernels that multiply in fp8; they are left out, since the weight is decoded before it is used.

Written is ComfyUI's first format, which its later versions read too.

Legend: O outputs; I inputs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irg.model.weights.manifest import TensorEntry, read_metadata
from irg.model.weights.shards import Planned
from irg.model.weights.tensor_reader import TensorReader

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MARKER, SCALE = "scaled_fp8", "scale_weight"
BLOCK = 128
_SCALES = (SCALE, "weight_scale", "weight_scale_inv")
_ACTIVATIONS = ("scale_input", "input_scale")
_KIND = "comfy_quant"  # ComfyUI: how a layer is quantized, as JSON in a tensor of bytes
_KINDS_READ = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_blockwise")
_MAX_KIND_BYTES = 1 << 16


@dataclass(frozen=True)
class ScaledTensor:
    """A weight [O, I] of 8-bit numbers, and its scale."""

    numbers: TensorEntry
    scale: TensorEntry

    def decode(self) -> Tensor:
        reader = TensorReader(map_files=False)
        weight_OI = reader.read(self.numbers, torch.float32)
        return weight_OI.mul_(_spread(reader.read(self.scale, torch.float32), weight_OI.shape))


def decode_entries(path: Path, entries: Mapping[str, TensorEntry]) -> tuple[str, dict[str, TensorEntry]] | None:
    """The format's name and the tensors that a file stands for; None if it is not of this format.

    Raises:
        ValueError: it is, but a scale is missing or of another shape, or a layer is quantized in another way.
    """
    scales = {
        f"{module}.weight": (key, entry)
        for key, entry in entries.items()
        for module, _, leaf in [key.rpartition(".")]
        if leaf in _SCALES and _is_small(entries.get(f"{module}.weight"))
    }
    if not scales and not any(key.endswith(MARKER) for key in entries):
        return None
    _check_kinds(path, entries)
    decoded: dict[str, TensorEntry] = {}
    used = {key for key, _ in scales.values()}
    for key, entry in entries.items():
        leaf = key.rpartition(".")[2]
        if key in used or leaf in (*_ACTIVATIONS, _KIND, MARKER):
            continue
        if key in scales:
            entry = _scaled(path, key, entry, scales[key][1])
        elif _is_small(entry) and len(entry.shape) > 1:
            raise ValueError(
                f"{path}: {key} is stored in 8 bits, but its scale is missing ({key.rpartition('.')[0]}.{SCALE})"
            )
        decoded[key] = entry
    fp8 = any(entries[key].dtype in FP8 for key in scales)
    return f"scaled {'fp8' if fp8 or not scales else 'int8'}", decoded


def marker() -> Planned:
    """The empty tensor that tells ComfyUI what a file's scales are."""
    return Planned(MARKER, (0,), torch.float8_e4m3fn, lambda: torch.empty(0, dtype=torch.float8_e4m3fn))


def part_shapes(inputs: int, outputs: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of the parts that :func:`quantized_parts` makes of a weight."""
    return {SCALE: ((), torch.float32), "weight": ((outputs, inputs), torch.float8_e4m3fn)}


def quantized_parts(weight_OI: Tensor) -> dict[str, Tensor]:
    """A weight as float8_e4m3fn and its scale, one for the whole weight: the largest number becomes 448."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    weight_OI = weight_OI.to(torch.float32)
    scale = (weight_OI.abs().amax() / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return {SCALE: scale, "weight": (weight_OI / scale).clamp(-largest, largest).to(torch.float8_e4m3fn)}


# --------------------------------------------------------------------------------------------------------- the details


def _is_small(entry: TensorEntry | None) -> bool:
    return entry is not None and entry.dtype in (*FP8, torch.int8)


def _scaled(path: Path, key: str, numbers: TensorEntry, scale: TensorEntry) -> TensorEntry:
    if not scale.dtype.is_floating_point or not _fits(scale.shape, numbers.shape):
        raise ValueError(
            f"{path}: the scale of {key} {list(numbers.shape)} has shape {list(scale.shape)}: expected one number, "
            f"one for each row, or one for each block of {BLOCK} x {BLOCK}"
        )
    encoding = ScaledTensor(numbers, scale)
    return TensorEntry(numbers.file, torch.bfloat16, numbers.shape, numbers.start, numbers.stop, encoding)


def _fits(scale: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    if scale in ((), (1,), (1, 1)):
        return True
    if len(weight) != 2:
        return False
    return scale in ((weight[0],), (weight[0], 1)) or scale == _blocks(weight)


def _blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-size // BLOCK) for size in shape)


def _spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale as it multiplies a weight of ``shape``."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == shape[0] and scale.shape[1:] in ((), (1,)):
        return scale.reshape(-1, 1)
    scale_OI = scale.repeat_interleave(BLOCK, 0)[: shape[0]]
    return scale_OI.repeat_interleave(BLOCK, 1)[:, : shape[1]]


def _check_kinds(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse layers that ComfyUI's own description says are quantized in a way that is not read."""
    kinds: dict[str, Any] = {}
    for file in {entry.file for entry in entries.values()}:
        described = _json(read_metadata(file).get("_quantization_metadata", "{}")).get("layers")
        kinds |= described if isinstance(described, dict) else {}
    for key, entry in entries.items():
        if key.endswith(f".{_KIND}") and entry.stop - entry.start <= _MAX_KIND_BYTES and entry.dtype == torch.uint8:
            text = bytes(TensorReader(map_files=False).read(entry).flatten().tolist()).decode("utf-8", "replace")
            kinds[key.removesuffix(f".{_KIND}")] = _json(text)
    for module, kind in kinds.items():
        name = kind.get("format") if isinstance(kind, dict) else None
        if name not in _KINDS_READ or kind.get("convrot"):
            shown = "rotated int8" if name in _KINDS_READ else str(name)
            raise ValueError(
                f"{path}: ComfyUI's format {shown} of {module} is not read, only {', '.join(_KINDS_READ)}: start from "
                "the bf16 weights (irg model convert FOLDER OUT --quantize int4 makes them small)"
            )


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
