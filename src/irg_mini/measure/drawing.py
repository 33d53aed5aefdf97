"""How well a model draws what it planned: the distance of its images from the world's own rendering of their plans.

``python -m irg_mini.measure.drawing --model mini`` lets the model think and draw, renders each plan that is a layout
(the renderer is deterministic), and prints, with 95 % intervals: the peak signal-to-noise ratio in dB, over the image
and over the cells that things cover; and how often the detector accepts the image and the rendering. Two models with
the same texts have the same plans, so that their numbers can be compared prompt by prompt.

Legend: H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from PIL import Image

from irg.evaluation.statistics import share, stratified_interval
from irg.reasoning.pipeline import IRGPipeline
from irg_mini import world
from irg_mini.measure.prompts import crowded_requests, held_out_requests
from irg_mini.world.detector import EVAL_DETECTOR, Detector
from irg_mini.world.rules import SCORE_THRESHOLD

CELL = 8
"""Pixels of a latent cell: what counts as covered by a thing."""


@dataclass(frozen=True)
class DrawingMeasure:
    """What is measured."""

    model: str = "mini"
    detector: str = EVAL_DETECTOR
    """Which detector looks at the images; no training used the default one."""
    prompts: int = 120
    prompt_set: Literal["crowded", "held-out"] = "crowded"
    seed: int = 0
    num_timesteps: int | None = None
    """Time points of the image; default: the model's own."""
    batch_size: int = 16
    out: Path | None = None
    """A folder for the images, and for a sheet of renderings and images side by side."""


@dataclass(frozen=True)
class Drawing:
    """An image and the rendering of its plan, uint8 [H, W, 3], and what was made of them.

    Attributes:
        right: the detector accepts the image.
        rendered_right: it accepts the rendering.
    """

    image: np.ndarray
    rendering: np.ndarray
    things: np.ndarray
    right: bool
    rendered_right: bool


def decibels(image: np.ndarray, rendering: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio of two images, uint8 [H, W, 3], over all pixels or those of a mask [H, W]."""
    error = ((image.astype(np.float64) - rendering) / 255) ** 2
    mean = error.mean() if where is None else error[where].mean()
    return float(-10 * np.log10(max(mean, 1e-10)))


def covered(scene: world.Scene, size: int) -> np.ndarray:
    """Pixels of the cells in which something stands: bool [size, size]. Shadows don't count."""
    cells = np.zeros((size // CELL, size // CELL), bool)
    for _, _, (left, top, right, bottom) in world.boxes(scene, size):
        first_col, first_row = int(max(left, 0)) // CELL, int(max(top, 0)) // CELL
        cells[first_row : -(-int(bottom) // CELL), first_col : -(-int(right) // CELL)] = True
    mask: np.ndarray = np.kron(cells, np.ones((CELL, CELL), bool))
    return mask


def draw(measure: DrawingMeasure) -> list[Drawing]:
    """Let the model think and draw; prompts whose plan is no layout are left out.

    Raises:
        ValueError: there is no such model or detector, or the sprites are missing.
    """
    detector = Detector.load(measure.detector)
    choose = crowded_requests if measure.prompt_set == "crowded" else held_out_requests
    requests = choose(measure.prompts, measure.seed, detector.config.names)
    pipe = IRGPipeline.from_pretrained(measure.model)
    options = {"mode": "think"} | ({"num_timesteps": measure.num_timesteps} if measure.num_timesteps else {})
    outputs = pipe(
        [world.caption(request) for request in requests],
        seed=[1000 * measure.seed + 17 * i for i in range(len(requests))],
        settings=pipe.with_options(pipe.defaults, options),
        batch_size=measure.batch_size,
    )
    found = []
    for request, output in zip(requests, outputs, strict=True):
        image = np.asarray(output.trajectory.image)
        try:
            scene = world.parse_layout(output.trajectory.thinking or "")
        except ValueError:
            continue
        size = image.shape[0]
        rendering = world.render(scene, size, world.load_sprites())
        seen = detector.detect(np.stack([image, rendering]), threshold=SCORE_THRESHOLD)
        right, rendered = (world.satisfied(request, one, threshold=SCORE_THRESHOLD) for one in seen)
        found.append(Drawing(image, rendering, covered(scene, size), right, rendered))
    return found


# ---- the table


def table(found: Sequence[Drawing]) -> str:
    """Markdown: means with intervals over images."""
    distances = {
        "dB to the rendering": [decibels(one.image, one.rendering) for one in found],
        "dB, things": [decibels(one.image, one.rendering, one.things) for one in found if one.things.any()],
        "dB, background": [decibels(one.image, one.rendering, ~one.things) for one in found if not one.things.all()],
    }
    lines = ["| | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, values in distances.items():
        low, high = stratified_interval([values], resamples=4000, seed=0)
        lines.append(f"| {name} | {np.mean(values):.2f} | {low:.2f}–{high:.2f} | {len(values)} |")
    for name, verdicts in (
        ("image accepted, %", [one.right for one in found]),
        ("rendering accepted, %", [one.rendered_right for one in found]),
    ):
        estimate = share([(float(value), 1.0) for value in verdicts])
        assert estimate.value is not None and estimate.low is not None and estimate.high is not None
        low, high = 100 * estimate.low, 100 * estimate.high
        lines.append(f"| {name} | {100 * estimate.value:.1f} | {low:.1f}–{high:.1f} | {len(verdicts)} |")
    return "\n".join(lines)


def sheet(found: Sequence[Drawing], columns: int = 12) -> Image.Image:
    """The first drawings: a row of renderings, below it the images, and so on."""
    rows = []
    for start in range(0, len(found), columns):
        some = found[start : start + columns]
        blank = [np.full_like(some[0].image, 255)] * (columns - len(some))
        rows += [*(one.rendering for one in some), *blank, *(one.image for one in some), *blank]
    return world.contact_sheet(rows, columns)


def main() -> None:
    """Run from the command line."""
    measure = tyro.cli(DrawingMeasure, description=__doc__)
    found = draw(measure)
    if measure.out is not None:
        measure.out.mkdir(parents=True, exist_ok=True)
        for i, one in enumerate(found):
            Image.fromarray(one.image).save(measure.out / f"{i:03d}.png")
        sheet(found[:36]).save(measure.out / "sheet.png")
    print(table(found))


if __name__ == "__main__":
    main()
