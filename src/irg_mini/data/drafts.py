"""``irg data drafts``: the model draws, a detector looks, ground truth says what is wrong and draws it right.

Rows made this way teach reflection on the mistakes that the model really makes. With ``generator="world"`` the world
draws what the model planned: mistakes of its plans alone, cheaply, in images that leave no doubt what they show. The
parts of data recipes make them; shards that exist are kept, so it resumes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from irg.curation.model_stages import generate
from irg.curation.records import TrajectoryRecord, png, write_shard
from irg.curation.store import Row
from irg.deprecation import renamed
from irg.files import sweep
from irg.reasoning.pipeline import IRGPipeline
from irg_mini import world
from irg_mini.data.requests import check_tags, drawable, random_request
from irg_mini.data.stages import MiniReflections, MiniTargets, see_all
from irg_mini.world.detector import LABEL_DETECTOR, Detector
from irg_mini.world.rules import SCORE_THRESHOLD


@dataclass(frozen=True)
class Drafts:
    """Which model draws, which detector looks, how many rows."""

    model: str
    out: str
    detector: str = renamed(was="judge", default=LABEL_DETECTOR)
    """A detector's folder, or a bundled one by name."""
    rows: int = 3000
    seed: int = 0
    batch: int = 32
    num_timesteps: int = 13
    rows_per_shard: int = 512
    sprites: Literal["fluent", "builtin"] = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"
    tags: tuple[str, ...] = ()
    """As in ``irg data mini``: forms of requests to keep to."""
    flawed_copies: int = 1
    """How often a row whose draft has a flaw is written: most drafts of a good model have none, and a model that sees
    few flaws learns to say that there are none."""
    generator: Literal["model", "world"] = renamed(was="painter", default="model")
    """What draws what the model planned. The world's images need no detector, since what they show is known; plans that
    are no layout are passed over."""

    replan: bool = False
    """Answer a wrong plan by a new one, not by what keeps the rest in place."""

    def __post_init__(self) -> None:
        check_tags(self.tags, self.vocab)
        if self.flawed_copies < 1:
            raise ValueError(f"flawed_copies must be at least 1, got {self.flawed_copies}")


def draft_rows(options: Drafts, shard: int, pipe: IRGPipeline, detector: Detector) -> Iterator[TrajectoryRecord]:
    """The rows of one shard."""
    rng = np.random.default_rng([options.seed, shard, 77])
    vocab = drawable(options.vocab, world.load_sprites(options.sprites))
    left = min(options.rows_per_shard, options.rows - shard * options.rows_per_shard)
    while left > 0:
        count = min(options.batch, left)
        left -= count
        rows: list[Row] = []
        for _ in range(count):
            request, prompt = random_request(rng, vocab, dict.fromkeys(options.tags, 1.0))
            seed = int(rng.integers(2**31))
            rows.append(
                {"id": "", "prompt": prompt, "request": json.dumps(request.to_json()), "turns": 2, "seed": seed}
            )
        temperature = float(rng.choice([0.3, 0.7]))
        for row, size, seen in _drafted(rows, options, temperature, pipe, detector):
            record = _record(row, size, seen, options)
            request = world.Request.from_json(json.loads(row["request"]))
            right = not world.find_flaws(request, seen, size=size, threshold=SCORE_THRESHOLD)
            yield from [record] * (1 if right else options.flawed_copies)


def _drafted(
    rows: list[Row], options: Drafts, temperature: float, pipe: IRGPipeline, detector: Detector
) -> Iterator[tuple[Row, int, list[world.Seen]]]:
    """Rows with the model's thinking and the generator's image, its side in pixels, and what is to be seen in it."""
    changed: dict[str, Any] = {"num_timesteps": options.num_timesteps}
    if options.generator == "world":
        changed = {"num_timesteps": 2, "cfg_text_scale": 1.0}  # the model's image is not looked at
    prompts, seeds = [row["prompt"] for row in rows], [row["seed"] for row in rows]
    drawn = generate(pipe, prompts, seeds, batch_size=len(rows), temperature=temperature, options=changed)
    for row, trajectory in zip(rows, drawn, strict=True):
        row["thinking"] = trajectory.thinking or "none"
    if options.generator == "world":
        yield from _rendered(rows, drawn[0].image.width, options.sprites)
        return
    images = [png(np.asarray(trajectory.image.convert("RGB"))) for trajectory in drawn]
    for row, trajectory, image, seen in zip(rows, drawn, images, see_all(detector, images), strict=True):
        yield row | {"image": image}, trajectory.image.width, seen


def _rendered(rows: list[Row], size: int, sprites: str) -> Iterator[tuple[Row, int, list[world.Seen]]]:
    icons = world.load_sprites(sprites)
    for row in rows:
        try:
            scene = world.parse_layout(row["thinking"])
        except ValueError:  # a model's thinking need not be a layout
            continue
        yield row | {"image": png(world.render(scene, size, icons))}, size, world.see(scene, size)


def _record(row: Row, size: int, seen: list[world.Seen], options: Drafts) -> TrajectoryRecord:
    look: dict[str, Any] = {"size": size, "sprites": options.sprites}
    row |= MiniReflections("miniworld", options.detector, options.replan, **look).make(row, seen)
    row |= MiniTargets("miniworld", **look).make(row)
    return TrajectoryRecord(
        row["prompt"],
        row["thinking"],
        row["image"],
        row["reflection"],
        row["improved"],
        request=row["request"],
        source=f"{'plan' if options.generator == 'world' else 'draft'}:{Path(options.model).name}",
        license="Apache-2.0",
        seed=row["seed"],
    )


def build(options: Drafts) -> int:
    """Make all shards that are not there yet; returns the rows made.

    Raises:
        ValueError: there is no such model or detector, the sprites are missing, or no plan is a layout.
    """
    pipe = IRGPipeline.from_pretrained(options.model)
    detector = Detector.load(options.detector)
    sweep(Path(options.out))
    made = 0
    for shard in range(-(-options.rows // options.rows_per_shard)):
        path = Path(options.out) / f"part-{shard:05d}.parquet"
        if path.exists():
            continue
        rows = list(draft_rows(options, shard, pipe, detector))
        if not rows:
            raise ValueError(f"{options.model} plans no layouts that the mini world could draw; set generator: model")
        write_shard(rows, path)
        made += len(rows)
    return made
