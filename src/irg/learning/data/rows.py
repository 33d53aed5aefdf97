"""Parquet files of training rows: found, opened and checked; rows that can't be used are refused with a reason.

Two kinds are read: trajectories (:mod:`.schema`) and conversations (:mod:`.conversations`).
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irg.image_files import open_image
from irg.learning.data.schema import COLUMNS, IMAGE_COLUMNS
from irg.sequence.images import ResizeRule

TRAJECTORY = tuple(COLUMNS)
CONVERSATION = ("conversation",)


class BadRow(ValueError):
    """A row that cannot be used. ``where`` names file and row."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class Rejections:
    """Counts refused rows and lists each in a file: ``{"where", "reason"}``, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    @property
    def listed(self) -> str:
        """Where they are listed, for messages."""
        return f"; they are listed in {self.path}"

    def add(self, row: BadRow) -> None:
        """Count and list a row."""
        self.count += 1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"where": row.where, "reason": row.reason}) + "\n")
        except OSError as error:  # a full disk; the row is still refused and counted
            warnings.warn(f"cannot write {self.path} ({error}): {row}", stacklevel=2)


def data_files(sources: Sequence[str], what: str = "data") -> list[Path]:
    """Parquet files named directly or found in folders, sorted.

    Raises:
        ValueError: a source does not exist or a folder holds none.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            why = "is a folder without parquet files" if path.exists() else "is not there: no such file or folder"
            raise ValueError(f"{what}: {source} {why}")
        files += found
    return files


def open_parquet(file: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """A parquet file that has the columns, to be read in small pieces.

    Raises:
        ValueError: it is no parquet file, or lacks a column.
    """
    kind = "trajectory" if columns == TRAJECTORY else "conversation"
    try:
        opened = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except Exception as error:
        raise ValueError(f"{file}: not a {kind} parquet file: {error}") from None
    if missing := [name for name in columns if name not in opened.schema_arrow.names]:
        raise ValueError(f"{file}: not a {kind} parquet file: it has no column {missing[0]}")
    for name in columns:
        held = opened.schema_arrow.field(name).type
        wanted = "bytes in a struct {bytes, path}" if name in IMAGE_COLUMNS else "text"
        if not (pa.types.is_null(held) or (_has_bytes(held) if name in IMAGE_COLUMNS else _is_text(held))):
            raise ValueError(f"{file}: not a {kind} parquet file: column {name} must hold {wanted}, it holds {held}")
    return opened


def _is_text(held: pa.DataType) -> bool:
    held = held.value_type if pa.types.is_dictionary(held) else held
    return pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_string_view(held)


def _has_bytes(held: pa.DataType) -> bool:
    return pa.types.is_struct(held) and any(held.field(i).name == "bytes" for i in range(held.num_fields))


def pixels_of(data: bytes, where: str, rule: ResizeRule) -> np.ndarray:
    """An image, uint8 [H, W, 3], at the size that the rule wants.

    Raises:
        BadRow: it cannot be decoded, or the rule would change its shape.
    """
    try:
        image = open_image(data)
    except ValueError as error:
        raise BadRow(where, f"the image cannot be decoded: it {error}") from None
    try:
        rule.check(*image.size)
    except ValueError as error:
        raise BadRow(where, f"the image's {error}") from None
    return np.asarray(rule.resized(image))
