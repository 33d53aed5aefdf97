"""Which tensors a folder's weight files hold, read from their headers alone.

Only safetensors files are opened. A header is believed after it has been checked: offsets in order, inside the file and
of the size that shape and dtype say.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from torch import Tensor

from irg.model.weights.config_files import read_json

MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
MAX_AXES = 8  # multiplying the sizes of a made-up shape of millions of axes would take for ever
SHARD = re.compile(r"(.+?)[-._](\d{1,6})-of-(\d{1,6})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Encoding(Protocol):
    """A tensor that is stored in another format than its plain numbers (:mod:`irg.model.weights.formats`)."""

    def decode(self) -> Tensor:
        """The numbers, in host memory, in the entry's shape and a floating-point dtype.

        Raises:
            ValueError: what is stored is damaged.
        """


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: ``[start, stop)`` are bytes of ``file``.

    With an ``encoding`` these are the bytes of its main part; ``dtype`` and ``shape`` are those of the decoded numbers.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    encoding: Encoding | None = None


def format_size(size: float) -> str:
    """Bytes as text: ``29.2 GB`` (1e9), ``47.1 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Tensors of a safetensors file, of all files that a ``.index.json`` names, or of a set of shards without an index,
    given one of them. No tensor data is read.

    Raises:
        ValueError: a file is missing, truncated or corrupt, or the index points outside its folder.
    """
    if SHARD.fullmatch(path.name):
        return _read_shards(path)
    if path.suffix != ".json":
        return read_header(path)
    weight_map = read_index(path)
    shards = {name: read_header(_shard(path, name)) for name in dict.fromkeys(weight_map.values())}
    entries: dict[str, TensorEntry] = {}
    for key, name in weight_map.items():
        if key not in shards[name]:
            raise ValueError(f"{path}: {name} does not hold {key}, though the index says so")
        entries[key] = shards[name][key]
    for header in shards.values():  # tensors the index does not list still count as left over
        for key, entry in header.items():
            entries.setdefault(key, entry)
    return entries


def _read_shards(path: Path) -> dict[str, TensorEntry]:
    """Tensors of all shards of a set without an index."""
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(other for other in path.parent.iterdir() if _same_set(path.name, other.name)):
        header = read_header(shard)
        if twice := entries.keys() & header.keys():
            key = min(twice)
            raise ValueError(f"{shard} and {entries[key].file.name} both hold {key}")
        entries |= header
    return entries


def _same_set(one: str, other: str) -> bool:
    a, b = SHARD.fullmatch(one), SHARD.fullmatch(other)
    return a is not None and b is not None and (a[1], a[3]) == (b[1], b[3])


def missing_shards(names: Sequence[str]) -> str | None:
    """What lacks to shards of one set, counted from 0 or 1: None if nothing does.

    Raises:
        ValueError: they are shards of sets of different sizes.
    """
    matches = [match for match in map(SHARD.fullmatch, names) if match]
    if not matches:
        return None
    totals = {int(match[3]) for match in matches}
    if len(totals) > 1:
        raise ValueError(f"{names[0]} and {names[-1]} are shards of different sets: leave only one of them")
    (total,), numbers = totals, {int(match[2]) for match in matches}
    first = 0 if 0 in numbers else 1
    lost = sorted(set(range(first, first + total)) - numbers)
    return f"shard {lost[0]} of {total} ({names[0]} is there)" if lost else None


def read_index(path: Path) -> dict[str, str]:
    """A shard index: tensor -> file, each a relative path of a safetensors file that stays inside the folder.

    Raises:
        ValueError: it is not that.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: weight_map is missing or empty")
    for name in weight_map.values():
        _check_inside(path, name)
    return weight_map


def _check_inside(index: Path, name: Any) -> None:
    inside = isinstance(name, str) and name.strip() != "" and "\\" not in name and "\0" not in name
    if not inside or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or Path(name).drive:
        raise ValueError(f"{index}: entry {name!r} is not a file inside the folder")
    if not name.endswith(".safetensors"):
        raise ValueError(f"{index}: entry {name!r} is not a safetensors file")


def _shard(index: Path, name: str) -> Path:
    path = index.parent / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: {index.name} names it")
    return path


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Tensors of one safetensors file, by its header.

    Raises:
        ValueError: the file is missing, truncated or corrupt.
    """
    header, base, size = _header(path)
    header.pop("__metadata__", None)
    entries = {key: _entry(path, key, value, base, size) for key, value in header.items()}
    _check_coverage(path, entries.values(), base, size)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file's header has beside its tensors.

    Raises:
        ValueError: the file is missing, truncated or corrupt.
    """
    metadata = _header(path)[0].get("__metadata__")
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """A safetensors file's header, where its tensors begin, and the file's size."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"{path} {_what_else(prefix, size)}")
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error.strerror}") from None
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is corrupt: its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is corrupt: its header is not an object")
    return header, 8 + length, size


def _what_else(prefix: bytes, size: int) -> str:
    """What a file is that does not begin as safetensors do: mostly a download that went wrong."""
    if prefix == b"version ":
        return "is a Git LFS pointer, not the file itself: fetch it with git lfs pull, or with hf download"
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle under another name, which can run code when it is opened, so it is not read"
    if prefix.startswith(b"GGUF"):
        return "is a GGUF file under another name: its name must end in .gguf"
    if prefix.lstrip()[:1] == b"<":
        return "is a web page, not the file itself: the download went wrong"
    return f"is not a safetensors file, or it is truncated ({size} bytes)"


def _entry(path: Path, key: str, value: Any, base: int, size: int) -> TensorEntry:
    """One tensor of a header, checked."""
    try:
        name, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        sane = isinstance(name, str) and isinstance(shape, list) and len(shape) <= MAX_AXES
        sane = sane and all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        sane = False
    if not sane:
        raise ValueError(f"{path} is corrupt: its header's entry for {key} is malformed")
    if name not in DTYPES:
        raise ValueError(f"{path}: {key} has dtype {name}, which is not supported")
    if stop > size - base:
        raise ValueError(f"{path} is truncated: {key} ends at byte {base + stop}, the file at {size}")
    if math.prod(shape) * DTYPES[name].itemsize != stop - start:
        raise ValueError(f"{path} is corrupt: {key} has {stop - start} bytes, which is not what {name} {shape} takes")
    return TensorEntry(path, DTYPES[name], tuple(shape), base + start, base + stop)


def _check_coverage(path: Path, entries: Iterable[TensorEntry], base: int, size: int) -> None:
    """Tensors must lie one after the other and fill the file: no overlap, no hole, nothing behind them."""
    end = base
    for entry in sorted(entries, key=lambda e: (e.start, e.stop)):
        if entry.start != end:
            raise ValueError(f"{path} is corrupt: its tensors overlap or leave a hole at byte {min(end, entry.start)}")
        end = entry.stop
    if end != size:
        raise ValueError(f"{path} is corrupt: {size - end} bytes follow its last tensor")


def compare(
    entries: Mapping[str, TensorEntry],
    expected: Mapping[str, tuple[int, ...]],
    path: Path,
    optional: Iterable[str] = (),
    reshaped: Mapping[str, tuple[int, ...]] | None = None,
    exact: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Compare a file's tensors with a model's, before any data is read.

    Args:
        expected: the model's keys and shapes.
        optional: keys that may be missing.
        reshaped: second shapes that are accepted too.
        exact: keys that must have this dtype; all others must be of a floating-point one.

    Raises:
        ValueError: keys are missing or left over, or have another shape or dtype.
    """
    reshaped, exact = reshaped or {}, exact or {}
    missing = [key for key in expected if key not in entries and key not in set(optional)]
    left_over = [key for key in entries if key not in expected]
    shared = [(key, entries[key]) for key in expected if key in entries]
    misshapen = [
        f"{key} {list(entry.shape)} instead of {list(expected[key])}"
        for key, entry in shared
        if entry.shape not in (expected[key], reshaped.get(key))
    ]
    mistyped = [f"{key} {entry.dtype}" for key, entry in shared if entry.dtype != exact.get(key, entry.dtype)]
    not_float = [key for key, entry in shared if not (key in exact or entry.dtype.is_floating_point)]
    problems = [
        _listed(what, keys)
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("of the wrong shape", misshapen),
            ("of the wrong dtype", mistyped),
            ("not of a floating-point dtype", not_float),
        )
        if keys
    ]
    if problems:
        raise ValueError(f"{path} does not fit the configuration: {'; '.join(problems)}")


def _listed(what: str, keys: Sequence[str], first: int = 3) -> str:
    more = f" and {len(keys) - first} more" if len(keys) > first else ""
    named = (key if len(key) <= 200 else f"{key[:197]}..." for key in keys[:first])
    return f"{len(keys)} {what}: {', '.join(named)}{more}"
