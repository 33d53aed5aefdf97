"""A build on disk: stages of blocks of rows, written atomically and joined by id (``docs/data.md``).

A *block* is a number; the prompts stage decides which rows are in it. Every stage keeps its columns of a block in
``<block>.parquet`` or, while the block is not whole, in parts ``<block>.p000.parquet``, ...
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from irg import files
from irg.curation.records import IMAGE

Row = dict[str, Any]
COMMON = (
    ("id", pa.string()),
    ("rejected", pa.string()),  # why the row goes no further; null if it does
    ("cost", pa.float64()),  # of this stage, in the prices' currency
    ("seconds", pa.float64()),  # of this stage's work on the row; the one column that differs from build to build
    ("made", pa.string()),  # JSON: how: model, hash of the instructions, settings, seed
)
TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: IMAGE}
_NAME = re.compile(r"(\d{5,})(?:\.p(\d{3,}))?\.parquet")


def digest(*parts: Any) -> str:
    """64 hex digits for plain JSON values and bytes."""
    plain = [hashlib.sha256(part).hexdigest() if isinstance(part, bytes) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, whole or not at all; its pages have checksums, or flipped bytes would go unseen."""
    with files.written(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3, write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file of a build.

    Raises:
        ValueError: it is damaged or lacks a column.
    """
    try:
        chosen = None if columns is None else list(columns)
        return pq.read_table(path, columns=chosen, partitioning=None, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: damaged ({reason}); delete this file and build again: its rows are made again, "
            "answers of endpoints are still there"
        ) from error


@dataclass(frozen=True)
class StageFolder:
    """One stage's rows under one set of settings.

    Attributes:
        columns: what the stage adds, name -> Python type (bytes: an image).
    """

    path: Path
    columns: dict[str, type]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*COMMON, *((name, TYPES[kind]) for name, kind in self.columns.items())])

    def blocks(self) -> list[int]:
        """Blocks that have a file here."""
        names = (entry.name for entry in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted({int(match[1]) for name in names if (match := _NAME.fullmatch(name))})

    def of_block(self, block: int) -> list[Path]:
        """The files of one block: the whole one, then parts that came after it."""
        whole = self.path / f"{block:05d}.parquet"
        return [whole] * whole.exists() + self._parts(block)

    def _parts(self, block: int) -> list[Path]:
        parts = self.path.glob(f"{block:05d}.p*.parquet")
        return sorted(parts, key=lambda path: (len(path.name), path.name))

    def read(self, block: int, columns: Sequence[str] | None = None) -> dict[str, Row]:
        """Rows of a block by id; images as bytes.

        Raises:
            ValueError: a file is damaged.
        """
        rows: dict[str, Row] = {}
        for row in self._tables(block, columns):
            for name, kind in self.columns.items():
                if kind is bytes and row.get(name) is not None:
                    row[name] = row[name]["bytes"]
            rows[row["id"]] = row
        return rows

    def _tables(self, block: int, columns: Sequence[str] | None) -> list[Row]:
        """The rows of a block's files. A running build may be merging its parts at this moment: then look again."""
        for _ in range(5):
            with contextlib.suppress(FileNotFoundError):
                return [row for file in self.of_block(block) for row in read_table(file, columns).to_pylist()]
        raise ValueError(f"{self.path}: block {block} changes faster than it can be read")

    def write(self, block: int, rows: Iterable[Row], whole: bool = False) -> None:
        """Add rows to a block as one more part; ``whole``: they are all of it, and nothing is there yet."""
        table = self._table(rows)
        if table is not None and whole:
            write_table(self.path / f"{block:05d}.parquet", table)
        elif table is not None:
            last = max((int(part.name.split(".")[1][1:]) for part in self._parts(block)), default=-1)
            write_table(self.path / f"{block:05d}.p{last + 1:03d}.parquet", table)

    def merge_parts(self, block: int, order: Sequence[str]) -> None:
        """Make one file of a block's parts, rows in the ``order`` of their ids. A kill in between loses nothing: a row
        that is both in the whole file and in a part counts once."""
        parts = self._parts(block)
        if not parts:
            return
        joined = pa.concat_tables([read_table(file).cast(self.schema) for file in self.of_block(block)])
        place = {row: index for index, row in enumerate(joined["id"].to_pylist())}
        wanted = set(order)
        others = [row for row in place if row not in wanted]  # of another set of prompts, under the same settings
        chosen = joined.take([place[row] for row in [*order, *others] if row in place]).combine_chunks()
        write_table(self.path / f"{block:05d}.parquet", chosen)
        for part in parts:
            part.unlink(missing_ok=True)

    def _table(self, rows: Iterable[Row]) -> pa.Table | None:
        plain = []
        for row in rows:
            plain.append(dict(row))
            for name, kind in self.columns.items():
                if kind is bytes and row.get(name) is not None:
                    plain[-1][name] = {"bytes": row[name], "path": None}
        return pa.Table.from_pylist(plain, self.schema) if plain else None
