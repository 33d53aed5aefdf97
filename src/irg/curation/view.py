"""Random rows as one HTML page that needs nothing else, to look at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from irg import files
from irg.curation.build_folder import BuildFolder
from irg.curation.finished import RowFilter, records
from irg.curation.records import TrajectoryRecord
from irg.curation.store import digest, read_table
from irg.results.pages import render


def sample_page(rows: Sequence[tuple[TrajectoryRecord, str | None]], title: str, total: int) -> str:
    """The page; each row with the reason why it is left out at export, if it is."""
    return render("rows.html", title=title, total=total, rows=[_row(record, reason) for record, reason in rows])


def _row(record: TrajectoryRecord, reason: str | None) -> dict[str, Any]:
    """What the page shows of a row."""
    facts = {name: getattr(record, name) for name in ("id", "source", "license", "seed", "cost")}
    texts = {name: text for name, text in record.texts.items() if text is not None}
    how = facts | texts | json.loads(record.provenance or "{}")
    return {
        "record": record,
        "reason": reason,
        "scores": [[name, f"{value:g}"] for name, value in record.scores.items() if value is not None],
        "provenance": json.dumps(how, indent=1, ensure_ascii=False),
    }


def sample(folder: BuildFolder, count: int, seed: int, out: Path) -> int:
    """Write a page of random finished rows; returns how many there are on it.

    Raises:
        ValueError: no row is finished.
    """
    drawn: list[tuple[str, int, str]] = []
    total = 0
    for block in folder.blocks():
        ids = folder.accepted(block)
        total += len(ids)
        drawn = sorted([*drawn, *((digest("sample", seed, name), block, name) for name in ids)])[:count]
    if not drawn:
        raise ValueError(f"{folder.out}: no row is finished yet")
    row_filter = RowFilter.of(folder)
    found: dict[str, TrajectoryRecord] = {}
    for block in sorted({block for _, block, _ in drawn}):
        wanted = {name for _, at, name in drawn if at == block}
        found |= {record.id: record for record in records(folder, block) if record.id in wanted}
    rows = [(found[name], row_filter.rejects(found[name])) for _, _, name in drawn]
    files.write_text(out, sample_page(rows, f"{folder.recipe.export.title}: sample {seed}", total))
    return len(rows)


def sample_of_shards(folder: Path, count: int, seed: int, out: Path) -> int:
    """The same for an exported folder, or any folder of trajectory shards.

    Raises:
        ValueError: there is no row.
    """
    shards = sorted(file for file in folder.rglob("*.parquet") if "conversation" not in file.relative_to(folder).parts)
    drawn: list[tuple[str, Path, int]] = []
    total = 0
    for file in shards:
        rows = len(read_table(file, ["id"]))
        total += rows
        lots = ((digest("sample", seed, file.relative_to(folder).as_posix(), row), file, row) for row in range(rows))
        drawn = sorted([*drawn, *lots])[:count]
    if not drawn:
        raise ValueError(f"{folder}: no trajectory rows")
    found: dict[tuple[Path, int], TrajectoryRecord] = {}
    for file in sorted({file for _, file, _ in drawn}):  # each is read once, and only one is held
        numbers = [row for _, at, row in drawn if at == file]
        chosen = read_table(file).take(numbers).to_pylist()
        found |= {(file, number): record_of(row) for number, row in zip(numbers, chosen, strict=True)}
    shown = [(found[file, row], None) for _, file, row in drawn]
    files.write_text(out, sample_page(shown, f"{folder.name}: sample {seed}", total))
    return len(shown)


def record_of(row: dict[str, object]) -> TrajectoryRecord:
    """A record from its parquet row."""
    plain = dict(row)
    for name in ("image", "improved"):
        image = plain.get(name)
        plain[name] = image["bytes"] if isinstance(image, dict) else None
    known = set(TrajectoryRecord.__dataclass_fields__)
    scores = {n: v for n, v in plain.items() if n not in known and (v is None or isinstance(v, float))}
    texts = {n: v for n, v in plain.items() if n not in known and isinstance(v, str) and n != "digest"}
    return TrajectoryRecord(**{n: v for n, v in plain.items() if n in known}, scores=scores, texts=texts)  # type: ignore[arg-type]
