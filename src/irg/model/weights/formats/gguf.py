"""GGUF: tensors in blocks of llama.cpp's types, in a file with a header of its own. Needs the library ``gguf``.

The header is read here, field by field within the file's bounds: the library's reader trusts counts, and would take
memory for as many fields as a damaged file claims. Sizes of types, decoding and writing are the library's.

Tensors have the network's names. ComfyUI-GGUF's converter reshapes some so that rows are whole blocks, and keeps the
shape in a field ``comfy.gguf.orig_shape.NAME``; that is followed.
"""

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from irg.model.weights.manifest import MAX_AXES, TensorEntry
from irg.model.weights.shards import Planned
from irg.model.weights.tensor_reader import TensorReader

SUFFIX = ".gguf"
ARCHITECTURE = "bagel"
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SHAPE = "comfy.gguf.orig_shape."
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_FIELDS, _MAX_ITEMS, _MAX_TEXT = 1 << 16, 1 << 24, 1 << 24
_PIECE = 1 << 22  # bytes of a tensor that are decoded at a time


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in blocks of a type of llama.cpp's."""

    blocks: TensorEntry  # [rows, bytes of a row]
    type: str
    shape: tuple[int, ...]

    def decode(self) -> Tensor:
        library = _library()
        kind = library.GGMLQuantizationType[self.type]
        blocks = TensorReader(map_files=False).read(self.blocks)
        numbers, start = torch.empty(math.prod(self.shape)), 0
        for rows in blocks.split(max(1, _PIECE // max(1, blocks.shape[1]))):
            try:
                decoded = torch.from_numpy(library.quants.dequantize(rows.numpy(), kind)).flatten()
            except NotImplementedError as error:
                raise ValueError(f"{self.blocks.file}: type {self.type} can't be decoded: {error}") from None
            numbers[start : start + len(decoded)] = decoded
            start += len(decoded)
        return numbers.view(self.shape)


def read_gguf(path: Path) -> tuple[str, dict[str, TensorEntry]]:
    """The name of the file's format, by its most frequent type, and its tensors. No tensor data is read.

    Raises:
        ValueError: the file is missing, damaged, split, or of a language model in llama.cpp's names; or the library is
            missing.
    """
    library = _library()
    try:
        with path.open("rb") as file:
            header = _Header(file, path.stat().st_size)
            fields, tensors = header.read()
            begin = -(-file.tell() // header.alignment) * header.alignment
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error.strerror}") from None
    except (struct.error, _DamagedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no GGUF file, or it is truncated or corrupt ({error})") from None
    if fields.get("split.count", 1) not in (0, 1):
        raise ValueError(f"{path} is one of {fields['split.count']} parts: join them with llama-gguf-split --merge")
    if "token_embd.weight" in {tensor.name for tensor in tensors}:
        kind = fields.get("general.architecture", "unknown")
        raise ValueError(f"{path} is a language model for llama.cpp (architecture {kind}), not a unified model")
    entries, types = dict[str, TensorEntry](), dict[str, int]()
    for tensor in tensors:
        if tensor.name in entries:
            raise ValueError(f"{path} is corrupt: it has {tensor.name} twice")
        try:
            kind = library.GGMLQuantizationType(tensor.type)
        except ValueError:
            raise ValueError(
                f"{path}: {tensor.name} has type {tensor.type}, which the library gguf does not know"
            ) from None
        shape = _shape(path, tensor, fields.get(_SHAPE + tensor.name))
        entries[tensor.name] = _entry(path, tensor, kind.name, library.GGML_QUANT_SIZES[kind], shape, begin)
        types[kind.name] = types.get(kind.name, 0) + math.prod(shape)
    smallest = max(types, key=lambda name: (name not in _PLAIN, name != "F32", types[name]), default="empty")
    return f"GGUF {smallest}", entries


def _shape(path: Path, tensor: "_Tensor", original: Any) -> tuple[int, ...]:
    if original is None:
        return tensor.shape
    shape = tuple(original) if isinstance(original, list) else ()
    sane = len(shape) <= MAX_AXES and all(type(n) is int and n > 0 for n in shape)
    if not sane or math.prod(shape) != math.prod(tensor.shape):
        raise ValueError(
            f"{path} is corrupt: {_SHAPE}{tensor.name} is not a shape of {math.prod(tensor.shape)} numbers"
        )
    return shape


def _entry(
    path: Path, tensor: "_Tensor", kind: str, sizes: tuple[int, int], shape: tuple[int, ...], begin: int
) -> TensorEntry:
    """A tensor's entry, checked; ``sizes`` are the numbers and the bytes of a block of its type."""
    numbers, columns = math.prod(tensor.shape), tensor.shape[-1] if tensor.shape else 1
    if columns % sizes[0]:
        raise ValueError(f"{path} is corrupt: rows of {tensor.name} have {columns} numbers, no whole blocks of {kind}")
    start = begin + tensor.offset
    stop, size = start + numbers // sizes[0] * sizes[1], path.stat().st_size
    if stop > size:
        raise ValueError(f"{path} is truncated: {tensor.name} ends at byte {stop}, the file at {size}")
    if (dtype := _PLAIN.get(kind)) is not None:
        return TensorEntry(path, dtype, shape, start, stop)
    rows = numbers // columns if columns else 0
    blocks = TensorEntry(path, torch.uint8, (rows, (stop - start) // max(1, rows)), start, stop)
    return TensorEntry(path, torch.bfloat16, shape, start, stop, GgufTensor(blocks, kind, shape))


# ---------------------------------------------------------------------------------------------------------- the header


class _DamagedError(Exception):
    """A header that can't be true."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class _Header:
    """Reads a header front to back."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.alignment = file, size, 32

    def read(self) -> tuple[dict[str, Any], list[_Tensor]]:
        if self.file.read(4) != _MAGIC:
            raise _DamagedError("it does not begin with GGUF")
        version, count, fields = self.numbers("I")[0], *self.numbers("QQ")
        if version not in _VERSIONS:
            raise _DamagedError(f"version {version}")
        if max(count, fields) > _MAX_FIELDS:
            raise _DamagedError(f"{count} tensors and {fields} fields")
        values = {self.text(): self.value(self.numbers("I")[0]) for _ in range(fields)}
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise _DamagedError(f"alignment {alignment}")
        self.alignment = alignment
        return values, [self.tensor() for _ in range(count)]

    def tensor(self) -> _Tensor:
        name, (axes,) = self.text(), self.numbers("I")
        if axes > MAX_AXES:
            raise _DamagedError(f"{name} has {axes} axes")
        shape = self.numbers(f"{axes}Q")[::-1]
        return _Tensor(name, shape, self.numbers("I")[0], self.numbers("Q")[0])

    def numbers(self, layout: str) -> tuple[int, ...]:
        layout = "<" + layout
        return struct.unpack(layout, self.file.read(struct.calcsize(layout)))

    def text(self) -> str:
        (length,) = self.numbers("Q")
        if length > min(_MAX_TEXT, self.size):
            raise _DamagedError(f"a text of {length} bytes")
        return self.file.read(length).decode("utf-8")

    def value(self, kind: int) -> Any:
        """A field's value; None for a long array, which no field that is used here has."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise _DamagedError(f"a field of type {kind}")
        item, count = self.numbers("I")[0], self.numbers("Q")[0]
        if count > _MAX_ITEMS or item not in (*_SCALARS, _STRING):
            raise _DamagedError(f"an array of {count} items of type {item}")
        if item == _STRING:
            for _ in range(count):
                self.text()
            return None
        values = list(self.numbers(f"{count}{_SCALARS[item]}"))
        return values if count <= MAX_AXES else None


def _library() -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise ValueError(f"GGUF files need the library gguf: pip install 'irg[gguf]' ({error})") from error
    return gguf


# ------------------------------------------------------------------------------------------------------------- writing


def write_gguf(
    path: Path, tensors: Iterable[Planned], eight_bits: Callable[[str], bool], wrote: Callable[[int], None]
) -> None:
    """Write tensors one after the other: Q8_0 where ``eight_bits`` says so of the name and rows are whole blocks of 32,
    float32 for vectors (as ComfyUI-GGUF has them), else the tensor's own dtype.

    Raises:
        OSError: the file can't be written.
        ValueError: the library is missing.
    """
    library = _library()
    kinds, planned = library.GGMLQuantizationType, sorted(tensors, key=lambda tensor: tensor.key)
    chosen = {tensor.key: _kind(tensor, eight_bits(tensor.key)) for tensor in planned}
    writer = library.GGUFWriter(path, ARCHITECTURE)
    for tensor in planned:
        block, size = library.GGML_QUANT_SIZES[kinds[chosen[tensor.key]]]
        nbytes = math.prod(tensor.shape) // block * size
        # any dtype but uint8 makes the library take the shape as that of the numbers
        writer.add_tensor_info(tensor.key, tensor.shape, np.dtype(np.float32), nbytes, kinds[chosen[tensor.key]])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(_stored(library, tensor.make(), chosen[tensor.key]))
            wrote(tensor.nbytes)
    finally:
        writer.close()


def _kind(tensor: Planned, eight_bits: bool) -> str:
    if eight_bits and tensor.shape[-1] % 32 == 0:
        return "Q8_0"
    if len(tensor.shape) < 2:
        return "F32"
    return next(name for name, dtype in _PLAIN.items() if dtype == tensor.dtype)


def _stored(library: Any, tensor: Tensor, kind: str) -> Any:
    """A tensor's bytes."""
    if kind != "Q8_0":
        return tensor.to(_PLAIN[kind]).contiguous().view(-1).view(torch.uint8).numpy()
    rows = max(1, _PIECE // tensor.shape[-1])
    pieces = [
        library.quants.quantize(piece.float().numpy(), library.GGMLQuantizationType.Q8_0)
        for piece in tensor.split(rows)
    ]
    return np.concatenate(pieces)
