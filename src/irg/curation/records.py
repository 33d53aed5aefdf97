"""Trajectory rows on disk: typed parquet shards that training reads and dataset viewers show."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("thinking", pa.string()),
        ("image", PICTURE),
        ("reflection", pa.string()),
        ("improved", PICTURE),
        ("request", pa.string()),  # what the prompt asks for, as JSON in GenEval's metadata form; null if not known
        ("source", pa.string()),  # who made the row: "rendered", "draft:<model>", ...
    ]
)


@dataclass(frozen=True)
class TrajectoryRecord:
    """One trajectory: prompt, T1, I1 and, with a second turn, T2, I2. Pictures are PNG bytes."""

    prompt: str
    thinking: str
    image: bytes
    reflection: str | None = None
    improved: bytes | None = None
    request: str | None = None
    source: str = "unknown"

    def to_row(self) -> dict[str, Any]:
        """The row as parquet takes it."""
        row = dict(vars(self))
        for name in ("image", "improved"):
            row[name] = None if row[name] is None else {"bytes": row[name], "path": None}
        return row


def png(pixels_HW3: np.ndarray) -> bytes:
    """uint8 picture -> PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels_HW3).save(out, "PNG", compress_level=1)
    return out.getvalue()


def write_shards(records: Iterable[TrajectoryRecord], folder: Path, rows_per_shard: int = 4000) -> int:
    """Write records as ``part-00000.parquet``, ... (each written aside and renamed); returns the number of rows.

    Shards that are already there are kept: the records they hold are skipped, so an interrupted build resumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for number, rows in enumerate(_batches(records, rows_per_shard)):
        path = folder / f"part-{number:05d}.parquet"
        total += len(rows)
        if path.exists():
            continue
        temporary = path.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist([r.to_row() for r in rows], SCHEMA), temporary, compression="zstd")
        temporary.replace(path)
    return total


def _batches(records: Iterable[TrajectoryRecord], size: int) -> Iterator[list[TrajectoryRecord]]:
    batch: list[TrajectoryRecord] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
