"""Validation of trajectory shards: would training take every row, and is every row what it claims to be?"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from irg.curation.decontaminate import normalized
from irg.curation.records import SCHEMA
from irg.image_files import open_image
from irg.learning.data.schema import COLUMNS, IMAGE_COLUMNS, TrajectoryRow
from irg.results.reflection import Reflection

MOST_TOLD = 20


@dataclass
class Findings:
    """What a validation found."""

    rows: int = 0
    files: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def validate(folder: Path) -> Findings:
    """Look at every row of every shard of a folder.

    Raises:
        ValueError: there are no shards.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.parquet"))
    files = [file for file in files if "conversation" not in file.relative_to(folder).parts]
    if not files:
        raise ValueError(f"{folder}: no parquet files")
    found, ids = Findings(), Counter[bytes]()
    split_of: dict[bytes, str] = {}
    for file in files:
        found.files += 1
        for number, row in enumerate(_rows(file, found)):
            where = f"{file}, row {number}"
            found.rows += 1
            found.problems += [f"{where}: {problem}" for problem in _problems(row, found, file.parent)]
            if row.get("id"):
                name = row["id"].encode()[:32]
                ids[name] += 1
                if ids[name] == 2:
                    found.problems.append(f"{where}: id {row['id']} stands here again")
            if file.parent.name in ("train", "val") and row.get("prompt"):
                prompt = TrajectoryRow(normalized(row["prompt"]), "", b"").digest[:16].encode()
                if split_of.setdefault(prompt, file.parent.name) != file.parent.name:
                    found.problems.append(f"{where}: its prompt is in train and val")
    return found


def _rows(file: Path, found: Findings) -> Any:
    try:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        missing = [name for name in COLUMNS if name not in opened.schema_arrow.names]
        if missing:
            found.problems.append(f"{file}: no column {', '.join(missing)}")
            return
        for name in SCHEMA.names:
            if name in opened.schema_arrow.names and opened.schema_arrow.field(name).type != SCHEMA.field(name).type:
                kind = opened.schema_arrow.field(name).type
                found.problems.append(f"{file}: {name} is {kind}, not {SCHEMA.field(name).type}")
                return
        for batch in opened.iter_batches(256):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        found.problems.append(f"{file}: can't be read: {' '.join(str(error).split())[:200]}")


def _problems(row: dict[str, Any], found: Findings, folder: Path) -> list[str]:
    problems = []
    images = {name: row[name]["bytes"] if row[name] else None for name in IMAGE_COLUMNS}
    try:
        TrajectoryRow.from_columns(row, folder)
    except ValueError as error:
        problems.append(str(error))
    found.turns[1 if images["improved"] is None else 2] += 1
    for name, data in images.items():
        if data:
            try:
                found.sizes[open_image(data).size] += 1
            except ValueError as error:
                problems.append(f"{name} can't be decoded: it {error}")
    if row["reflection"] is not None:
        try:
            Reflection.parse(row["reflection"])
        except ValueError as error:
            problems.append(str(error))
    if row.get("digest") and not problems and TrajectoryRow.from_columns(row, folder).digest != row["digest"]:
        problems.append("its digest is not that of its parts: it was changed")
    return problems
