"""``irg bench run``: draw the images of a run that are missing; an interruption loses only those in flight."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from irg import files
from irg.evaluation.image_folders import LAYOUTS
from irg.evaluation.runs import RunInfo, Sample, missing_samples, record_session
from irg.promptsets import BenchPrompt
from irg.reasoning.critique import failures
from irg.reasoning.events import Failed, Finished
from irg.reasoning.settings import Settings
from irg.results.trajectory import Trajectory

if TYPE_CHECKING:
    from irg.reasoning.pipeline import IRGPipeline


def draw_missing(
    folder: Path, info: RunInfo, prompts: Sequence[BenchPrompt], pipe: "IRGPipeline", batch_size: int, console: Console
) -> int:
    """Draw what is missing of a run; returns how many images were drawn. One that fails is printed and stays missing.

    Raises:
        ValueError: another process is drawing this run.
    """
    with files.locked(folder / ".lock", f"{folder}: another irg bench run is drawing it"):
        samples = missing_samples(folder, info, prompts)
        total, drawn, start = len(prompts) * info.samples, 0, time.perf_counter()
        if not samples:
            return 0
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        try:
            with Progress(*columns, console=console) as bar:
                task = bar.add_task(f"{info.benchmark} {info.mode}", total=total, completed=total - len(samples))
                for sample, trajectory in _trajectories(pipe, info, samples, batch_size, console):
                    save_sample(folder, info, sample, trajectory)
                    drawn += 1
                    bar.advance(task)
        finally:
            record_session(folder, drawn, time.perf_counter() - start, batch_size, pipe.loaded)
        return drawn


def _trajectories(
    pipe: "IRGPipeline", info: RunInfo, samples: Sequence[Sample], batch_size: int, console: Console
) -> Iterator[tuple[Sample, Trajectory]]:
    texts, seeds = [one.prompt.text for one in samples], [one.seed(info.seed) for one in samples]
    with closing(pipe.stream(texts, seeds, Settings.from_dict(info.settings), batch_size)) as events:
        for event in events:
            if not isinstance(event, Finished | Failed):
                continue
            sample = samples[event.request]
            problems = [str(event.error)] if isinstance(event, Failed) else failures(event.trajectory)
            if isinstance(event, Finished) and event.trajectory.image is None:
                problems.append("the model answered without an image")
            for problem in problems:
                console.print(f"image {sample.number} of prompt {sample.prompt.id}: {problem}")
            if isinstance(event, Finished) and event.trajectory.image is not None:
                yield sample, event.trajectory


def save_sample(folder: Path, info: RunInfo, sample: Sample, trajectory: Trajectory) -> None:
    """Write every turn's image, then the trajectory, which marks the sample as finished."""
    layout = LAYOUTS[info.benchmark]
    for turn in range(1, info.max_turns + 1):
        image = trajectory.image_after(turn - 1)
        assert image is not None, "a request without an image is not saved"
        layout.write(folder / "turns" / str(turn), sample.prompt, sample.number, info.model_name, image)
    assert trajectory.image is not None
    layout.write(folder / "images", sample.prompt, sample.number, info.model_name, trajectory.image)
    record = trajectory.to_dict() | {"prompt_id": sample.prompt.id, "sample": sample.number}
    files.write_json(sample.trajectory_file(folder), record)
