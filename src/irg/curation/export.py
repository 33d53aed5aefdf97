"""Export: thresholds, a deterministic shuffle, train and val by prompt, size-bounded shards, a card.

Rows are dealt to buckets by the hash that orders them, then each bucket is sorted and written: the order is that of all
rows sorted at once, and memory holds one bucket. A bucket that is too big for that is dealt again.
"""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from irg.curation import card
from irg.curation.buckets import Buckets
from irg.curation.build import Layout, Told
from irg.curation.conversation import conversation
from irg.curation.decontaminate import normalized
from irg.curation.finished import Gate, records, score_columns, text_columns
from irg.curation.records import TrajectoryRecord, schema
from irg.curation.store import Lock, digest, read_table, write_table, write_text
from irg.learning.data.schema import TrajectoryRow
from irg.learning.modes import IRGL, Mode, turns
from irg.recipes import choose

SPLITS = ("train", "val")
_MARK = "export.json"


@dataclass
class Summary:
    """What was exported."""

    kept: Counter[str] = field(default_factory=Counter)  # per split
    dropped: Counter[str] = field(default_factory=Counter)  # per reason
    turns: Counter[str] = field(default_factory=Counter)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, licence)
    models: Counter[tuple[str, str]] = field(default_factory=Counter)  # (stage, model)
    cost: float = 0.0
    shards: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def add(self, record: TrajectoryRecord, split: str) -> None:
        self.kept[split] += 1
        self.turns["one turn" if record.improved is None else "two turns"] += 1
        self.sources[(record.source, record.license)] += 1
        self.cost += record.cost
        for stage, how in json.loads(record.provenance or "{}").items():
            if "model" in how:
                self.models[(stage, how["model"])] += 1


def export(layout: Layout, told: Told = lambda *_: None) -> tuple[Path, Summary]:
    """Write the set; an earlier export in the same place is replaced once the new one is whole.

    Raises:
        ValueError: nothing is finished or passes, a threshold cannot be read, the place holds something else, or
            a build is at work.
        OSError: a file cannot be written.
    """
    settings = layout.recipe.export
    out = Path(settings.out) if settings.out else layout.out / "export"
    if unknown := next((mode for mode in settings.conversation if mode not in IRGL), None):
        raise ValueError(
            f"export.conversation: no mode {unknown!r}{choose(unknown, IRGL)}; there are {', '.join(IRGL)}"
        )
    if out.exists() and not (out / _MARK).exists():
        raise ValueError(f"{out}: is there and no export of ours; choose another place (export.out)")
    gate = Gate.of(layout)
    with Lock(layout.out).held():
        for leftover in out.parent.glob(f".{out.name}-????????"):  # of an export that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        return out, _export(layout, gate, out, told)


def _export(layout: Layout, gate: Gate, out: Path, told: Told) -> Summary:
    """Write the set beside its place, then put it there."""
    aside = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        summary = _write(layout, gate, aside, told)
        if not summary.kept:
            why = ", ".join(f"{count:,} {reason}" for reason, count in summary.dropped.most_common(3))
            raise ValueError(f"no row to export ({why or 'none is finished: irg data build first'})")
        _replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return summary


def _replace(new: Path, place: Path) -> None:
    if place.exists():
        old = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
        place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(place)


def _write(layout: Layout, gate: Gate, out: Path, told: Told) -> Summary:
    summary = Summary()
    columns = schema(score_columns(layout), text_columns(layout))
    settings = layout.recipe.export
    limit = int(settings.shard_mb * 1e6)
    aside = out / ".buckets"
    size = sum(f.stat().st_size for stage in layout.made.values() if stage.path.is_dir() for f in stage.path.iterdir())
    small = max(1, limit // 4)  # beside a bucket and its sorted copy, memory holds the shard that is being filled
    with ExitStack() as stack:
        split = {
            name: stack.enter_context(Buckets(aside / name, columns, settings.seed, small, size)) for name in SPLITS
        }
        _deal(layout, gate, split, summary, told)
        for name, buckets in split.items():
            summary.shards[name] = _shards(buckets.sorted(), out / name, limit)
            for mode in (mode for mode in IRGL if mode in settings.conversation):
                _conversations(out / name, out / "conversation" / mode / name, mode)
    shutil.rmtree(aside, ignore_errors=True)
    summary.bytes = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    if summary.kept:
        report = layout.out / "decontamination.json"
        clean = json.loads(report.read_text(encoding="utf-8")) if report.exists() and layout.sift else None
        write_text(out / "README.md", card.dataset_card(layout.recipe, summary, clean))
        write_text(out / "datasheet.md", card.datasheet(layout.recipe, summary, clean))
        write_text(out / _MARK, json.dumps({"stages": layout.keys, "rows": dict(summary.kept)}, indent=1) + "\n")
    return summary


def _deal(layout: Layout, gate: Gate, split: dict[str, Buckets], summary: Summary, told: Told) -> None:
    """Every row that passes into the buckets of its split."""
    seed, share = layout.recipe.export.seed, layout.recipe.export.validation
    for block in layout.blocks():
        dealt: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        refused = 0
        for record in records(layout, block, layout.recipe.export.times):
            if (reason := gate.refuses(record)) is not None:
                summary.dropped[reason] += 1
                refused += 1
                continue
            lot = int(digest("split", seed, normalized(record.prompt))[:8], 16) / 16**8
            name = "val" if lot < share else "train"
            dealt[name].append(record.to_row())
            summary.add(record, name)
        for name, rows in dealt.items():
            if rows:
                split[name].add(pa.Table.from_pylist(rows, split[name].columns))
        told("export", sum(map(len, dealt.values())) + refused, refused, 0.0)


def _shards(tables: Iterator[pa.Table], out: Path, limit: int) -> int:
    """Sorted tables as shards of at most ``limit`` bytes of images (a row that has more stands alone)."""
    number, size = 0, 0
    waiting: list[pa.Table] = []

    def flush() -> None:
        nonlocal number, size
        if waiting:
            write_table(out / f"{number:05d}.parquet", pa.concat_tables(waiting).combine_chunks())
            number, size = number + 1, 0
            waiting.clear()

    for table in tables:
        start = 0
        weights = [_weight(table, row) for row in range(len(table))]
        for row, weight in enumerate(weights):
            if size and size + weight > limit:
                waiting.append(table.slice(start, row - start))
                flush()
                start = row
            size += weight
        waiting.append(table.slice(start))
    flush()
    return number


def _weight(table: pa.Table, row: int) -> int:
    return sum(len(value["bytes"]) for name in ("image", "improved") if (value := table[name][row].as_py()) is not None)


def _conversations(shards: Path, out: Path, mode: Mode) -> None:
    """The rows of a mode in the authors' format, shard by shard."""
    for file in sorted(shards.glob("*.parquet")):
        rows = []
        for row in read_table(file).to_pylist():
            trajectory = TrajectoryRow.from_columns(row)
            if trajectory.turns == turns(mode):
                text = json.dumps(conversation(trajectory, mode), ensure_ascii=False)
                rows.append({"conversation": text, "id": row["id"]})
        if rows:
            write_table(out / file.name, pa.Table.from_pylist(rows))


def push(folder: Path, repo: str, *, private: bool = True, api: Any = None) -> str:
    """Upload an export to the Hugging Face hub as a data set; returns its address.

    Raises:
        ValueError: the folder is no export, or the hub refuses.
    """
    if not (folder / _MARK).exists():
        raise ValueError(f"{folder}: no export of ours; irg data export makes one")
    import huggingface_hub

    api = api or huggingface_hub.HfApi(token=os.environ.get("HF_TOKEN"))
    try:
        address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=str(folder),
            commit_message="Trajectories built with irg data",
            delete_patterns=["train/*", "val/*", "conversation/*"],  # shards of an earlier, longer export
        )
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds
        raise ValueError(f"{repo}: the hub refuses: {' '.join(str(error).split())[:300]}") from error
    return str(address)
