"""What runs in Ray's workers: a stage over blocks, and the requests that a stage has for an offline model."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from irg.curation.build_folder import BuildFolder
from irg.curation.resources import Resources
from irg.curation.running import run_stage
from irg.endpoints import AnswerCache, EndpointError, OfflineClient

ROWS_AT_ONCE = 16  # whose requests are held together: they carry images


class StageWorker:
    """One stage in a worker of its own. It does blocks one by one; after a failure it only passes blocks on.

    Args:
        folder: with stages that have nothing open.
        failures: requests that an offline model could not answer -> why.
    """

    def __init__(self, folder: BuildFolder, name: str, failures: dict[str, str]) -> None:
        self.folder = folder
        self.stage = next(stage for stage in folder.stages if stage.name == name)
        self.loop = asyncio.new_event_loop()
        self.problem = ""
        self.resources = Resources(folder.answers, folder.recipe.budget, 1, failures)
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self.resources.__aenter__()
        await self.stage.open(self.resources)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the blocks of a batch; counts and problems go on to the next stage."""
        problems, counts = list(batch["problem"]), list(batch["counts"])
        for index, block in enumerate(batch["block"]):
            if not problems[index] and not self.problem:
                made, rejected, cost = self._make(int(block))
                counts[index] = f"{counts[index]} {self.stage.name}:{made}:{rejected}:{cost}"
            problems[index] = problems[index] or self.problem
        return {"block": batch["block"], "problem": problems, "counts": counts}

    def _make(self, block: int) -> tuple[int, int, float]:
        counts, paid = [0, 0], [0.0]

        def count(_: str, made: int, rejected: int, cost: float) -> None:
            counts[0] += made
            counts[1] += rejected
            paid[0] += cost

        self.resources.budget.spent = AnswerCache(self.folder.answers).spent()  # other workers spend too
        try:
            self.loop.run_until_complete(run_stage(self.folder, self.stage, block, count))
        except (EndpointError, ValueError, OSError) as error:
            self.problem = f"{self.stage.name}: {error}"
        return counts[0], counts[1], paid[0]


class RequestCollector(StageWorker):
    """The requests that a stage has still to send, found by running it with an offline client. What the stage makes of
    the answers that are there is thrown away: the stage makes it again when all answers are there."""

    def requests(self, block: int) -> Iterator[dict[str, dict[str, Any]]]:
        """Key -> body of the requests for some rows of a block, and for the next ones, ..."""
        client = getattr(self.stage, "client", None)
        assert isinstance(client, OfflineClient), self.stage.name
        ids = self.folder.pending(self.stage, block)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            client.requests = {}
            rows = self.folder.rows(block, ids[start : start + ROWS_AT_ONCE], self.stage)
            self.loop.run_until_complete(self.stage.make(rows))
            if client.requests:
                yield client.requests

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Blocks -> their requests. The body is one string, so that Ray need not understand it."""
        for block in batch["block"]:
            for requests in self.requests(int(block)):
                bodies = [json.dumps(body) for body in requests.values()]
                models = [body["model"] for body in requests.values()]
                yield {"key": list(requests), "model": models, "body": bodies}


class RequestCounter(RequestCollector):
    """How many requests a block has, and what keeps them from being counted."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        counts, problems = [], []
        for block in batch["block"]:
            count, problem = 0, ""
            try:
                count = sum(map(len, self.requests(int(block))))
            except (ValueError, OSError) as error:
                problem = f"{self.stage.name}: {error}"
            counts.append(count)
            problems.append(problem)
        return {"block": batch["block"], "requests": counts, "problem": problems}
