"""irg-mini's drawing trained by ``recipes/mini/gpu-draw.yaml`` for minutes, and how well it draws before and after.

``python bench/gpu_mini.py --json DIR/mini.json``. A trial of a few steps times one; the run has as many as there is
time for. Needs the icons (``irg data sprites``). What is done is kept in ``DIR/mini/work`` until all of it is done:
whole files of rows, latents, the number of steps, checkpoints, tables. So whatever cut it, the same command goes on
from there. In ``DIR/mini`` it leaves the training's log, the weights in bfloat16 (in parts to be joined by ``cat``),
and a sheet of images.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from irg import files, recipes
from irg.learning.recipe import TrainRecipe
from irg.learning.trainer import Trainer, train
from irg.model.weights.convert import Conversion, convert
from irg_mini.data.rows import MiniData, build
from irg_mini.measure import drawing

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "mini" / "gpu-draw.yaml"
KINDS = {"crowded": (911, ("compound", "stacking")), "others": (921, ())}  # of rows: seeds, forms of requests
ROWS_PER_FILE = 100
TRIAL_FILES = 4  # of each kind
RESERVE = 60  # seconds after training, to write the weights
MEASURING = 45  # seconds; with fewer left no measurement is begun
PART = 12_000_000  # bytes


@dataclass
class Options:
    """Train irg-mini's drawing on a GPU for some minutes."""

    json: Path = Path("gpu-mini.json")
    """Where the result goes; the folder beside it has the same name without .json."""
    seconds: float = 600
    """For all of it: what isn't done by then is left to a second run."""
    train_seconds: float = 290
    """That the training's steps shall take."""
    rows: tuple[int, int] = (20000, 12000)
    """Crowded ones and others."""
    trial_steps: int = 60
    """0: no trial, and the run has one step."""
    train_options: str = ""
    """More options of irg train's, in one string."""
    dry: bool = False
    """A step on a CPU, no measurement."""


class Mini:
    """The parts of the run, each of which leaves in ``work`` what it has done."""

    def __init__(self, options: Options) -> None:
        self.options, self.started = options, time.monotonic()
        self.kept = options.json.with_name(options.json.name.partition(".")[0])
        self.work = self.kept / "work"
        self.work.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds."""
        return self.options.seconds - (time.monotonic() - self.started)

    def make_rows(self) -> None:
        """All files of rows that aren't there yet."""
        processes = 1 if self.options.dry else os.cpu_count() or 1
        for (name, (seed, tags)), count in zip(KINDS.items(), self.options.rows, strict=True):
            data = MiniData(
                str(self.work / name),
                count,
                repairs=0.3,
                misplanned=0.5,
                seed=seed,
                processes=processes,
                rows_per_shard=ROWS_PER_FILE,
                sprites="builtin" if self.options.dry else "fluent",
                tags=tags,
            )
            build(data)

    def recipe(self, out: str, data: str, steps: int, save_every: int) -> TrainRecipe:
        """The recipe for some of the rows."""
        words = ["--out", str(self.work / out), "--data", data, "--cache", str(self.work / "latents")]
        words += ["--steps", str(steps), "--optimizer.cooldown", str(steps), "--save_every", str(save_every)]
        if self.options.dry:
            words += ["--device", "cpu", "--tokens_per_pack", "1024", "--noise_copies", "1"]
        return recipes.load(TrainRecipe, RECIPE, words + shlex.split(self.options.train_options))

    def steps(self) -> int:
        """As many as there is time for, by a trial; a second run has as many as the first."""
        path, trial_steps = self.work / "steps.json", self.options.trial_steps
        if not trial_steps:
            return 1
        if not path.exists():
            some = [file for kind in KINDS for file in sorted((self.work / kind).glob("*.parquet"))[:TRIAL_FILES]]
            data = ", ".join(map(str, some))
            trial = self.recipe("trial", f"[{data}]", trial_steps, trial_steps)
            train(trial)
            seconds = files.read_json_lines(Path(trial.out) / "log.jsonl")[-1]["step_seconds"]
            files.write_json(path, max(1, int(self.options.train_seconds / seconds)))
            shutil.rmtree(trial.out)
        return int(path.read_text())

    def train(self, steps: int) -> bool:
        """Train on from the newest checkpoint; whether it came to its end. Where time ran out, the model is written as
        it is then."""
        folders = ", ".join(str(self.work / kind) for kind in KINDS)
        recipe = self.recipe("run", f"[{folders}]", steps, max(1, steps // 10))

        def is_over() -> bool:
            return self.left() < RESERVE

        try:
            train(recipe, trainer=ending_when(is_over))
        except KeyboardInterrupt:
            if not is_over():
                raise  # somebody else's
            train(replace(recipe, stop_after=1))
        return files.read_json_lines(self.log)[-1]["step"] == steps

    @property
    def log(self) -> Path:
        """Of the run."""
        return self.work / "run" / "log.jsonl"

    def write_weights(self) -> None:
        """Copy the log, and write the weights in parts."""
        shutil.copy(self.log, self.kept)
        convert(self.work / "run" / "model", self.work / "bfloat16", Conversion(dtype=torch.bfloat16), overwrite=True)
        content = (self.work / "bfloat16" / "weights.safetensors").read_bytes()
        for number, start in enumerate(range(0, len(content), PART)):
            files.write_bytes(self.kept / f"weights.safetensors.{number:02d}", content[start : start + PART])

    def measure(self, name: str, model: str) -> bool:
        """How well a model draws: the table is in ``work/NAME``; whether there was time."""
        path = self.work / f"{name}.md"
        if self.options.dry or path.exists():
            return True
        if self.left() < MEASURING:
            return False
        found = drawing.draw(drawing.DrawingMeasure(model, prompts=96, batch_size=96))
        drawing.sheet(found[:36]).save(self.kept / f"{name}.png")
        files.write_text(path, drawing.table(found) + "\n")
        print(f"{name}:\n{path.read_text()}", flush=True)
        return True

    def result(self, steps: int) -> dict[str, Any]:
        """Numbers of all that is done."""
        lines = files.read_json_lines(self.log)
        tables = {path.stem: path.read_text().splitlines() for path in sorted(self.work.glob("*.md"))}
        return {"steps": steps, "first": lines[0], "last": lines[-1]} | tables


def ending_when(is_over: Callable[[], bool]) -> type[Trainer]:
    """A trainer that ends between two steps, as by Ctrl-C: it saves where it stands and raises KeyboardInterrupt."""

    class Ending(Trainer):
        def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
            return super().train_step(lambda: stop() or is_over())

    return Ending


def main(options: Options) -> int:
    """All parts in turn; 1 where time ran out."""
    mini = Mini(options)
    mini.make_rows()
    steps = mini.steps()
    print(f"{steps} steps; {mini.left():.0f} s left", flush=True)
    done = mini.train(steps)
    mini.write_weights()  # before anything that may be cut
    for name, model in (("after", str(mini.work / "run" / "model")), ("before", "mini")):
        files.write_json(options.json, mini.result(steps))
        done = done and mini.measure(name, model)
    files.write_json(options.json, mini.result(steps))
    if not done:
        print("time ran out: the same command goes on from here", file=sys.stderr)
        return 1
    shutil.rmtree(mini.work)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
