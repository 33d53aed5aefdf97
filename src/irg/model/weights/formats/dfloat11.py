"""DFloat11: bfloat16 weights with Huffman-coded exponents, without loss (Zhang et al. 2025, arXiv 2504.11651).

The weights of a group of layers are one sequence of numbers. ``G.sign_mantissa`` has a byte for each (sign, then the
seven bits of the mantissa), ``G.encoded_exponent`` the bits of all exponents' codes, the most significant first.
``G.luts`` says which code is which exponent: a table of 256 entries for each prefix of whole bytes, where a value of
240 and more stands for the table 256 - value, which the next byte is looked up in; its last row has the length of each
exponent's code. So that many threads can decode at once, the bits are cut into windows of ``bytes_per_thread``, with
the place of the first code that begins in each (``G.gaps``, 5 bits a window), and windows are grouped into blocks of
``threads_per_block``, with the number of exponents before each (``G.output_positions``, uint32). Where one weight ends
and the next begins says ``G.split_positions``; which weights they are, ``dfloat11_config`` in ``config.json``: regular
expressions of groups, each with the modules in it. A weight has no shape here; it takes the network's.

Legend: W windows; K codes that are looked up together.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irg.model.weights.config_files import CONFIG, read_json
from irg.model.weights.key_names import ROOTS
from irg.model.weights.manifest import TensorEntry, read_header
from irg.model.weights.tensor_reader import TensorReader

NAME = "DFloat11"
SETTINGS = "dfloat11_config"
_PARTS = ("encoded_exponent", "sign_mantissa", "luts", "gaps", "output_positions", "split_positions")
_FIRST_TABLE, _NO_CODE = 240, 256  # values from the first on are tables
_GAP_BITS, _MAX_CODE_BYTES = 5, 4
_MAX_SPLITS = 1 << 12
_WINDOWS = 1 << 16  # decoded at a time
_AT_ONCE, _NONE = 8, 127  # codes that are looked up together; no code


@dataclass(frozen=True)
class Group:
    """Weights whose numbers lie one after the other."""

    path: Path
    name: str
    parts: Mapping[str, TensorEntry]
    window_bytes: int
    block_windows: int

    def corrupt(self, what: str) -> ValueError:
        return ValueError(f"{self.path} is corrupt: {self.name} (DFloat11) {what}")

    @property
    def numbers(self) -> int:
        return self.parts["sign_mantissa"].stop - self.parts["sign_mantissa"].start

    @property
    def bytes(self) -> int:
        """Of the encoded exponents."""
        return self.parts["encoded_exponent"].stop - self.parts["encoded_exponent"].start

    @property
    def windows(self) -> int:
        return -(-self.bytes // self.window_bytes)


@dataclass(frozen=True)
class DFloat11Tensor:
    """Numbers ``first`` to ``last`` of a group: one weight, flat."""

    group: Group
    first: int
    last: int
    shape: tuple[int, ...]

    def decode(self) -> Tensor:
        bits = decoded_exponents(self.group, self.first, self.last).to(torch.int16)
        others = _read(self.group.parts["sign_mantissa"], self.first, self.last)
        bits <<= 7
        bits |= others & 0x7F
        bits |= (others & 0x80).to(torch.int16) << 8
        return bits.view(torch.bfloat16).view(self.shape)


def decode_entries(path: Path, entries: Mapping[str, TensorEntry]) -> tuple[str, dict[str, TensorEntry]] | None:
    """The format's name and the tensors that a file stands for, flat; None if it is not of this format.

    Raises:
        ValueError: it is, but ``config.json`` does not say which weights it holds, or a part is missing or damaged.
    """
    groups = [key.removesuffix(".encoded_exponent") for key in entries if key.endswith(".encoded_exponent")]
    if not groups:
        return None
    settings = _settings(path.parent / CONFIG)
    decoded = {key: e for key, e in entries.items() if not (key.rpartition(".")[2] in _PARTS and _owner(key) in groups)}
    for name in groups:
        group = _group(path, name, entries, settings)
        modules = next((m for pattern, m in settings["pattern_dict"].items() if _matches(pattern, name)), None)
        if modules is None:
            raise ValueError(f"{path.parent / CONFIG}: no pattern of {SETTINGS} fits {name}")
        ends = [*_splits(group), group.numbers]
        weights = [f"{name}.{module}.weight" for module in modules] or [f"{name}.weight"]
        if len(weights) != len(ends):
            raise group.corrupt(f"has {len(ends)} weights, {SETTINGS} names {len(weights)}")
        for weight, first, last in zip(weights, [0, *ends], ends, strict=False):
            encoding = DFloat11Tensor(group, first, last, (last - first,))
            place = group.parts["sign_mantissa"]
            decoded[weight] = TensorEntry(
                place.file, torch.bfloat16, encoding.shape, place.start + first, place.start + last, encoding
            )
    return NAME, decoded


def entries_beside(path: Path, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Tensors of groups that have files of their own, beside that of the unified model's other weights.

    Raises:
        ValueError: such a file is damaged.
    """
    config = path.parent / CONFIG
    if not any(key.partition(".")[0] in ROOTS for key in entries) or not config.is_file():
        return {}
    try:
        if SETTINGS not in read_json(config):
            return {}
    except ValueError:
        return {}  # BAGEL's own config.json was no JSON at first
    files = {entry.file for entry in entries.values()}
    headers = [read_header(other) for other in sorted(path.parent.glob("*.safetensors")) if other not in files]
    groups = [header for header in headers if any(key.endswith(".encoded_exponent") for key in header)]
    return {key: entry for header in groups for key, entry in header.items()}


def reshaped(entry: TensorEntry, shape: tuple[int, ...]) -> TensorEntry:
    """A flat weight in the network's shape, if it has as many numbers; anything else as it is."""
    flat = entry.encoding
    if not isinstance(flat, DFloat11Tensor) or torch.Size(shape).numel() != flat.last - flat.first:
        return entry
    encoding = DFloat11Tensor(flat.group, flat.first, flat.last, shape)
    return TensorEntry(entry.file, entry.dtype, shape, entry.start, entry.stop, encoding)


# ------------------------------------------------------------------------------------------------------------ decoding


def decoded_exponents(group: Group, first: int, last: int) -> Tensor:
    """Exponents of numbers ``first`` to ``last`` of a group, uint8; only the blocks that hold them are read.

    Raises:
        ValueError: the group is damaged.
    """
    if first == last:
        return torch.empty(0, dtype=torch.uint8)
    before = TensorReader(map_files=False).read(group.parts["output_positions"]).flatten().view(torch.uint32).long()
    if before[0] != 0 or before[-1] != group.numbers or (before.diff() < 0).any():
        raise group.corrupt("has output_positions that do not count its numbers")
    start = int((before <= first).nonzero().max())
    stop = int((before >= last).nonzero().min())
    codes = Codes.of(TensorReader(map_files=False).read(group.parts["luts"]).long())
    windows = range(start * group.block_windows, min(stop * group.block_windows, group.windows))
    pieces, found, wanted = [], 0, int(before[stop] - before[start])
    for begin in range(windows.start, windows.stop, _WINDOWS):
        pieces.append(_decode_windows(group, codes, begin, min(begin + _WINDOWS, windows.stop)))
        found += len(pieces[-1])
    if found < wanted:  # the bits that fill the last byte may add some
        raise group.corrupt(f"has {found} exponents where {wanted} should be")
    skip = first - int(before[start])
    return torch.cat(pieces)[skip : skip + last - first]


@dataclass(frozen=True)
class Codes:
    """The code of a group, and what all sequences of 16 bits begin with: up to eight whole codes."""

    tables: Tensor  # [tables, 256] int64: an exponent, another table, or _NO_CODE
    lengths: Tensor  # [257] int64, of each exponent's code; 0 for what is none
    exponents: Tensor  # [2^16] int64: eight bytes
    begins: Tensor  # [2^16] int64, eight bytes: the bit where each of these codes begins; _NONE where there is none
    bits: Tensor  # [2^16] int32, of all of these codes; 0 where the first is longer than 16 bits

    @staticmethod
    def of(luts: Tensor) -> "Codes":
        tables, lengths = _tables(luts)
        word = torch.arange(1 << 16) << 16
        exponents = torch.zeros(1 << 16, _AT_ONCE, dtype=torch.uint8)
        begins = torch.full((1 << 16, _AT_ONCE), _NONE, dtype=torch.int8)
        place, whole = torch.zeros_like(word), torch.ones_like(word, dtype=torch.bool)
        for k in range(_AT_ONCE):
            exponent, length = _first_code(tables, lengths, word << place & 0xFFFFFFFF)
            whole &= (length > 0) & (place + length <= 16)
            exponents[:, k] = exponent.to(torch.uint8)
            begins[whole, k] = place[whole].to(torch.int8)
            place += torch.where(whole, length, 0)
        return Codes(tables, lengths, exponents.view(torch.int64)[:, 0], begins.view(torch.int64)[:, 0], place.int())


def _tables(luts: Tensor) -> tuple[Tensor, Tensor]:
    """The tables with the codes alone, and the codes' lengths.

    The library fills entries that no code leads to with the value before them, if need be that of the table before.
    So a value counts only in the first table that has it, from its first entry on, as often as its code's length says.
    """
    tables = torch.full((len(luts) - 1, 256), _NO_CODE)
    lengths = torch.zeros(257, dtype=torch.long)
    lengths[:_FIRST_TABLE] = luts[-1, :_FIRST_TABLE]
    for value in luts[:-1].unique().tolist():
        row, first = (luts[:-1] == value).nonzero()[0].tolist()
        length = int(lengths[value])
        entries = 1 if value >= _FIRST_TABLE else 1 << (-length % 8) if length else 0
        tables[row, first : first + entries] = value
    return tables, lengths


def _first_code(tables: Tensor, lengths: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents of the codes that 32 bits begin with, and the codes' lengths: 0 where there is no code."""
    value = tables[0, bits >> 24]
    for shift in (16, 8, 0):
        deeper = ((value >= _FIRST_TABLE) & (value < _NO_CODE)).nonzero().flatten()
        if not len(deeper):
            break
        value[deeper] = tables[(256 - value[deeper]).clamp(max=len(tables) - 1), bits[deeper] >> shift & 255]
    return value, lengths[value]


def _decode_windows(group: Group, codes: Codes, begin: int, end: int) -> Tensor:
    """All exponents whose codes begin in windows ``begin`` to ``end``, in order, uint8."""
    size, encoded = group.window_bytes, group.parts["encoded_exponent"]
    data = _read(encoded, begin * size, min(end * size + _MAX_CODE_BYTES + 1, group.bytes))
    data = torch.nn.functional.pad(data, (0, (end - begin) * size + _MAX_CODE_BYTES + 1 - len(data)))
    wide = data.int()
    words = wide[:-2] << 16 | wide[1:-1] << 8 | wide[2:]  # the 24 bits from every byte on
    place_W = torch.arange(end - begin, dtype=torch.int32) * (8 * size)
    limit_W = (place_W + 8 * size).clamp(max=8 * (group.bytes - begin * size))
    place_W += _gaps(group, begin, end)
    exponents: list[Tensor] = []
    begun: list[Tensor] = []
    while (place_W < limit_W).any():
        at = place_W.clamp(max=8 * (len(data) - _MAX_CODE_BYTES - 1))
        bits = words.index_select(0, at >> 3) >> (8 - (at & 7)) & 0xFFFF
        found_WK = codes.exponents.index_select(0, bits).view(torch.uint8).view(-1, _AT_ONCE)
        begins_WK = codes.begins.index_select(0, bits).view(torch.int8).view(-1, _AT_ONCE)
        length_W = codes.bits.index_select(0, bits)
        long = ((length_W == 0) & (place_W < limit_W)).nonzero().flatten()
        if len(long):
            exponent, length = _first_code(codes.tables, codes.lengths, _32_bits(data, at[long]))
            if end < group.windows and not length.all():  # the end has bits that stand for no exponent
                raise group.corrupt("has bits that are no code")
            found_WK[long, 0], begins_WK[long, 0] = exponent.to(torch.uint8), 0
            length_W[long] = torch.where(length > 0, length, 8 * size).int()
        exponents.append(found_WK)
        begun.append(begins_WK < (limit_W - place_W).clamp(min=0).to(torch.int8)[:, None])
        place_W += length_W
    if not exponents:
        return torch.empty(0, dtype=torch.uint8)
    return torch.cat(exponents, dim=1)[torch.cat(begun, dim=1)]


def _32_bits(data: Tensor, place: Tensor) -> Tensor:
    """The 32 bits from each place on, int64."""
    shifts = torch.arange(8 * _MAX_CODE_BYTES, -1, -8)
    forty = (data[(place >> 3)[:, None] + torch.arange(_MAX_CODE_BYTES + 1)].long() << shifts).sum(1)
    return forty >> (8 - (place & 7)) & 0xFFFFFFFF


def _gaps(group: Group, begin: int, end: int) -> Tensor:
    """Where in each window the first code begins, in bits."""
    first_bit, last_bit = begin * _GAP_BITS, end * _GAP_BITS
    packed = _read(group.parts["gaps"], first_bit // 8, -(-last_bit // 8))
    bits = (packed[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1).flatten().long()
    bits_WB = bits[first_bit % 8 :][: (end - begin) * _GAP_BITS].view(-1, _GAP_BITS)
    return (bits_WB << torch.arange(_GAP_BITS - 1, -1, -1)).sum(1).int()


def _read(part: TensorEntry, start: int, stop: int) -> Tensor:
    """Some bytes of a part."""
    entry = TensorEntry(part.file, torch.uint8, (stop - start,), part.start + start, part.start + stop)
    return TensorReader(map_files=False).read(entry)


# ------------------------------------------------------------------------------------------------------------- headers


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = read_json(path).get(SETTINGS) if path.is_file() else None
    except ValueError:
        settings = None
    sane = isinstance(settings, dict)
    if isinstance(settings, dict):
        patterns, threads, size = (settings.get(k) for k in ("pattern_dict", "threads_per_block", "bytes_per_thread"))
        sane = isinstance(patterns, dict) and type(size) is int and 5 <= size <= 15
        sane = sane and isinstance(threads, list) and len(threads) == 1 and type(threads[0]) is int and threads[0] > 0
        sane = sane and all(
            isinstance(m, list) and all(isinstance(n, str) for n in m) for m in (patterns or {}).values()
        )
    if not sane:
        raise ValueError(
            f"{path} has no usable {SETTINGS}: DFloat11 weights need the config.json that they were published with"
        )
    assert isinstance(settings, dict)
    return settings


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _group(path: Path, name: str, entries: Mapping[str, TensorEntry], settings: Mapping[str, Any]) -> Group:
    parts = {part: entries[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in entries}
    group = Group(path, name, parts, settings["bytes_per_thread"], settings["threads_per_block"][0])
    missing = [part for part in _PARTS[:-1] if part not in parts]
    if missing:
        raise group.corrupt(f"lacks {', '.join(missing)}")
    bytes_of = {part: entry.stop - entry.start for part, entry in parts.items()}
    blocks = -(-group.windows // group.block_windows)
    luts = parts["luts"]
    plain = all(parts[part].dtype == torch.uint8 for part in _PARTS[:4])
    if not plain or len(luts.shape) != 2 or luts.shape[1] != 256 or not 2 <= luts.shape[0] <= 17:
        raise group.corrupt("has parts of another dtype or shape than DFloat11's")
    if bytes_of["output_positions"] != 4 * (blocks + 1):
        raise group.corrupt(
            f"has {bytes_of['output_positions'] // 4 - 1} output_positions, its {blocks} blocks need one each"
        )
    if bytes_of["gaps"] * 8 < blocks * group.block_windows * _GAP_BITS:
        raise group.corrupt("has fewer gaps than windows")
    return group


def _splits(group: Group) -> list[int]:
    """Where the group's weights but the last end."""
    entry = group.parts.get("split_positions")
    if entry is None:
        return []
    if entry.dtype != torch.int64 or len(entry.shape) != 1 or entry.shape[0] > _MAX_SPLITS:
        raise group.corrupt("has split_positions of another format than DFloat11's")
    ends: list[int] = TensorReader(map_files=False).read(entry).tolist()
    if any(not a <= b for a, b in zip([0, *ends], [*ends, group.numbers], strict=True)):
        raise group.corrupt("has split_positions out of order")
    return ends
