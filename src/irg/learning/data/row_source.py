"""Rows of many parquet files in a shuffled order that several lanes share without overlap; with places to resume at.

A **shelf** is all rows of one kind: trajectories of one turn, of two turns, or one mode's conversations. It is cut
into **units** (a row group, or a stripe of one where there are few); every epoch has its own order of units, dealt out
to the lanes in turn. Inside a unit rows come in chunks, each shuffled.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irg.learning.data.rows import CONVERSATION, TRAJECTORY, open_parquet

CHUNK = 32
UNITS = 64  # at least so many, if there are rows enough, so that as many lanes can share


@dataclass(frozen=True)
class Unit:
    """Some rows of one row group, by their numbers in it. ``first``: the row group's first row in its file."""

    file: Path
    group: int
    first: int
    rows: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Found:
    """A row and where it was: enough to find it again."""

    unit: int
    row: int  # in its row group
    where: str
    values: dict[str, Any]


class Shelf:
    """All rows of one kind."""

    def __init__(self, name: str, units: Sequence[Unit], columns: Sequence[str], seed: int) -> None:
        self.name, self.units, self.columns, self.seed = name, list(units), tuple(columns), seed
        self.rows = sum(len(unit.rows) for unit in units)

    @property
    def seal(self) -> str:
        """Changes with the files' names, their order, and the rows in them."""
        facts = [(unit.file.name, unit.group, unit.first, len(unit.rows)) for unit in self.units]
        return hashlib.sha256(repr((self.name, facts)).encode()).hexdigest()

    def check(self, lanes: int) -> None:
        """Raise ValueError if there are more lanes than units to share."""
        if len(self.units) < lanes:
            raise ValueError(
                f"data: {self.name} has {self.rows} rows in {len(self.units)} pieces, too few for {lanes} packs a "
                "step: lower parallel.accumulate, use fewer GPUs, or write smaller row groups"
            )

    def order(self, epoch: int) -> list[int]:
        """Unit numbers in an epoch's order."""
        return np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.units)).tolist()

    def read(self, number: int, epoch: int, start: int = 0) -> Iterator[Found]:
        """Rows of a unit in an epoch's order, without the first ``start``."""
        unit, done, base = self.units[number], 0, 0
        for index, batch in enumerate(self._batches(unit)):
            low, high = np.searchsorted(unit.rows, (base, base + len(batch)))
            mine = unit.rows[low:high]
            if start < done + len(mine):
                order = np.random.default_rng([self.seed, epoch, 2, number, index]).permutation(len(mine))
                for place in order[max(0, start - done) :].tolist():
                    yield self._found(number, int(mine[place]), batch.slice(int(mine[place]) - base, 1))
            done += len(mine)
            base += len(batch)
            if done == len(unit.rows):
                return

    def find(self, number: int, row: int) -> Found:
        """One row again."""
        unit, base = self.units[number], 0
        for batch in self._batches(unit):
            if row < base + len(batch):
                return self._found(number, row, batch.slice(row - base, 1))
            base += len(batch)
        raise ValueError(f"{unit.file}: row {unit.first + row} is gone: the data changed since the checkpoint was made")

    def _batches(self, unit: Unit) -> Iterator[Any]:
        """The row group of a unit, some rows at a time."""
        try:
            opened = _opened(unit.file, self.columns)
            yield from opened.iter_batches(CHUNK, row_groups=[unit.group], columns=[*self.columns])
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{unit.file}: row group {unit.group} cannot be read: {error}") from None

    def _found(self, number: int, row: int, batch: Any) -> Found:
        unit = self.units[number]
        return Found(number, row, f"{unit.file}, row {unit.first + row}", batch.to_pylist()[0])


class Cursor:
    """A lane's way through a shelf. ``queue`` is what is left of the epoch: units, and rows of each already read."""

    def __init__(self, shelf: Shelf, lane: int, lanes: int, state: Mapping[str, Any] | None = None) -> None:
        self.shelf, self.lane, self.lanes = shelf, lane, lanes
        self.epoch = int(state["epoch"]) if state else 0
        self.queue = [list(entry) for entry in state["queue"]] if state else self._share()
        self._reading: Iterator[Found] | None = None

    def _share(self) -> list[list[int]]:
        return [[unit, 0] for unit in self.shelf.order(self.epoch)[self.lane :: self.lanes]]

    def next(self) -> Found:
        """The next row; epochs follow each other."""
        while True:
            while not self.queue:
                self.epoch += 1
                self.queue = self._share()
            entry = self.queue[0]
            if self._reading is None:
                self._reading = self.shelf.read(entry[0], self.epoch, entry[1])
            found = next(self._reading, None)
            if found is not None:
                entry[1] += 1
                return found
            self.queue.pop(0)
            self._reading = None

    def state(self) -> dict[str, Any]:
        """Plain data to resume from."""
        return {"epoch": self.epoch, "queue": [list(entry) for entry in self.queue]}


def dealt_anew(states: Sequence[Mapping[str, Any]], lanes: int) -> list[dict[str, Any]]:
    """Positions of another number of lanes: what is left of the oldest epoch is dealt out in turn.

    Nothing is lost. What faster lanes had begun to read of the next epoch is read again in it.
    """
    epoch = min(int(state["epoch"]) for state in states)
    left = sorted(list(entry) for state in states if state["epoch"] == epoch for entry in state["queue"])
    return [{"epoch": epoch, "queue": left[lane::lanes]} for lane in range(lanes)]


# ---------------------------------------------------------------------------------------------------------- the index


def trajectory_shelves(files: Sequence[Path], seed: int) -> dict[str, Shelf]:
    """Shelves ``one-turn`` and ``two-turn`` of trajectory files. Only footers are read, and the column ``reflection``
    of row groups that mix both kinds.

    Raises:
        ValueError: a file is none of that kind.
    """
    found: dict[str, list[Unit]] = {"one-turn": [], "two-turn": []}
    for file in files:
        opened = open_parquet(file, TRAJECTORY)
        first = 0
        for group in range(opened.metadata.num_row_groups):
            two = _has_reflection(opened, group)
            for name, rows in (("one-turn", np.flatnonzero(~two)), ("two-turn", np.flatnonzero(two))):
                if len(rows):
                    found[name].append(Unit(file, group, first, rows))
            first += len(two)
    return {name: Shelf(name, striped(units), TRAJECTORY, seed) for name, units in found.items() if units}


def conversation_shelf(mode: str, files: Sequence[Path], seed: int) -> Shelf:
    """The shelf of a mode's conversation files.

    Raises:
        ValueError: a file is none of that kind.
    """
    units, first = [], 0
    for file in files:
        meta, first = open_parquet(file, CONVERSATION).metadata, 0
        for group in range(meta.num_row_groups):
            rows = meta.row_group(group).num_rows
            units.append(Unit(file, group, first, np.arange(rows)))
            first += rows
    return Shelf(mode, striped(units), CONVERSATION, seed)


def striped(units: Sequence[Unit]) -> list[Unit]:
    """The same rows in at least :data:`UNITS` units, if there are that many rows."""
    stripes = -(-UNITS // max(1, len(units)))
    cut = [Unit(u.file, u.group, u.first, u.rows[j::stripes]) for u in units for j in range(stripes)]
    return [unit for unit in cut if len(unit.rows)]


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


@lru_cache(8)
def _opened(file: Path, columns: tuple[str, ...]) -> pq.ParquetFile:
    return open_parquet(file, columns)
