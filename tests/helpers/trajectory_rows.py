"""Trajectory rows as training reads them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from irg.curation.records import TrajectoryRecord, write_shard
from irg.learning.data.schema import COLUMNS, TrajectoryRow


def read_rows(files: Iterable[Path]) -> Iterator[TrajectoryRow]:
    """All rows of all files, in order."""
    for file in files:
        for values in pq.read_table(file, columns=[*COLUMNS]).to_pylist():
            yield TrajectoryRow.from_columns(values)


def write_shards(records: Iterable[TrajectoryRecord], folder: Path, rows_per_shard: int = 4000) -> None:
    """Write records as ``part-00000.parquet``, ... into ``folder``."""
    rows = list(records)
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), rows_per_shard)):
        write_shard(rows[start : start + rows_per_shard], folder / f"part-{number:05d}.parquet")
