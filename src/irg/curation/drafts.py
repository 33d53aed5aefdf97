"""Own drafts: the model draws, a detector looks, the oracle says what is wrong and renders the corrected picture.

Rows made this way teach reflection on the mistakes that the model really makes. Run as
``python -m irg.curation.drafts --model DIR --judge DIR --out DIR --rows N``; shards that exist are kept, so it resumes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irg import miniworld as world
from irg.curation.mini import TAG_WEIGHTS
from irg.curation.records import TrajectoryRecord, png, write_shards
from irg.miniworld.detector import Detector
from irg.reasoning.pipeline import IRGPipeline

SURE = 0.3  # least score for a thing to count as seen


@dataclass(frozen=True)
class Drafts:
    """Which model draws, who judges, how many rows."""

    model: str
    judge: str
    out: str
    rows: int = 3000
    seed: int = 0
    batch: int = 32
    num_timesteps: int = 13
    rows_per_shard: int = 512


def draft_rows(options: Drafts, shard: int, pipe: IRGPipeline, judge: Detector) -> Iterator[TrajectoryRecord]:
    """The rows of one shard."""
    rng = np.random.default_rng([options.seed, shard, 77])
    left = min(options.rows_per_shard, options.rows - shard * options.rows_per_shard)
    while left > 0:
        count = min(options.batch, left)
        left -= count
        requests = [world.sample_request(rng, weights=TAG_WEIGHTS, split="train", background=0.2) for _ in range(count)]
        prompts = [world.caption(r, rng, "plain" if rng.random() < 0.5 else "varied") for r in requests]
        seeds = [int(rng.integers(2**31)) for _ in range(count)]
        drafts = pipe(
            prompts,
            seed=seeds,
            mode="think",
            temperature=float(rng.choice([0.3, 0.7])),
            num_timesteps=options.num_timesteps,
            batch_size=count,
        )
        pictures = np.stack([np.asarray(draft.image) for draft in drafts])
        for request, prompt, draft, pixels, seen in zip(
            requests, prompts, drafts, pictures, judge.detect(pictures, threshold=SURE), strict=True
        ):
            yield _record(request, prompt, draft.thinking or "", pixels, seen, rng, Path(options.model).name)


def _record(
    request: world.Request,
    prompt: str,
    thinking: str,
    pixels_HW3: np.ndarray,
    seen: list[world.Seen],
    rng: np.random.Generator,
    model: str,
) -> TrajectoryRecord:
    try:
        intended = world.parse_layout(thinking)
    except ValueError:
        intended = None
    size = pixels_HW3.shape[0]
    flaws = world.find_flaws(request, seen, size=size, threshold=SURE)
    corrected = world.correct(request, seen, intended, rng, size=size, threshold=SURE)
    return TrajectoryRecord(
        prompt,
        thinking or "none",
        png(pixels_HW3),
        world.reflect(request, flaws, corrected, seen, size),
        png(world.render(corrected, size)),
        request=json.dumps(request.to_json()),
        source=f"draft:{model}",
    )


def build(options: Drafts) -> int:
    """Make all shards that are not there yet; returns the rows made."""
    pipe = IRGPipeline.from_pretrained(options.model)
    judge = Detector.load(options.judge)
    made = 0
    for shard in range(-(-options.rows // options.rows_per_shard)):
        final = Path(options.out) / f"part-{shard:05d}.parquet"
        if final.exists():
            continue
        aside = Path(options.out) / f".shard-{shard:05d}"
        made += write_shards(draft_rows(options, shard, pipe, judge), aside, options.rows_per_shard)
        (aside / "part-00000.parquet").replace(final)
        aside.rmdir()
    return made


if __name__ == "__main__":
    import tyro

    print(f"{build(tyro.cli(Drafts))} rows built")
