"""The same stages on Ray Data: each is an operator over block numbers, the rows stay in the build's files.

So the output is what one process makes, byte for byte; Ray decides who does which block when, with how many workers and
GPUs. All nodes must see the build's folder.
"""

import importlib.util

from irg.curation.build import Layout, Told
from irg.curation.ray.vllm import answer
from irg.curation.ray.workers import StageWorker, bare
from irg.curation.stages import Stage
from irg.curation.vlm import EndpointStage


def run_ray(layout: Layout, told: Told) -> None:
    """All blocks through all stages on Ray. Stages flow into each other, up to one that a local vLLM answers for: it
    is asked about all blocks together.

    Raises:
        ValueError: ray is not installed, or a stage had to stop.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("engine: ray needs the package: pip install 'irg[ray]'")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(address=layout.recipe.ray.address, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for stages in _flows(layout.stages):
        first = stages[0]
        asked = isinstance(first, EndpointStage) and first.local is not None
        _flow(layout, stages, answer(layout, first, told) if asked else {}, told)  # type: ignore[arg-type]


def _flows(stages: list[Stage]) -> list[list[Stage]]:
    """Runs of stages; one that a local vLLM answers for begins a new run."""
    flows: list[list[Stage]] = []
    for stage in stages:
        if not flows or getattr(stage, "local", None) is not None:
            flows.append([])
        flows[-1].append(stage)
    return flows


def _flow(layout: Layout, stages: list[Stage], refused: dict[str, str], told: Told) -> None:
    import ray.data

    settings = layout.recipe.ray
    blocks = [{"block": block, "problem": "", "told": ""} for block in layout.blocks()]
    data = ray.data.from_items(blocks, override_num_blocks=max(1, len(blocks)))
    for stage in stages:
        data = data.map_batches(
            StageWorker,
            fn_constructor_args=(layout.recipe, bare(layout), stage.name, refused),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=settings.workers.get(stage.name, 1)),
            num_gpus=settings.gpus.get(stage.name, 0),
        )
    problem = ""
    for row in data.iter_rows():
        problem = problem or row["problem"]
        for word in row["told"].split():
            name, made, rejected, cost = word.rsplit(":", 3)
            told(name, int(made), int(rejected), float(cost))
    if problem:
        raise ValueError(f"{problem}. What is made is kept; build again to go on")
