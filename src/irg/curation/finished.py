"""Finished rows of a build, and which of them are worth exporting."""

import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irg.curation.build_folder import BuildFolder
from irg.curation.hashes import phash
from irg.curation.recipe import Keep
from irg.curation.records import TrajectoryRecord
from irg.curation.store import Row
from irg.recipes import choose
from irg.results.reflection import is_done

_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(-?\d+(?:\.\d+)?)\s*")
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
PARTS = ("thinking", "image", "reflection", "improved", "thought", "truth")


def all_score_columns(folder: BuildFolder) -> list[str]:
    """Names of all judgements."""
    return [name for stage in folder.stages for name, kind in stage.columns.items() if kind is float]


def all_text_columns(folder: BuildFolder) -> list[str]:
    """Names of further text columns: perceptual hashes, judges' words, grades of tries."""
    found = [name for stage in folder.stages for name, kind in stage.columns.items() if kind is str]
    return [name for name in found if name not in PARTS]


def records(folder: BuildFolder, block: int, times: bool = True) -> Iterator[TrajectoryRecord]:
    """The rows of a block that have come through all stages, in order.

    Raises:
        ValueError: a row lacks a part, because the recipe has no stage that makes it.
    """
    ids = folder.accepted(block)
    if not ids:
        return
    rows: dict[str, Row] = {name: {} for name in ids}
    how: dict[str, dict[str, Any]] = {name: {} for name in ids}
    totals = {name: [0.0, 0.0] for name in ids}
    for stage, stage_folder in (("prompts", folder.prompts), *folder.stage_folders.items()):
        for name, row in stage_folder.read(block).items():
            if name in rows:
                rows[name].update({c: row[c] for c in stage_folder.columns})
                how[name][stage] = json.loads(row["made"])
                totals[name][0] += row["cost"]
                totals[name][1] += row["seconds"]
    scores, texts = all_score_columns(folder), all_text_columns(folder)
    for name in ids:
        row = rows[name]
        yield TrajectoryRecord(
            row["prompt"],
            *_parts(name, row),
            request=row["request"],
            source=row["source"],
            license=row["license"],
            id=name,
            seed=row["seed"],
            cost=round(totals[name][0], 9),
            seconds=round(totals[name][1], 4) if times else None,
            provenance=json.dumps(how[name], sort_keys=True, ensure_ascii=False),
            scores={score: row.get(score) for score in scores},
            texts={text: row.get(text) for text in texts},
        )


def _parts(name: str, row: Row) -> tuple[str, bytes, str | None, bytes | None]:
    if row["turns"] == 1:
        parts, stages = (row.get("thought"), row.get("improved"), None, None), "think and target"
        whole = parts[0] is not None and parts[1] is not None
    else:
        parts = (row.get("thinking"), row.get("image"), row.get("reflection"), row.get("improved"))
        stages, whole = "draft, reflect and target", None not in parts
    if not whole:
        raise ValueError(f"row {name} has {row['turns']} turn(s): the recipe needs the stages {stages}")
    return parts  # type: ignore[return-value]


@dataclass
class RowFilter:
    """The thresholds of a recipe (``export.keep``), applied to finished rows."""

    keep: Keep
    judges: list[str]
    columns: list[str]
    conditions: list[tuple[str, Callable[[float, float], bool], float, str]] = field(default_factory=list)
    _unwanted: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, folder: BuildFolder) -> "RowFilter":
        """Read the thresholds.

        Raises:
            ValueError: a condition cannot be read or names no judgement, or hashes are needed and not computed.
        """
        keep = folder.recipe.export.keep
        row_filter = cls(keep, [judge.name for judge in folder.recipe.judges], all_score_columns(folder))
        for condition in keep.where:
            match = _CONDITION.fullmatch(condition)
            if match is None:
                raise ValueError(f"keep.where: {condition!r} should be like 'vlm_target_quality >= 6'")
            if match[1] not in row_filter.columns:
                known = ", ".join(row_filter.columns) or "none: the recipe has no judges"
                raise ValueError(
                    f"keep.where: no judgement {match[1]!r}{choose(match[1], row_filter.columns)}; there are {known}"
                )
            row_filter.conditions.append((match[1], _OPERATORS[match[2]], float(match[3]), condition.strip()))
        if keep.exclude_similar_to is not None:
            if not folder.recipe.hashes:
                raise ValueError("keep.exclude_similar_to compares perceptual hashes; set hashes: true and build again")
            row_filter._unwanted = _hashes_of(Path(keep.exclude_similar_to))
        return row_filter

    def rejects(self, record: TrajectoryRecord) -> str | None:
        """Why a row is left out; None if it is kept."""
        for judge in self.judges:
            scores = {
                name.removeprefix(f"{judge}_"): v for name, v in record.scores.items() if name.startswith(f"{judge}_")
            }
            if reason := self._too_low(judge, scores, record):
                return reason
        for column, holds, limit, text in self.conditions:
            value = record.scores.get(column)
            if value is not None and not holds(value, limit):
                return f"not {text}"
        if self._unwanted:
            name = "image_phash" if record.improved is None and record.texts.get("image_phash") else "improved_phash"
            shown = int(record.texts.get(name) or "0", 16)
            if any((shown ^ other).bit_count() <= self.keep.distance for other in self._unwanted):
                return "looks like an unwanted image"
        return None

    def _too_low(self, judge: str, scores: dict[str, float | None], record: TrajectoryRecord) -> str | None:
        for name, least in (("following", self.keep.following), ("quality", self.keep.quality)):
            if (score := scores.get(f"target_{name}")) is not None and score < least:
                return f"{judge}: {name} below {least:g}"
        if record.improved is None:
            return None
        preserved = scores.get("preservation")
        if preserved is not None and preserved < self.keep.preservation:
            return f"{judge}: preservation below {self.keep.preservation:g}"
        gains = [gain for name in ("gain_1", "gain_2") if (gain := scores.get(name)) is not None]
        if self.keep.nothing_wrong and is_done(record.reflection or ""):
            return f"{judge}: made worse" if min(gains, default=0.0) < 0 else None
        return None if min(gains, default=self.keep.gain + 1) > self.keep.gain else f"{judge}: no improvement"


def _hashes_of(folder: Path) -> list[int]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES) if folder.is_dir() else []
    if not files:
        raise ValueError(f"keep.exclude_similar_to: {folder} is no folder with images")
    return [int(phash(file.read_bytes()), 16) for file in files]
