"""Export: thresholds, a deterministic shuffle, train and val by prompt, size-bounded shards, a card.

The shuffle is an external bucket sort by a hash (:mod:`irg.curation.buckets`): the order is that of all rows sorted at
once, and memory holds one bucket.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from irg import files
from irg.curation import card
from irg.curation.buckets import Buckets
from irg.curation.build_folder import BuildFolder
from irg.curation.card import Summary
from irg.curation.decontaminate import normalized
from irg.curation.finished import RowFilter, all_score_columns, all_text_columns, records
from irg.curation.records import schema
from irg.curation.running import Progress
from irg.curation.store import digest, read_table, write_table
from irg.learning.data.conversation_writer import conversation
from irg.learning.data.schema import TrajectoryRow
from irg.learning.modes import IRGL, Mode, turns

SPLITS = ("train", "val")
_MARK = "export.json"


def export(folder: BuildFolder, progress: Progress = lambda *_: None) -> tuple[Path, Summary]:
    """Write the set; an earlier export in the same place is replaced once the new one is whole.

    Raises:
        ValueError: nothing is finished or passes, a threshold cannot be read, the place holds something else, or
            a build is at work.
        OSError: a file cannot be written.
    """
    settings = folder.recipe.export
    out = Path(settings.out) if settings.out else folder.out / "export"
    if out.exists() and not (out / _MARK).exists():
        raise ValueError(f"{out}: is there and no export of ours; choose another place (export.out)")
    row_filter = RowFilter.of(folder)
    with files.locked(folder.lock, folder.lock_refusal):
        for leftover in out.parent.glob(f"{files.TEMPORARY}*-{out.name}"):  # of an export that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with files.written_folder(out) as temporary:
            summary = _write(folder, row_filter, temporary, progress)
            if not summary.kept:
                why = ", ".join(f"{count:,} {reason}" for reason, count in summary.dropped.most_common(3))
                raise ValueError(f"no row to export ({why or 'none is finished: irg data build first'})")
    return out, summary


def _write(folder: BuildFolder, row_filter: RowFilter, out: Path, progress: Progress) -> Summary:
    summary = Summary()
    columns = schema(all_score_columns(folder), all_text_columns(folder))
    settings = folder.recipe.export
    limit = int(settings.shard_mb * 1e6)
    paths = [stage.path for stage in folder.stage_folders.values() if stage.path.is_dir()]
    size = sum(file.stat().st_size for path in paths for file in path.iterdir())
    small = max(1, limit // 4)  # beside a bucket and its sorted copy, memory holds the shard that is being filled
    with ExitStack() as stack:
        split = {
            name: stack.enter_context(Buckets(out / ".buckets" / name, columns, settings.seed, small, size))
            for name in SPLITS
        }
        _fill(folder, row_filter, split, summary, progress)
        for name, buckets in split.items():
            summary.shards[name] = _shards(buckets.sorted(), out / name, limit)
            for mode in (mode for mode in IRGL if mode in settings.conversation):
                _conversations(out / name, out / "conversation" / mode / name, mode)
    shutil.rmtree(out / ".buckets", ignore_errors=True)
    summary.bytes = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    if summary.kept:
        report = folder.out / "decontamination.json"
        clean = json.loads(report.read_text(encoding="utf-8")) if report.exists() and folder.filtered else None
        files.write_text(out / "README.md", card.dataset_card(folder.recipe, summary, clean))
        files.write_text(out / "datasheet.md", card.datasheet(folder.recipe, summary, clean))
        files.write_json(out / _MARK, {"stages": folder.keys, "rows": dict(summary.kept)})
    return summary


def _fill(
    folder: BuildFolder, row_filter: RowFilter, split: dict[str, Buckets], summary: Summary, progress: Progress
) -> None:
    """Add every row that passes to the buckets of its split."""
    seed, share = folder.recipe.export.seed, folder.recipe.export.validation
    for block in folder.blocks():
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        dropped = 0
        for record in records(folder, block, folder.recipe.export.times):
            if (reason := row_filter.rejects(record)) is not None:
                summary.dropped[reason] += 1
                dropped += 1
                continue
            fraction = int(digest("split", seed, normalized(record.prompt))[:8], 16) / 16**8
            name = "val" if fraction < share else "train"
            rows[name].append(record.to_row())
            summary.add(record, name)
        for name, chosen in rows.items():
            if chosen:
                split[name].add(pa.Table.from_pylist(chosen, split[name].columns))
        progress("export", sum(map(len, rows.values())) + dropped, dropped, 0.0)


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
