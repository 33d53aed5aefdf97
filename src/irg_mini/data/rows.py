"""``irg data mini``: the mini world's rows without stages, for when nothing has to be resumed but whole shards.

The parts of data recipes (:mod:`irg_mini.data.stages`) make them. Two kinds: *images* (prompt, T1 and
the right image) and *repairs* (a flawed image, the reflection on its flaws, the corrected image).
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from irg.curation.content import check_share
from irg.curation.records import TrajectoryRecord, write_shard
from irg.curation.store import Row
from irg.deprecation import renamed
from irg.files import sweep
from irg_mini import world
from irg_mini.data.requests import check_tags, drawable, random_request
from irg_mini.data.stages import MiniDrafts, MiniReflections, MiniTargets, MiniThinking


@dataclass(frozen=True)
class MiniData:
    """How much of what."""

    out: str
    rows: int = 40_000
    repairs: float = 0.0
    """Share of rows that are repairs of corrupted renderings."""
    misplanned: float = 0.0
    """Share of the corrupted ones whose T1 already has the mistakes."""
    near_misses: float = renamed(was="slips", default=0.0)
    """Share of repairs that are right but for a relation that T1 narrowly misses."""
    replan: bool = False
    """Answer a wrong T1 by a new plan, not by what keeps the rest in place."""
    seed: int = 0
    size: int = 128
    processes: int = 1
    rows_per_shard: int = 2000
    sprites: Literal["fluent", "builtin"] = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"
    tags: tuple[str, ...] = ()
    """Forms of requests to keep to, in equal shares (single_object, two_object, counting, colors, position, color_attr,
    compound, stacking); default: all, in the mixture that irg-mini learned from."""

    def __post_init__(self) -> None:
        for name in ("rows", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_share("repairs", self.repairs)
        check_share("misplanned", self.misplanned)
        check_share("near_misses", self.near_misses)
        check_tags(self.tags, self.vocab)


def record(rng: np.random.Generator, data: MiniData, repair: bool) -> TrajectoryRecord:
    """A random row. The rare request whose things do not fit is left out."""
    vocab = drawable(data.vocab, world.load_sprites(data.sprites))
    for _ in range(20):
        request, prompt = random_request(rng, vocab, dict.fromkeys(data.tags, 1.0))
        row: Row = {"id": "", "prompt": prompt, "request": json.dumps(request.to_json())}
        row |= {"turns": 2 if repair else 1, "seed": int(rng.integers(2**31))}
        try:
            return _made(row, data)
        except ValueError:
            continue
    raise AssertionError("twenty requests in a row found no room")


def _made(row: Row, data: MiniData) -> TrajectoryRecord:
    look: dict[str, Any] = {"size": data.size, "sprites": data.sprites}
    if row["turns"] == 2:
        drafts = MiniDrafts(
            "miniworld", misplanned=data.misplanned, near_misses=data.near_misses, vocab=data.vocab, **look
        )
        row |= drafts.make(row)
        row |= MiniReflections("miniworld", replan=data.replan, **look).make(row)
    else:
        row["thinking"] = MiniThinking("miniworld", data.sprites).make(row)["thought"]
    row |= MiniTargets("miniworld", **look).make(row)
    repair = row["turns"] == 2
    return TrajectoryRecord(
        row["prompt"],
        row["thinking"],
        row["image"] if repair else row["improved"],
        row["reflection"] if repair else None,
        row["improved"] if repair else None,
        request=row["request"],
        source="rendered",
        license="Apache-2.0",
        seed=row["seed"],
    )


def rows(data: MiniData, shard: int) -> Iterator[TrajectoryRecord]:
    """The rows of one shard, from its own generator."""
    rng = np.random.default_rng([data.seed, shard])
    count = min(data.rows_per_shard, data.rows - shard * data.rows_per_shard)
    for _ in range(count):
        yield record(rng, data, repair=bool(rng.random() < data.repairs))


def _build_shard(job: tuple[MiniData, int]) -> int:
    data, shard = job
    path = Path(data.out) / f"part-{shard:05d}.parquet"
    if path.exists():
        return 0
    made = list(rows(data, shard))
    write_shard(made, path)
    return len(made)


def build(data: MiniData) -> int:
    """Build all shards that are not there yet; returns the rows made."""
    world.load_sprites(data.sprites)  # missing ones are an error now, not in a worker
    sweep(Path(data.out))
    shards = -(-data.rows // data.rows_per_shard)
    jobs = [(data, shard) for shard in range(shards)]
    if data.processes <= 1:
        return sum(map(_build_shard, jobs))
    with ProcessPoolExecutor(data.processes) as pool:
        return sum(pool.map(_build_shard, jobs))
