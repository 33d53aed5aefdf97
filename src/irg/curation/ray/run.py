"""The same stages on Ray Data: each is an operator over block numbers, the rows stay in the build's files.

So the output is what one process makes, byte for byte; Ray decides which worker makes which block, with how many
workers and GPUs. All nodes must see the build's folder.
"""

import importlib.util

from irg.curation.build_folder import BuildFolder
from irg.curation.endpoint_stages import EndpointStage
from irg.curation.ray.vllm import answer_all
from irg.curation.ray.workers import StageWorker
from irg.curation.running import Progress
from irg.curation.stages import Stage


def run_on_ray(folder: BuildFolder, progress: Progress) -> None:
    """All blocks through all stages on Ray. Stages are pipelined, up to one whose requests a local vLLM answers: that
    one waits until the stages before it have done all blocks.

    Raises:
        ValueError: ray is not installed, or a stage had to stop.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("engine: ray needs the package: pip install 'irg[ray]'")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(address=folder.recipe.ray.address, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for stages in _pipelines(folder.stages):
        first = stages[0]
        failures = answer_all(folder, first, progress) if isinstance(first, EndpointStage) and first.offline else {}
        _run_pipeline(folder, stages, failures, progress)


def _pipelines(stages: list[Stage]) -> list[list[Stage]]:
    """Runs of stages; one that takes its answers offline begins a new run."""
    runs: list[list[Stage]] = []
    for stage in stages:
        if not runs or (isinstance(stage, EndpointStage) and stage.offline):
            runs.append([])
        runs[-1].append(stage)
    return runs


def _run_pipeline(folder: BuildFolder, stages: list[Stage], failures: dict[str, str], progress: Progress) -> None:
    import ray.data

    settings = folder.recipe.ray
    blocks = [{"block": block, "problem": "", "counts": ""} for block in folder.blocks()]
    data = ray.data.from_items(blocks, override_num_blocks=max(1, len(blocks)))
    for stage in stages:
        data = data.map_batches(
            StageWorker,
            fn_constructor_args=(folder.without_open_stages(), stage.name, failures),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=settings.workers.get(stage.name, 1)),
            num_gpus=settings.gpus.get(stage.name, 0),
        )
    problem = ""
    for row in data.iter_rows():
        problem = problem or row["problem"]
        for counts in row["counts"].split():
            name, made, rejected, cost = counts.rsplit(":", 3)
            progress(name, int(made), int(rejected), float(cost))
    if problem:
        raise ValueError(f"{problem}. What is made is kept; build again to go on")
