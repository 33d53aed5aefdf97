"""Operations of the whole loop by numbers of points, against thinking and one image: ``python bench/loop_work.py``.

irg-mini draws crowded prompts; ``work.py`` counts. Nothing is timed, so a busy machine will do. With ``--sheet`` the
first images stand in a picture, a row for each number of points.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from irg.engine.engine import Engine
from irg.model.weights.checkpoint import load_model
from irg.model.weights.folders import model_folder
from irg.model.weights.profile import read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline
from irg_mini import world
from irg_mini.measure.prompts import crowded_requests
from irg_mini.world.detector import EVAL_DETECTOR, Detector
from work import Counted, CountingRunner


@dataclass
class Options:
    """Count the work of thinking and one image, and of irg-mini's loop, whose critic is code."""

    prompts: int = 16
    """The first so many of ``irg bench mini --prompt-set crowded``, with its seeds."""
    points: tuple[int, ...] = (15, 8, 5)
    """Of each image; the first is what ratios are of."""
    sheet: Path | None = None
    """Write first images here, at double size."""


def pipeline() -> tuple[IRGPipeline, CountingRunner]:
    """irg-mini in float32, and the runner that counts for it."""
    folder = model_folder("mini")
    loaded, profile = load_model(folder), read_profile(folder)
    assert profile is not None
    runner = CountingRunner(loaded.model, loaded.autoencoder)
    engine = Engine(runner, TextTokenizer.from_folder(folder), profile.draft_texts)
    return IRGPipeline(engine, profile, "mini"), runner


def main(options: Options) -> int:
    """Print a Markdown table: millions of operations a prompt, by stage, and the ratio to the first row."""
    pipe, runner = pipeline()
    requests = crowded_requests(options.prompts, 0, Detector.load(EVAL_DETECTOR).config.names)
    prompts, seeds = [world.caption(one) for one in requests], [17 * i for i in range(len(requests))]
    rows, usual = [], 0.0
    print("| | points | images | texts | drawing | autoencoder | all | ratio |\n|---|" + "---:|" * 7)
    for points in options.points:
        for name, mode in (("think", "think"), ("loop", "irg")):
            runner.counted = Counted()
            outputs = pipe(prompts, seed=seeds, batch_size=16, num_timesteps=points, mode=mode)
            flops = {stage: work.flops / len(prompts) / 1e6 for stage, work in runner.counted.stages.items()}
            usual = usual or sum(flops.values())
            images = sum(len(one.trajectory.images) for one in outputs) / len(prompts)
            texts = flops["prefill"] + flops["decode"]
            print(
                f"| {name} | {points} | {images:.2f} | {texts:.0f} | {flops['denoise']:.0f} | {flops['vae']:.0f} | "
                f"{sum(flops.values()):.0f} | {sum(flops.values()) / usual:.2f} |",
                flush=True,
            )
            if name == "think":
                rows.append(np.concatenate([np.asarray(one.image) for one in outputs], axis=1))
    if options.sheet:
        sheet = Image.fromarray(np.concatenate(rows))
        sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
