"""Safetensors files written tensor by tensor: no more than one tensor is in memory, and a file has its final bytes.

Tensors lie in a file as the safetensors library would put them (widest dtype first, then by name), so what it has
written and this module writes again is the same file, byte for byte.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from irg.model.weights.manifest import DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor to write: what it will be, and how to make it when its turn comes."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path,
    name: str,
    tensors: Iterable[Planned],
    shard_bytes: int | None = None,
    wrote: Callable[[int], None] = lambda _: None,
    by_key: bool = False,
    holes: bool = False,
) -> list[Path]:
    """Write ``name.safetensors``, or shards of at most ``shard_bytes`` (a larger tensor gets one of its own) and their
    index ``name.safetensors.index.json``.

    Args:
        folder: of which nothing is kept if writing fails: the caller's temporary one.
        wrote: called with the bytes of each tensor once it is written.
        by_key: tensors lie by name alone, so that those made together (a weight's quantized parts) follow each other.
        holes: write zeros instead of the tensors, as files that take no room on disk.

    Raises:
        OSError: the folder can't be written.
    """
    tensors = sorted(tensors, key=lambda tensor: tensor.key)
    groups = _groups(tensors, shard_bytes)
    groups = groups if by_key else [_in_file_order(group) for group in groups]

    def write(path: Path, group: Sequence[Planned]) -> Path:
        return write_holes(path, group) if holes else _write_file(path, group, wrote)

    if len(groups) == 1:
        return [write(folder / f"{name}.safetensors", groups[0])]
    names = [f"{name}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    paths = [write(folder / file, group) for file, group in zip(names, groups, strict=True)]
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
        "weight_map": {tensor.key: file for file, group in zip(names, groups, strict=True) for tensor in group},
    }
    path = folder / f"{name}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [*paths, path]


def write_holes(path: Path, tensors: Sequence[Planned]) -> Path:
    """A file of zeros that takes no room on disk (on file systems with sparse files)."""
    with path.open("wb") as file:
        file.truncate(_write_header(file.write, _in_file_order(tensors)))
    return path


def _groups(tensors: Sequence[Planned], shard_bytes: int | None) -> list[list[Planned]]:
    groups: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shard_bytes is not None and groups[-1] and size + tensor.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def _in_file_order(tensors: Iterable[Planned]) -> list[Planned]:
    return sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.key))


def _write_header(write: Callable[[bytes], object], ordered: Sequence[Planned]) -> int:
    """Write a header; returns the file's size with all tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        offsets = [end, end + tensor.nbytes]
        header[tensor.key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    write(struct.pack("<Q", len(text)) + text)
    return 8 + len(text) + end


def _write_file(path: Path, ordered: Sequence[Planned], wrote: Callable[[int], None]) -> Path:
    with path.open("wb") as file:
        _write_header(file.write, ordered)
        for planned in ordered:
            tensor = planned.make()
            assert tensor.shape == planned.shape and tensor.dtype == planned.dtype, planned.key
            if planned.nbytes:
                file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            wrote(planned.nbytes)
    return path
