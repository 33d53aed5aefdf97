"""irg models that make drafts, and targets as the best of several tries: kind ``model``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from irg import registry
from irg.curation.content import performance
from irg.curation.endpoint_stages import EndpointJudge
from irg.curation.instructions import instruction
from irg.curation.parts import Drafts, Parts, RowJudge, Targets
from irg.curation.records import png
from irg.curation.resources import Resources
from irg.curation.stages import Grader, Outcome, Stage, accepted, failed, rejected
from irg.curation.store import Row
from irg.endpoints import Endpoint, EndpointError
from irg.hub_downloads import say_on_stderr
from irg.reasoning.settings import check_options

Judge = Annotated[EndpointJudge, registry.Plugins(registry.DATA, RowJudge)]
"""A judge of rows, built in or a plug-in."""

_SEED_STEP = 7919  # between the seeds of a row's tries


async def load_pipeline(resources: Resources, model: str) -> Any:
    """The pipeline of a model, loaded once for all stages.

    Raises:
        ValueError: there is no such model.
    """
    from irg.reasoning.pipeline import IRGPipeline

    return resources.get_or_load(f"model {model}", lambda: IRGPipeline.from_pretrained(model))


def find_model(name: str) -> None:
    """Check that a model is there, or download it.

    Raises:
        ValueError: there is no such model, or it can't be had.
    """
    from irg.model.weights.folders import model_folder

    model_folder(name, say=say_on_stderr)


def generate(
    pipe: Any,
    prompts: list[str],
    seeds: list[int],
    *,
    batch_size: int,
    temperature: float,
    options: dict[str, Any],
) -> list[Any]:
    """Trajectories of one turn, one for each prompt. ``options`` are settings of ``irg generate`` by name."""
    settings = {"mode": "think", "temperature": temperature} | options
    return [output.trajectory for output in pipe(prompts, seed=seeds, batch_size=batch_size, **settings)]


def image_bytes(trajectory: Any) -> bytes:
    """A trajectory's image as PNG."""
    return png(np.asarray(trajectory.image.convert("RGB")))


def weights_of(trajectory: Any) -> dict[str, Any]:
    """Which weights drew it; not on which machine, since rows are the same in every build."""
    names = ("fingerprint", "weights", "precision", "lora")
    return {name: trajectory.loaded[name] for name in names if trajectory.loaded.get(name)}


@dataclass(frozen=True)
class ModelDrafts(Drafts):
    """Drafts by an irg model. ``options`` are settings of ``irg generate`` by name."""

    kind: Literal["model"]
    model: str = "mini"
    temperature: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = performance(32, was="batch")

    def __post_init__(self) -> None:
        check_options({"mode": "think", **self.options})

    def stage(self, parts: Parts) -> Stage:
        return DraftStage(self)


class DraftStage(Stage):
    """T1 and I1 by an irg model."""

    name, columns = "draft", {"thinking": str, "image": bytes}
    config: ModelDrafts

    def __init__(self, config: ModelDrafts) -> None:
        super().__init__(config)
        self.batch_size = config.batch_size

    def find(self) -> None:
        find_model(self.config.model)

    async def open(self, resources: Resources) -> None:
        self.resources, self.pipe = resources, await load_pipeline(resources, self.config.model)

    async def make(self, rows: list[Row]) -> list[Outcome]:
        trajectories = await self.resources.run_in_model_thread(self._generate, rows)
        return [self._outcome(row, trajectory) for row, trajectory in zip(rows, trajectories, strict=True)]

    def _generate(self, rows: list[Row]) -> list[Any]:
        config = self.config
        return generate(
            self.pipe,
            [row["prompt"] for row in rows],
            [row["seed"] for row in rows],
            batch_size=config.batch_size,
            temperature=config.temperature,
            options=config.options,
        )

    def _outcome(self, row: Row, trajectory: Any) -> Row:
        if not (trajectory.thinking or "").strip():
            return rejected(row, "the model wrote no thinking")
        by = {"model": self.config.model, "seed": trajectory.seed, "settings": trajectory.settings}
        by |= weights_of(trajectory)
        seconds = round(trajectory.seconds, 4)
        return accepted(row, by, seconds=seconds, thinking=trajectory.thinking, image=image_bytes(trajectory))


@dataclass(frozen=True)
class ModelTargets(Targets):
    """The best of ``best_of`` images that an irg model draws, by the grades of a judge."""

    kind: Literal["model"]
    judge: Judge
    model: str = "mini"
    best_of: int = 4
    temperature: float = 0.7
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = performance(32, was="batch")

    def __post_init__(self) -> None:
        check_options({"mode": "think", **self.options})

    def stage(self, parts: Parts) -> Stage:
        return BestOfStage(self, self.judge.grader())


class BestOfStage(Stage):
    """I2: the best of a model's own tries, by a judge's grades."""

    name, columns = "target", {"improved": bytes, "tries": str}
    config: ModelTargets

    def __init__(self, config: ModelTargets, grader: Grader) -> None:
        super().__init__(config)
        self.grader = grader
        self.batch_size = max(1, config.batch_size // config.best_of)

    def texts(self) -> list[str]:
        return self.grader.texts()

    def calls(self) -> list[tuple[Endpoint, float]]:
        return [(endpoint, count * self.config.best_of) for endpoint, count in self.grader.calls()]

    def find(self) -> None:
        find_model(self.config.model)

    async def open(self, resources: Resources) -> None:
        self.resources, self.pipe = resources, await load_pipeline(resources, self.config.model)
        await self.grader.open(resources)

    async def make(self, rows: list[Row]) -> list[Outcome]:
        tries = range(self.config.best_of)
        seeds = [(row["seed"] + 1 + _SEED_STEP * k) % 2**31 for row in rows for k in tries]
        trajectories = await self.resources.run_in_model_thread(self._generate, rows, seeds)
        outcomes: list[Outcome] = []
        for number, row in enumerate(rows):
            own = slice(number * len(tries), (number + 1) * len(tries))
            try:
                outcomes.append(await self._best(row, trajectories[own], seeds[own]))
            except EndpointError as error:
                outcomes.append(failed(row, error))
        return outcomes

    def _generate(self, rows: list[Row], seeds: list[int]) -> list[Any]:
        config = self.config
        return generate(
            self.pipe,
            [instruction(row) for row in rows for _ in range(config.best_of)],
            seeds,
            batch_size=config.batch_size,
            temperature=config.temperature,
            options=config.options,
        )

    async def _best(self, row: Row, trajectories: Sequence[Any], seeds: list[int]) -> Row:
        images = [image_bytes(trajectory) for trajectory in trajectories]
        grades = await self.grader.grades(row, images)
        best = max(range(len(grades)), key=lambda k: (sum(grades[k]), -k))
        by = {
            "model": self.config.model,
            "seed": seeds[best],
            "best_of": len(grades),
            "temperature": self.config.temperature,
        } | weights_of(trajectories[best])
        seconds = round(sum(trajectory.seconds for trajectory in trajectories), 4)
        tries = str([list(grade) for grade in grades])
        return accepted(row, by, seconds=seconds, improved=images[best], tries=tries)
