"""Running stages over blocks of rows, in this process."""

import asyncio
from collections.abc import Callable

from irg.curation.build_folder import BuildFolder
from irg.curation.resources import Resources
from irg.curation.stages import Stage
from irg.endpoints import EndpointError

Progress = Callable[[str, int, int, float], None]
"""Called as progress(stage, rows made, how many of them rejected, what they cost)."""


class StageFailed(Exception):
    """A stage had to stop; ``cause`` says why."""

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(stage)
        self.stage, self.cause = stage, cause


async def run_stage(folder: BuildFolder, stage: Stage, block: int, progress: Progress) -> None:
    """Make the rows of a block that a stage has still to make.

    Raises:
        EndpointError, ValueError, OSError: what keeps rows from being made; all others are made and written first.
    """
    stage_folder = folder.stage_folders[stage.name]
    ids = folder.accepted(block, before=stage.name)
    there = stage_folder.read(block, ["id"])
    pending = [name for name in ids if name not in there]
    size = stage.batch_size or len(pending) or 1
    for start in range(0, len(pending), size):
        rows = folder.rows(block, pending[start : start + size], stage)
        outcomes = await stage.make(rows)
        made = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        stage_folder.write(block, made, whole=not there and len(made) == len(pending))
        rejections = sum(row["rejected"] is not None for row in made)
        progress(stage.name, len(made), rejections, sum(row["cost"] for row in made))
        failure = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if failure is not None:
            raise failure
    stage_folder.merge_parts(block, ids)


async def run_in_process(folder: BuildFolder, resources: Resources, progress: Progress) -> None:
    """All blocks through all stages, several at a time.

    Raises:
        StageFailed: a stage had to stop; the others have finished the blocks they had in work.
    """
    for stage in folder.stages:
        await stage.open(resources)
    blocks = iter(folder.blocks())
    failed: list[StageFailed] = []

    async def work() -> None:
        for block in blocks:
            for stage in folder.stages:
                if failed:
                    return
                try:
                    await run_stage(folder, stage, block, progress)
                except (EndpointError, ValueError, OSError) as error:
                    failed.append(StageFailed(stage.name, error))
                    return

    await asyncio.gather(*(work() for _ in range(folder.recipe.concurrent_blocks)))
    if failed:
        raise failed[0]
