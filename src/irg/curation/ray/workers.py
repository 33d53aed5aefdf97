"""What runs in Ray's workers: a stage over blocks, and a stage's questions for a model that is asked in bulk."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from irg.curation.build import Layout, run_stage, waiting
from irg.curation.plan import row_stages
from irg.curation.recipe import DataRecipe
from irg.curation.stages import Workbench
from irg.endpoints import AnswerCache, EndpointError, OfflineClient

ROWS_AT_ONCE = 16  # whose questions are held together: they carry images


def bare(layout: Layout) -> Layout:
    """A layout that can travel: stages that have nothing open."""
    stages = row_stages(layout.recipe)
    return Layout(layout.recipe, stages, layout.prompts, layout.sift, layout.made, layout.keys)


class StageWorker:
    """One stage in a worker of its own. It does blocks one by one; after a failure it passes on what comes.

    Args:
        refused: what a model that was asked in bulk could not answer.
    """

    def __init__(self, recipe: DataRecipe, layout: Layout, name: str, refused: dict[str, str] | None = None) -> None:
        self.layout = layout
        self.stage = next(stage for stage in layout.stages if stage.name == name)
        self.loop = asyncio.new_event_loop()
        self.problem = ""
        self.bench = Workbench(layout.answers, recipe.budget, 1, refused or {})
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


class Asker(StageWorker):
    """The questions that a stage still has, by running it over a client that calls nobody. What the stage makes of
    the answers that are there is thrown away: the stage itself will do it again when all are."""

    def questions(self, block: int) -> Iterator[dict[str, dict[str, Any]]]:
        """Name -> body of the questions about some rows of a block, and about the next ones, ..."""
        client = getattr(self.stage, "client", None)
        assert isinstance(client, OfflineClient), self.stage.name
        ids = waiting(self.layout, self.stage, block)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            client.questions = {}
            rows = self.layout.rows(block, ids[start : start + ROWS_AT_ONCE], self.stage)
            self.loop.run_until_complete(self.stage.make(rows))
            if client.questions:
                yield client.questions

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Blocks -> their questions. The body is one string, so that Ray need not understand it."""
        for block in batch["block"]:
            for asked in self.questions(int(block)):
                bodies = [json.dumps(body) for body in asked.values()]
                yield {"key": list(asked), "model": [body["model"] for body in asked.values()], "body": bodies}


class Counter(Asker):
    """How many questions there are, and what keeps a block from being asked about."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        counts, problems = [], []
        for block in batch["block"]:
            count, problem = 0, ""
            try:
                count = sum(map(len, self.questions(int(block))))
            except (ValueError, OSError) as error:
                problem = f"{self.stage.name}: {error}"
            counts.append(count)
            problems.append(problem)
        return {"block": batch["block"], "questions": counts, "problem": problems}
