"""External bucket sort of rows by a hash: rows are spread over files, then sorted file by file, so that memory never
holds more than a bucket.

The files are Arrow streams: a parquet writer would remember every row group until it is closed.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from irg.curation.store import digest

MOST_FILES = 128  # open at once
_DEEPEST = 4


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Arrow does not say which file could not be written."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or 5, reason, str(path)) from error


class Buckets:
    """Rows to be sorted by ``digest("shuffle", seed, id)``. Use it as ``with``.

    Args:
        folder: for the files; they are removed as they are read.
        limit: bytes that a bucket should have at most; one that has twice as many is split again.
        size: estimate of the bytes that are to come.
    """

    def __init__(
        self, folder: Path, columns: pa.Schema, seed: int, limit: int, size: int, above: tuple[int, ...] = ()
    ) -> None:
        self.folder, self.columns, self.seed, self.limit = folder, columns, seed, limit
        self.counts = (*above, max(1, min(MOST_FILES, -(-size // limit))))
        self._writers: dict[int, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # nothing is left to write unless something else has failed
            self._open.close()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:03d}.arrow"

    def _order(self, row: str) -> str:
        return digest("shuffle", self.seed, row)

    def _bucket(self, row: str) -> int:
        """Each level of buckets splits what the one above left undecided."""
        place = int(self._order(row)[:16], 16)
        for count in self.counts[:-1]:
            place = place * count % 2**64
        return place * self.counts[-1] >> 64

    def add(self, rows: pa.Table) -> None:
        """Add rows.

        Raises:
            OSError: a file cannot be written.
        """
        by_bucket: dict[int, list[int]] = {}
        for index, row in enumerate(rows["id"].to_pylist()):
            by_bucket.setdefault(self._bucket(row), []).append(index)
        for number, indices in by_bucket.items():
            if number not in self._writers:
                self.folder.mkdir(parents=True, exist_ok=True)
                writer = pa.ipc.new_stream(str(self._file(number)), self.columns)
                self._writers[number] = self._open.enter_context(writer)
            with _named(self._file(number)):
                self._writers[number].write_table(rows.take(indices))

    def sorted(self) -> Iterator[pa.Table]:
        """All rows in order, a bucket at a time; nothing can be added after that."""
        with _named(self.folder):
            self._open.close()
        for number in sorted(self._writers):
            file = self._file(number)
            if file.stat().st_size > 2 * self.limit and len(self.counts) < _DEEPEST:
                yield from self._again(file)
                continue
            with pa.ipc.open_stream(str(file)) as stream:
                table = stream.read_all()
            file.unlink()
            order = [self._order(row) for row in table["id"].to_pylist()]
            yield table.take(sorted(range(len(order)), key=order.__getitem__))

    def _again(self, file: Path) -> Iterator[pa.Table]:
        size = file.stat().st_size
        with Buckets(file.with_suffix(""), self.columns, self.seed, self.limit, size, self.counts) as finer:
            with pa.ipc.open_stream(str(file)) as stream:
                for batch in stream:
                    finer.add(pa.Table.from_batches([batch]))
            file.unlink()
            yield from finer.sorted()
