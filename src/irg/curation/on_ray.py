"""The same stages on Ray Data: each is an operator over block numbers, the rows stay in the build's files.

So the output is what one process makes, byte for byte; Ray decides who does which block when, with how many workers and
GPUs. All nodes must see the build's folder.
"""

import asyncio
import importlib.util
from typing import Any

from irg.curation.build import Layout, Told, run_stage
from irg.curation.plan import row_stages
from irg.curation.recipe import DataRecipe
from irg.curation.stages import Workbench
from irg.endpoints import AnswerCache, EndpointError


class StageWorker:
    """One stage in a worker of its own. It does blocks one by one; after a failure it passes on what comes."""

    def __init__(self, recipe: DataRecipe, layout: Layout, name: str) -> None:
        self.layout = layout
        self.stage = next(stage for stage in layout.stages if stage.name == name)
        self.loop = asyncio.new_event_loop()
        self.problem = ""
        self.bench = Workbench(layout.answers, recipe.budget, 1)
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        await self.bench.__aenter__()
        await self.stage.open(self.bench)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the blocks of a batch; what became of them goes on to the next stage."""
        problems, told = list(batch["problem"]), list(batch["told"])
        for index, block in enumerate(batch["block"]):
            if not problems[index] and not self.problem:
                made, refused, cost = self._do(int(block))
                told[index] = f"{told[index]} {self.stage.name}:{made}:{refused}:{cost}"
            problems[index] = problems[index] or self.problem
        return {"block": batch["block"], "problem": problems, "told": told}

    def _do(self, block: int) -> tuple[int, int, float]:
        counts, paid = [0, 0], [0.0]

        def count(_: str, made: int, refused: int, cost: float) -> None:
            counts[0] += made
            counts[1] += refused
            paid[0] += cost

        self.bench.budget.spent = AnswerCache(self.layout.answers).spent()  # other workers spend too
        try:
            self.loop.run_until_complete(run_stage(self.layout, self.stage, block, count))
        except (EndpointError, ValueError, OSError) as error:
            self.problem = f"{self.stage.name}: {error}"
        return counts[0], counts[1], paid[0]


def run_ray(layout: Layout, told: Told) -> None:
    """All blocks through all stages on Ray.

    Raises:
        ValueError: ray is not installed, or a stage had to stop.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("engine: ray needs the package: pip install 'irg[ray]'")
    import ray
    import ray.data

    settings = layout.recipe.ray
    if not ray.is_initialized():
        ray.init(address=settings.address, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = [{"block": block, "problem": "", "told": ""} for block in layout.blocks()]
    data = ray.data.from_items(blocks, override_num_blocks=max(1, len(blocks)))
    for stage in layout.stages:
        workers = settings.workers.get(stage.name, 1)
        data = data.map_batches(
            StageWorker,
            fn_constructor_args=(layout.recipe, bare(layout), stage.name),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=settings.gpus.get(stage.name, 0),
        )
    problem = ""
    for row in data.iter_rows():
        problem = problem or row["problem"]
        for word in row["told"].split():
            name, made, refused, cost = word.rsplit(":", 3)
            told(name, int(made), int(refused), float(cost))
    if problem:
        raise ValueError(f"{problem}. What is made is kept; build again to go on")


def bare(layout: Layout) -> Layout:
    """A layout that can travel: stages that have nothing open."""
    stages = row_stages(layout.recipe)
    return Layout(layout.recipe, stages, layout.prompts, layout.sift, layout.made, layout.keys)
