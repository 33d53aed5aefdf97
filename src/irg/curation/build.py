"""Building: prompts, the filter, then every block through the stages. ``docs/data.md`` says what is promised."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from irg import files
from irg.curation import filter as filtering
from irg.curation import prompt_rows
from irg.curation.build_folder import BuildFolder
from irg.curation.changes import check_changes, check_prompts, last_keys, write_state
from irg.curation.plan import lacking_stages
from irg.curation.ray.run import run_on_ray
from irg.curation.recipe import DataRecipe
from irg.curation.resources import Resources
from irg.curation.running import Progress, StageFailed, run_in_process
from irg.curation.stages import PROMPT_COLUMNS
from irg.curation.store import Row, StageFolder
from irg.endpoints import EndpointError


def build(
    recipe: DataRecipe,
    *,
    redo: bool = False,
    only_prompts: bool = False,
    progress: Progress = lambda *_: None,
    log: Callable[[str], None] = print,
    on_start: Callable[[BuildFolder], None] = lambda folder: None,
) -> None:
    """Build, or go on building, what a recipe says.

    Args:
        redo: go ahead although rows that cost money would be made again under changed settings.
        only_prompts: stop when the prompts are made and filtered, so that what is to come can be counted.
        progress: called after each batch of rows.
        log: called with lines for the user.
        on_start: called when the prompts are ready, before the first stage.

    Raises:
        ValueError: the recipe is wrong, the folder is in use or damaged, or something keeps the build from going on;
            what is made is kept.
        OSError: a file can't be written.
    """
    prompt_filter = None if filtering.passes_all(recipe.filter) else filtering.PromptFilter(recipe.filter)
    folder = BuildFolder.of(recipe, prompt_filter)
    with files.locked(folder.lock, folder.lock_refusal):
        before = last_keys(folder)
        for line in [] if only_prompts else check_changes(folder, before, redo):
            log(line)
        for line in lacking_stages(recipe):
            log(line)
        if recipe.ray.vllm and recipe.engine != "ray":
            log(f"ray.vllm is for engine: ray; {', '.join(recipe.ray.vllm)}: the endpoint is called instead")
        if not (only_prompts or _prompts_done(folder).exists()):
            for stage in folder.stages:
                stage.find()
        try:
            asyncio.run(_make_all_prompts(folder, prompt_filter, progress, log, before))
            if only_prompts:
                return
            check_prompts(folder, before, redo)
            write_state(folder)
            on_start(folder)
            if recipe.engine == "ray":
                run_on_ray(folder, progress)
            else:
                asyncio.run(_run_stages(folder, progress))
        except StageFailed as failed:
            if isinstance(failed.cause, OSError):
                raise failed.cause from None
            raise ValueError(
                f"{failed.stage}: {failed.cause}. What is made is kept; build again to go on"
            ) from failed.cause
        except EndpointError as error:
            raise ValueError(f"prompts: {error}. Build again to go on") from error


async def _make_all_prompts(
    folder: BuildFolder,
    prompt_filter: filtering.PromptFilter | None,
    progress: Progress,
    log: Callable[[str], None],
    before: dict[str, str],
) -> None:
    async with _resources(folder) as resources:
        await make_prompts(folder, resources, progress, before.get("prompts"))
    if prompt_filter is None:
        return
    filter_prompts(folder, prompt_filter, progress)
    benchmarks = prompt_filter.benchmarks
    if benchmarks is not None and not benchmarks.certified:
        log(
            f"NOT certified clean: no files of {', '.join(benchmarks.missing)}; give their folder as "
            "filter.benchmarks (decontamination.md says more)"
        )


async def _run_stages(folder: BuildFolder, progress: Progress) -> None:
    async with _resources(folder) as resources:
        await run_in_process(folder, resources, progress)


def _prompts_done(folder: BuildFolder) -> Path:
    """The file that is there once all prompts are made."""
    return folder.prompts.path / "done.json"


def _resources(folder: BuildFolder) -> Resources:
    return Resources(folder.answers, folder.recipe.budget, folder.recipe.processes)


async def make_prompts(
    folder: BuildFolder, resources: Resources, progress: Progress, earlier: str | None = None
) -> None:
    """Write the prompts' blocks; those that are there stay.

    Args:
        earlier: the folder of the last build's prompts. A row that was among them keeps its block, where the stages'
            rows of it are: prompts may come and go before it.
    """
    done = _prompts_done(folder)
    if done.exists():
        return
    size, places = _block_size(folder), _places(folder, earlier)
    block = max(places.values(), default=-1) + 1
    rows: list[Row] = []
    kept: dict[int, list[Row]] = {}
    there = set(folder.blocks())

    def flush(number: int, rows: list[Row]) -> None:
        if number not in there:
            folder.prompts.write(number, rows, whole=True)
        progress("prompts", len(rows), 0, 0.0)

    total = 0
    async for row in prompt_rows.prompt_rows(folder.recipe, resources):
        total += 1
        if (place := places.get(row["id"])) is not None:
            kept.setdefault(place, []).append(row)
            continue
        rows.append(row)
        if len(rows) == size:
            flush(block, rows)
            block, rows = block + 1, []
            await asyncio.sleep(0)
    for number, old in sorted(kept.items()):
        flush(number, old)
    if rows:
        flush(block, rows)
    files.write_text(done, json.dumps({"rows": total, "blocks": block + bool(rows)}) + "\n")


def _block_size(folder: BuildFolder) -> int:
    """Rows of a block: what the recipe said when these prompts were begun."""
    path = folder.prompts.path / "rows_per_block.json"
    if not path.exists():
        files.write_text(path, f"{folder.recipe.rows_per_block}\n")
    return int(path.read_text(encoding="utf-8"))


def _places(folder: BuildFolder, earlier: str | None) -> dict[str, int]:
    """Row -> block of the last build's prompts."""
    if earlier is None:
        return {}
    old = StageFolder(folder.prompts.path.with_name(earlier), PROMPT_COLUMNS)
    return {name: block for block in old.blocks() for name in old.read(block, ["id"])}


def filter_prompts(folder: BuildFolder, prompt_filter: filtering.PromptFilter, progress: Progress) -> None:
    """Write the verdicts on all prompts, and the report."""
    verdicts_folder = folder.filtered
    assert verdicts_folder is not None
    done = verdicts_folder.path / "done.json"
    if done.exists() and (folder.out / "decontamination.json").exists():
        return
    there = set(verdicts_folder.blocks())
    for block in folder.blocks():  # from the first on: prompts that pass decide on later near-duplicates
        rows = list(folder.prompts.read(block).values())
        verdicts = [prompt_filter.verdict(row) for row in rows]
        if block not in there:
            verdicts_folder.write(block, verdicts, whole=True)
        progress("filter", len(rows), sum(verdict["rejected"] is not None for verdict in verdicts), 0.0)
    filtering.report(verdicts_folder, folder.prompts, prompt_filter, folder.out)
    files.write_text(done, "{}\n")
