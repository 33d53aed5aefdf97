"""Rows of many parquet files in a shuffled order that several data streams share without overlap, and resume in.

A **row source** is all rows of one kind: trajectories of one turn, of two turns, or one mode's conversations. It is cut
into **slices** (a row group, or a stripe of one where there are few); every epoch has its own order of slices, of which
each data stream takes every n-th. Inside a slice rows come in chunks, each shuffled. The order is the same whether rows
are read when they are needed or held in memory (:mod:`.in_memory`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irg.learning.data.rows import CONVERSATION, TRAJECTORY, BadRow, open_parquet
from irg.learning.modes import EncodedTrajectory
from irg.learning.recipe import Draw
from irg.randomness import numpy_generator

CHUNK = 32
_SPOT, _SPOTS = 1 << 16, 64
MIN_SLICES = 64  # if there are rows enough, so that as many data streams can share
Memory = Mapping[tuple[Path, int], EncodedTrajectory | BadRow]
"""Rows held in memory by file and number, or why they can't be used."""


@dataclass(frozen=True)
class RowSlice:
    """Some rows of one row group, by their ascending numbers in it. ``first``: the group's first row in its file."""

    file: Path
    group: int
    first: int
    rows: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class SourceRow:
    """A row and where it was: enough to find it again. ``content``: its columns, or what is held in memory of it."""

    slice: int
    row: int  # in its row group
    where: str
    content: Mapping[str, Any] | EncodedTrajectory | BadRow
    folder: Path | None = None  # of the row's file


class RowSource:
    """All rows of one kind."""

    def __init__(
        self, name: str, slices: Sequence[RowSlice], columns: Sequence[str], seed: int, memory: Memory | None = None
    ) -> None:
        self.name, self.slices, self.columns, self.seed, self.memory = name, list(slices), tuple(columns), seed, memory
        self.rows = sum(len(part.rows) for part in slices)

    @property
    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and order, and the rows in them."""
        facts = [(s.file.name, s.file.stat().st_size, s.group, s.first, len(s.rows)) for s in self.slices]
        return hashlib.sha256(repr((self.name, facts)).encode()).hexdigest()

    @property
    def content_fingerprint(self) -> str:
        """Changes when a file is written anew, also with as many rows of the same size; see :func:`content_digest`."""
        files = dict.fromkeys(s.file for s in self.slices)
        return hashlib.sha256(b"".join(map(content_digest, files))).hexdigest()

    def check(self, streams: int) -> None:
        """Raise ValueError if there are more data streams than slices to share."""
        if len(self.slices) < streams:
            raise ValueError(
                f"data: {self.name} has {self.rows} rows in {len(self.slices)} pieces, too few for {streams} packs a "
                "step: lower parallel.accumulate, use fewer GPUs, or write smaller row groups"
            )

    def order(self, epoch: int) -> list[int]:
        """Slice numbers in an epoch's order."""
        return numpy_generator(self.seed, Draw.SLICE_ORDER, epoch).permutation(len(self.slices)).tolist()

    def read(self, number: int, epoch: int, start: int = 0) -> Iterator[SourceRow]:
        """Rows of a slice in an epoch's order, without the first ``start``."""
        done = 0
        for index, (rows, base, batch) in enumerate(self._chunks(self.slices[number])):
            if start < done + len(rows):
                order = numpy_generator(self.seed, Draw.ROW_ORDER, epoch, number, index).permutation(len(rows))
                for place in order[max(0, start - done) :].tolist():
                    yield self._row(number, int(rows[place]), base, batch)
            done += len(rows)

    def find(self, number: int, row: int) -> SourceRow:
        """One row again.

        Raises:
            ValueError: the file no longer has it.
        """
        part = self.slices[number]
        for rows, base, batch in self._chunks(part):
            if row in rows:
                return self._row(number, row, base, batch)
        raise ValueError(f"{part.file}: row {part.first + row} is gone: the data changed since the checkpoint was made")

    def in_file_order(self) -> Iterator[SourceRow]:
        """All rows as they stand in the files."""
        for number, part in enumerate(self.slices):
            for rows, base, batch in self._chunks(part):
                yield from (self._row(number, int(row), base, batch) for row in rows)

    def _chunks(self, part: RowSlice) -> Iterator[tuple[np.ndarray, int, Any]]:
        """(the slice's rows in a chunk of its row group, the chunk's first row, its columns unless held in memory)."""
        for base, length, batch in self._batches(part):
            low, high = np.searchsorted(part.rows, (base, base + length))
            yield part.rows[low:high], base, batch
            if high == len(part.rows):
                return

    def _batches(self, part: RowSlice) -> Iterator[tuple[int, int, Any]]:
        if self.memory is not None:
            yield from ((base, CHUNK, None) for base in range(0, int(part.rows[-1]) + 1, CHUNK))
            return
        base = 0
        try:
            opened = _opened(part.file, self.columns)
            for batch in opened.iter_batches(CHUNK, row_groups=[part.group], columns=[*self.columns]):
                yield base, len(batch), batch
                base += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{part.file}: row group {part.group} cannot be read: {error}") from None

    def _row(self, number: int, row: int, base: int, batch: Any) -> SourceRow:
        part = self.slices[number]
        at = part.first + row
        where = f"{part.file}, row {at}"
        content = columns_of(batch, row - base, where) if self.memory is None else self.memory[part.file, at]
        return SourceRow(number, row, where, content, part.file.parent)


def columns_of(batch: pa.RecordBatch, index: int, where: str) -> Mapping[str, Any] | BadRow:
    """The columns of a row of a batch, or why they can't be read."""
    try:
        columns: Mapping[str, Any] = batch.slice(index, 1).to_pylist()[0]
        return columns
    except UnicodeDecodeError as error:
        return BadRow(where, f"a text is not UTF-8: {error.reason}")


class Cursor:
    """A data stream's way through a row source. ``queue`` is what is left of the epoch: slices, and how many rows of
    each were already read."""

    def __init__(self, source: RowSource, stream: int, streams: int, state: Mapping[str, Any] | None = None) -> None:
        self.source, self.stream, self.streams = source, stream, streams
        self.epoch = int(state["epoch"]) if state else 0
        self.queue = [list(entry) for entry in state["queue"]] if state else self._share()
        self._reading: Iterator[SourceRow] | None = None

    def _share(self) -> list[list[int]]:
        return [[number, 0] for number in self.source.order(self.epoch)[self.stream :: self.streams]]

    def next(self) -> SourceRow:
        """The next row; epochs follow each other."""
        while True:
            while not self.queue:
                self.epoch += 1
                self.queue = self._share()
            entry = self.queue[0]
            if self._reading is None:
                self._reading = self.source.read(entry[0], self.epoch, entry[1])
            found = next(self._reading, None)
            if found is not None:
                entry[1] += 1
                return found
            self.queue.pop(0)
            self._reading = None

    def state(self) -> dict[str, Any]:
        """Plain data to resume from."""
        return {"epoch": self.epoch, "queue": [list(entry) for entry in self.queue]}


def reshard(states: Sequence[Mapping[str, Any]], streams: int) -> list[dict[str, Any]]:
    """States of another number of data streams, which share what is left of the oldest epoch.

    No row is lost. What faster streams had begun to read of the next epoch is read again in it.
    """
    epoch = min(int(state["epoch"]) for state in states)
    left = sorted(list(entry) for state in states if state["epoch"] == epoch for entry in state["queue"])
    return [{"epoch": epoch, "queue": left[stream::streams]} for stream in range(streams)]


# ---------------------------------------------------------------------------------------------------------- the index


def trajectory_sources(
    files: Sequence[Path], seed: int, held_out: int = 0, memory: Memory | None = None
) -> dict[str, RowSource]:
    """Row sources ``one-turn`` and ``two-turn`` of trajectory files, and ``validation``: the last ``held_out`` rows of
    one turn. Only footers are read, and the column ``reflection`` of row groups that mix both kinds.

    Raises:
        ValueError: a file is not of that kind, or holding out rows leaves none to train on.
    """
    found: dict[str, list[RowSlice]] = {"one-turn": [], "two-turn": []}
    for file in files:
        opened = open_parquet(file, TRAJECTORY)
        first = 0
        for group in range(opened.metadata.num_row_groups):
            two = _has_reflection(opened, group)
            for name, rows in (("one-turn", np.flatnonzero(~two)), ("two-turn", np.flatnonzero(two))):
                if len(rows):
                    found[name].append(RowSlice(file, group, first, rows))
            first += len(two)
    slices = {name: striped(parts) for name, parts in found.items() if parts}
    if held_out:
        kept, held = _split_last(found["one-turn"], held_out)
        slices |= {"one-turn": striped(kept), "validation": held}
    return {name: RowSource(name, parts, TRAJECTORY, seed, memory) for name, parts in slices.items()}


def conversation_source(mode: str, files: Sequence[Path], seed: int) -> RowSource:
    """The row source of a mode's conversation files.

    Raises:
        ValueError: a file is not of that kind.
    """
    slices = []
    for file in files:
        meta, first = open_parquet(file, CONVERSATION).metadata, 0
        for group in range(meta.num_row_groups):
            rows = meta.row_group(group).num_rows
            slices.append(RowSlice(file, group, first, np.arange(rows)))
            first += rows
    return RowSource(mode, striped(slices), CONVERSATION, seed)


def striped(slices: Sequence[RowSlice]) -> list[RowSlice]:
    """The same rows in at least :data:`MIN_SLICES` slices, if there are that many rows."""
    stripes = -(-MIN_SLICES // max(1, len(slices)))
    cut = [RowSlice(s.file, s.group, s.first, s.rows[j::stripes]) for s in slices for j in range(stripes)]
    return [part for part in cut if len(part.rows)]


def _split_last(slices: Sequence[RowSlice], count: int) -> tuple[list[RowSlice], list[RowSlice]]:
    """All but the last ``count`` rows, and those."""
    rows = sum(len(part.rows) for part in slices)
    if count >= rows:
        raise ValueError(
            f"validation_rows {count} leaves no one-turn row to train on (the data has {rows}); "
            "lower it, or set validate_every to 0"
        )
    kept: list[RowSlice] = []
    held: list[RowSlice] = []
    left = rows - count
    for part in slices:
        for side, chosen in ((kept, part.rows[:left]), (held, part.rows[left:])):
            if len(chosen):
                side.append(RowSlice(part.file, part.group, part.first, chosen))
        left = max(0, left - len(part.rows))
    return kept, held


def _has_reflection(opened: pq.ParquetFile, group: int) -> np.ndarray:
    """Which rows of a row group have a second turn."""
    meta = opened.metadata.row_group(group)
    rows = meta.num_rows
    column = next(meta.column(i) for i in range(meta.num_columns) if meta.column(i).path_in_schema == "reflection")
    stats = column.statistics
    if stats is not None and stats.has_null_count and stats.null_count in (0, rows):
        return np.full(rows, stats.null_count == 0)
    table = opened.read_row_group(group, columns=["reflection"])
    return np.asarray(table.column(0).is_valid().to_numpy())


@cache
def content_digest(file: Path) -> bytes:
    """A digest of a parquet file's footer (sizes and bounds of all columns) and of 64 KiB in each of up to 64 places.

    Whole files would take hours where there are terabytes.
    """
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - 8))
        footer = int.from_bytes(opened.read(4), "little")
        opened.seek(max(0, size - 8 - footer))
        digest.update(opened.read())
        for place in range(0, size, max(_SPOT, size // _SPOTS)):
            opened.seek(place)
            digest.update(opened.read(_SPOT))
    return digest.digest()


@lru_cache(8)
def _opened(file: Path, columns: tuple[str, ...]) -> pq.ParquetFile:
    return open_parquet(file, columns)
