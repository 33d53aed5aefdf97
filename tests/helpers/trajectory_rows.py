"""Trajectory rows as training reads them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from irg.learning.data.schema import COLUMNS, TrajectoryRow


def read_rows(files: Iterable[Path]) -> Iterator[TrajectoryRow]:
    """All rows of all files, in order."""
    for file in files:
        for values in pq.read_table(file, columns=[*COLUMNS]).to_pylist():
            yield TrajectoryRow.from_columns(values)
