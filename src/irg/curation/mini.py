"""irg-mini's own training data: the mini world's truth as teacher.

Two kinds of rows: *pictures* (prompt, T1 and the right picture) and *repairs* (a flawed picture, the reflection on its
flaws, the corrected picture). Run as ``python -m irg.curation.mini --out DIR --rows N``.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irg import miniworld as world
from irg.curation.records import TrajectoryRecord, png, write_shards

# A thing in a colour not its own is the hardest to draw, so it is drawn most.
TAG_WEIGHTS = {
    "single_object": 1.2,
    "two_object": 0.8,
    "counting": 1.2,
    "colors": 2.5,
    "position": 1.0,
    "color_attr": 2.2,
    "compound": 0.7,
}


@dataclass(frozen=True)
class MiniData:
    """How much of what."""

    out: str
    rows: int = 40_000
    repairs: float = 0.0  # share of rows that are repairs of corrupted renderings
    seed: int = 0
    size: int = 96
    processes: int = 1
    rows_per_shard: int = 2000


def _asked_for(rng: np.random.Generator) -> tuple[world.Request, str, world.Scene]:
    """A random request, its caption and a right scene; the rare request whose things find no room is passed over."""
    for _ in range(20):
        request = world.sample_request(rng, weights=TAG_WEIGHTS, split="train", background=0.2)
        prompt = world.caption(request, rng, "plain" if rng.random() < 0.5 else "varied")
        try:
            return request, prompt, world.sample_scene(request, rng)
        except ValueError:
            continue
    raise AssertionError("twenty requests in a row found no room")


def picture_row(rng: np.random.Generator, size: int) -> TrajectoryRecord:
    """A prompt, its layout and the right picture."""
    request, prompt, scene = _asked_for(rng)
    return TrajectoryRecord(
        prompt,
        world.think(request, scene, rng),
        png(world.render(scene, size)),
        request=json.dumps(request.to_json()),
        source="rendered",
    )


def repair_row(rng: np.random.Generator, size: int) -> TrajectoryRecord:
    """A corrupted picture, the reflection on it and the corrected picture; one in five has nothing to mend."""
    request, prompt, intended = _asked_for(rng)
    drawn, planned = world.corrupt(request, intended, rng) if rng.random() < 0.8 else (intended, [])
    pixels = world.render(drawn, size)
    quality = next((flaw.detail for flaw in planned if flaw.kind == "poor_quality"), None)
    if quality is not None:
        pixels = world.degrade(pixels, rng, quality)
    elif rng.random() < 0.3:
        pixels = soften(pixels, rng)
    seen = world.see(drawn, size)
    flaws = world.find_flaws(request, seen, size=size, quality=quality, threshold=0.3)
    corrected = world.correct(request, seen, intended, rng, size=size)
    return TrajectoryRecord(
        prompt,
        world.think(request, intended, rng),
        png(pixels),
        world.reflect(request, flaws, corrected, seen),
        png(world.render(corrected, size)),
        request=json.dumps(request.to_json()),
        source="rendered",
    )


def soften(pixels_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The slight softness of generated pictures, which is no flaw: faint noise."""
    noise = rng.normal(0, rng.uniform(1, 5), pixels_HW3.shape)
    return np.clip(pixels_HW3 + noise, 0, 255).astype(np.uint8)


def rows(data: MiniData, shard: int) -> Iterator[TrajectoryRecord]:
    """The rows of one shard, from its own generator."""
    rng = np.random.default_rng([data.seed, shard])
    count = min(data.rows_per_shard, data.rows - shard * data.rows_per_shard)
    for _ in range(count):
        make = repair_row if rng.random() < data.repairs else picture_row
        yield make(rng, data.size)


def _build_shard(job: tuple[MiniData, int]) -> int:
    data, shard = job
    folder = Path(data.out)
    final = folder / f"part-{shard:05d}.parquet"
    if final.exists():
        return 0
    temporary = folder / f".shard-{shard:05d}"
    made = write_shards(rows(data, shard), temporary, data.rows_per_shard)
    (temporary / "part-00000.parquet").replace(final)
    temporary.rmdir()
    return made


def build(data: MiniData) -> int:
    """Build all shards that are not there yet; returns the rows made."""
    folder = Path(data.out)
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-data.rows // data.rows_per_shard)
    jobs = [(data, shard) for shard in range(shards)]
    if data.processes <= 1:
        return sum(map(_build_shard, jobs))
    with ProcessPoolExecutor(data.processes) as pool:
        return sum(pool.map(_build_shard, jobs))


if __name__ == "__main__":
    import tyro

    print(f"{build(tyro.cli(MiniData))} rows built")
