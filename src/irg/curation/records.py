"""Trajectory rows on disk: typed parquet shards that training reads and dataset viewers show."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from irg.files import written
from irg.learning.data.schema import COLUMNS, IMAGE, TrajectoryRow

_FIELDS = (
    ("id", pa.string()),
    *COLUMNS.items(),
    ("request", pa.string()),  # what the prompt asks for, as JSON in GenEval's metadata form; null if not known
    ("source", pa.string()),  # where the prompt is from: a file, a data set, "rendered", "draft:" or "plan:<model>"
    ("license", pa.string()),  # of the prompt
    ("seed", pa.int64()),
    ("cost", pa.float64()),  # of all endpoints' answers, in the recipe's currency
    ("seconds", pa.float64()),  # of work, all stages together
    ("provenance", pa.string()),  # JSON: for each stage the model, its instructions' hash, settings and seed
    ("digest", pa.string()),  # sha256 of prompt, T1, I1, T2, I2
)

_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64"}


def schema(scores: Sequence[str] = (), texts: Sequence[str] = ()) -> pa.Schema:
    """Columns of a trajectory row; ``scores`` are the judges' numbers, ``texts`` further columns of text.

    The metadata says to Hugging Face's ``datasets`` and viewer that the image columns are images.
    """
    columns = [*_FIELDS, *((name, pa.float64()) for name in scores), *((name, pa.string()) for name in texts)]
    features = {
        name: {"_type": "Image"} if kind == IMAGE else {"dtype": _DTYPES[kind], "_type": "Value"}
        for name, kind in columns
    }
    return pa.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})


SCHEMA = schema()


@dataclass(frozen=True)
class TrajectoryRecord(TrajectoryRow):
    """A trajectory row with what is known about it.

    Attributes:
        id: a hash of what the row starts from; empty: of what it holds.
        scores: every judgement by its column's name, such as ``vlm_target_quality``; None where there is none.
        texts: further text columns (perceptual hashes, the judges' own words).
        provenance: JSON, stage -> how it was made.
    """

    request: str | None = None
    source: str = "unknown"
    license: str = "unknown"
    id: str = ""
    seed: int | None = None
    cost: float = 0.0
    seconds: float | None = None
    provenance: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    texts: Mapping[str, str | None] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """The row as parquet takes it."""
        own = {name: value for name, value in vars(self).items() if name not in ("scores", "texts")}
        whole = self.digest
        return own | self.to_columns() | {"id": self.id or whole[:32], "digest": whole} | {**self.scores, **self.texts}


def png(pixels_HW3: np.ndarray) -> bytes:
    """uint8 image -> PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels_HW3).save(out, "PNG", compress_level=1)
    return out.getvalue()


def write_shard(records: Sequence[TrajectoryRecord], path: Path) -> None:
    """Write records as one parquet file with checksums, whole or not at all."""
    with written(path) as temporary:
        table = pa.Table.from_pylist([record.to_row() for record in records], SCHEMA)
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
