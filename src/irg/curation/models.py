"""irg models as drafters, and as painters that take the best of several tries; local diffusers pipelines."""

import importlib.util
import io
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from PIL import Image

from irg.curation.recipe import DiffusersTargets, MiniJudge, ModelDrafts, ModelTargets
from irg.curation.records import png
from irg.curation.stages import Outcome, Stage, Workbench, made, rejected
from irg.curation.store import Row
from irg.curation.vlm import EndpointJudging, instruction
from irg.endpoints import Endpoint, EndpointError
from irg_mini.data.stages import BUNDLED_DETECTOR, _request, see_all, verdict
from irg_mini.world.detector import Detector

_TRIES = 7919  # between the seeds of a row's tries


async def load_pipe(bench: Workbench, model: str) -> Any:
    """The pipeline of a model, loaded once for all stages.

    Raises:
        ValueError: there is no such model.
    """
    from irg.reasoning.pipeline import IRGPipeline

    return bench.kept(f"model {model}", lambda: IRGPipeline.from_pretrained(model))


def draw(pipe: Any, config: ModelDrafts | ModelTargets, prompts: list[str], seeds: list[int]) -> list[Any]:
    """Trajectories of one turn."""
    outputs = pipe(
        prompts,
        seed=seeds,
        batch_size=config.batch,
        **({"mode": "think", "temperature": config.temperature} | config.options),
    )
    return [output.trajectory for output in outputs]


class ModelDrafting(Stage):
    """T1 and I1 by an irg model."""

    name, turns = "draft", (2,)
    config: ModelDrafts

    def __init__(self, config: ModelDrafts) -> None:
        super().__init__(config)
        self.columns = {"thinking": str, "image": bytes}
        self.chunk = config.batch

    async def open(self, bench: Workbench) -> None:
        self.bench, self.pipe = bench, await load_pipe(bench, self.config.model)

    async def make(self, rows: list[Row]) -> list[Outcome]:
        prompts, seeds = [row["prompt"] for row in rows], [row["seed"] for row in rows]
        drawn = await self.bench.alone(draw, self.pipe, self.config, prompts, seeds)
        return [self._outcome(row, trajectory) for row, trajectory in zip(rows, drawn, strict=True)]

    def _outcome(self, row: Row, trajectory: Any) -> Row:
        if not (trajectory.thinking or "").strip():
            return rejected(row, "the model wrote no thinking")
        by = {"model": self.config.model, "seed": trajectory.seed, "settings": trajectory.settings}
        image = png(np.asarray(trajectory.image.convert("RGB")))
        return made(row, by, seconds=round(trajectory.seconds, 4), thinking=trajectory.thinking, image=image)


class ModelPainting(Stage):
    """I2: the best of a model's own tries, by a judge's verdict."""

    name = "target"
    config: ModelTargets

    def __init__(self, config: ModelTargets) -> None:
        super().__init__(config)
        self.columns = {"improved": bytes, "tries": str}
        self.chunk = max(1, config.batch // config.best_of)

    def texts(self) -> list[str]:
        return [] if isinstance(self.config.judge, MiniJudge) else EndpointJudging(self.config.judge).texts()

    def calls(self) -> list[tuple[Endpoint, float]]:
        judge = self.config.judge
        return [] if isinstance(judge, MiniJudge) else [(judge.endpoint, float(self.config.best_of))]

    async def open(self, bench: Workbench) -> None:
        self.bench, self.pipe = bench, await load_pipe(bench, self.config.model)
        judge = self.config.judge
        self._grade: Callable[[Row, list[bytes]], Awaitable[list[tuple[float, float]]]]
        if isinstance(judge, MiniJudge):
            self._grade, folder = self._by_detector, judge.detector or BUNDLED_DETECTOR
            self.detector = bench.kept(f"detector {folder}", lambda: Detector.load(folder))
        else:
            judging = EndpointJudging(judge)
            await judging.open(bench)
            self._grade = judging.grades

    async def make(self, rows: list[Row]) -> list[Outcome]:
        tries = range(self.config.best_of)
        prompts = [instruction(row) for row in rows for _ in tries]
        seeds = [(row["seed"] + 1 + _TRIES * k) % 2**31 for row in rows for k in tries]
        drawn = await self.bench.alone(draw, self.pipe, self.config, prompts, seeds)
        images = [png(np.asarray(t.image.convert("RGB"))) for t in drawn]
        outcomes: list[Outcome] = []
        for number, row in enumerate(rows):
            own = slice(number * len(tries), (number + 1) * len(tries))
            seconds = round(sum(t.seconds for t in drawn[own]), 4)
            try:
                outcomes.append(await self._best(row, images[own], seeds[own], seconds))
            except EndpointError as error:
                outcomes.append(rejected(row, f"{error.kind}: {error}") if error.about_the_request else error)
        return outcomes

    async def _best(self, row: Row, images: list[bytes], seeds: list[int], seconds: float) -> Row:
        grades = await self._grade(row, images)
        best = max(range(len(grades)), key=lambda k: (sum(grades[k]), -k))
        by = {
            "model": self.config.model,
            "seed": seeds[best],
            "best_of": len(grades),
            "temperature": self.config.temperature,
        }
        return made(row, by, seconds=seconds, improved=images[best], tries=str([list(grade) for grade in grades]))

    async def _by_detector(self, row: Row, images: list[bytes]) -> list[tuple[float, float]]:
        request = _request(row)
        seen = await self.bench.alone(see_all, self.detector, images)
        with Image.open(io.BytesIO(images[0])) as image:
            size = image.width
        return [verdict(request, one, None, size) for one in seen]


class DiffusersPainting(Stage):
    """I2 by a local diffusers pipeline: any text-to-image one, or any that takes ``image`` and ``prompt``."""

    name = "target"
    config: DiffusersTargets

    def __init__(self, config: DiffusersTargets) -> None:
        super().__init__(config)
        self.columns = {"improved": bytes}
        self.chunk = config.batch

    async def open(self, bench: Workbench) -> None:
        self.bench = bench
        self.pipe = bench.kept(f"diffusers {self.config.model}", lambda: load_diffusers(self.config))

    async def make(self, rows: list[Row]) -> list[Outcome]:
        return [await self.bench.alone(self._paint, row) for row in rows]

    def _paint(self, row: Row) -> Row:
        import torch

        generator = torch.Generator("cpu").manual_seed(row["seed"] + 1)
        options = dict(self.config.options)
        if self.config.edit and row["turns"] == 2:
            with Image.open(io.BytesIO(row["image"])) as draft:
                options["image"] = draft.convert("RGB")
        image = self.pipe(prompt=instruction(row, "image" in options), generator=generator, **options).images[0]
        by = {"model": self.config.model, "seed": row["seed"] + 1, "options": self.config.options}
        return made(row, by, improved=png(np.asarray(image.convert("RGB"))))


def load_diffusers(config: DiffusersTargets) -> Any:
    """The pipeline, on its device.

    Raises:
        ValueError: diffusers is not installed, or there is no such model.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ValueError("targets by diffusers need the package: pip install 'irg[diffusers]'")
    import diffusers
    import torch

    dtype = torch.bfloat16 if config.device.startswith("cuda") else torch.float32
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(config.model, torch_dtype=dtype)
    except OSError as error:
        raise ValueError(
            f"target.model: no diffusers pipeline {config.model!r}: {' '.join(str(error).split())}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(config.device)
