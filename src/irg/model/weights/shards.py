"""Safetensors files written tensor by tensor: no more than one tensor is in memory, and a file has its final bytes.

Tensors lie in a file as the safetensors library would put them (widest dtype first, then by name), so what it has
written and this module writes again is the same file, byte for byte.
"""

import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from irg import files
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
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``name.safetensors``, or shards of at most ``shard_bytes`` (a larger tensor gets one of its own) and their
    index ``name.safetensors.index.json``.

    Args:
        folder: of which nothing is kept if writing fails: the caller's temporary one.
        wrote: called with the bytes of each tensor once it is written.
        by_key: order tensors by name alone, so that those made together (a weight's quantized parts) follow each other.
        holes: write zeros instead of the tensors, as sparse files, which take no space on disk.
        metadata: texts for the files' headers.

    Raises:
        OSError: the folder can't be written.
    """
    planned = {tensor.key: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.key)}
    split = split_state_dict_into_shards_factory(
        planned,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=name + "{suffix}.safetensors",
        max_shard_size=sys.maxsize if shard_bytes is None else shard_bytes,
    )
    for file, keys in split.filename_to_tensors.items():
        group = [planned[key] for key in keys]
        _write_file(folder / file, group if by_key else _in_file_order(group), wrote, holes, metadata or {})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        files.write_json(folder / f"{name}.safetensors.index.json", index)


def _in_file_order(tensors: Iterable[Planned]) -> list[Planned]:
    return sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.key))


def _write_header(write: Callable[[bytes], object], ordered: Sequence[Planned], metadata: Mapping[str, str]) -> int:
    """Write a header; returns the file's size with all tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"} | dict(metadata)}
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


def _write_file(
    path: Path, ordered: Sequence[Planned], wrote: Callable[[int], None], holes: bool, metadata: Mapping[str, str]
) -> None:
    with path.open("wb") as file:
        size = _write_header(file.write, ordered, metadata)
        if holes:
            file.truncate(size)
            return
        for planned in ordered:
            tensor = planned.make()
            assert tensor.shape == planned.shape and tensor.dtype == planned.dtype, planned.key
            if planned.nbytes:
                file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            wrote(planned.nbytes)
