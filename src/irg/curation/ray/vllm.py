"""A stage's requests to an endpoint, answered by a vLLM on Ray's own GPUs (``ray.data.llm``) instead.

The stage itself writes the requests, with an offline client; they are answered in bulk and put where that client finds
answers. So instructions, checks, corrections and the names of answers are those of the endpoint, and a build may change
from one to the other at any time. An answer that fails its check is a new request (with the complaint), so a stage
takes one more round for each correction; a round starts the engines again, and only if there are requests.
"""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from irg.curation.build_folder import BuildFolder
from irg.curation.endpoint_stages import SAMPLING, EndpointStage
from irg.curation.ray.workers import RequestCollector, RequestCounter
from irg.curation.recipe import Vllm
from irg.curation.running import Progress
from irg.endpoints import AnswerCache, Endpoint, keep_answer

_FAILED = "__inference_error__"  # ray.data.llm's column for what went wrong with a row

Processor = Callable[[Any], Any]
"""A data set with the columns key, model, body -> one with key, model and what :func:`_answer` names."""


def answer_all(folder: BuildFolder, stage: EndpointStage, progress: Progress) -> dict[str, str]:
    """Let a local vLLM answer all requests of a stage; returns those that it could not answer, and why.

    Raises:
        ValueError: vLLM is not installed or fails, or a file is damaged. Answers that came are kept.
    """
    import ray

    blocks, failures = folder.blocks(), dict[str, str]()
    for _ in range(stage.config.endpoint.corrections + 1):
        blocks = _with_requests(folder, stage, blocks, failures)
        if not blocks:
            break
        requests = _map_blocks(folder, stage, blocks, RequestCollector, failures)
        answered = vllm_processor(stage.config.endpoint, folder.recipe.ray.vllm[stage.name])(requests)
        try:
            for row in answered.map(partial(_keep, folder.answers)).iter_rows():
                progress(f"{stage.name} answers", 1, bool(row["failure"]), 0.0)
                if row["failure"]:
                    failures[row["key"]] = row["failure"]
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason is given"]
            raise ValueError(
                f"{stage.name}: the local vLLM failed: {lines[-1].strip()[:300]}. Answers that came are kept; build "
                "again to go on"
            ) from error
    return failures


def _map_blocks(
    folder: BuildFolder,
    stage: EndpointStage,
    blocks: list[int],
    worker: type[RequestCollector],
    failures: dict[str, str],
) -> Any:
    """A data set of what workers return for blocks."""
    import ray.data

    data = ray.data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
    return data.map_batches(
        worker,
        fn_constructor_args=(folder.without_open_stages(), stage.name, failures),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=folder.recipe.ray.workers.get(stage.name, 1)),
    )


def _with_requests(folder: BuildFolder, stage: EndpointStage, blocks: list[int], failures: dict[str, str]) -> list[int]:
    """The blocks that have requests: an engine takes minutes to start, so it starts only for those.

    Raises:
        ValueError: a block can't be read.
    """
    rows = list(_map_blocks(folder, stage, blocks, RequestCounter, failures).iter_rows()) if blocks else []
    if problem := next((row["problem"] for row in rows if row["problem"]), ""):
        raise ValueError(f"{problem}. What is made is kept; build again to go on")
    return sorted(row["block"] for row in rows if row["requests"])


# ---- ray.data.llm


def vllm_processor(endpoint: Endpoint, local: Vllm) -> Processor:
    """A processor that answers requests.

    Raises:
        ValueError: the packages are not installed, or a setting is not what ``vLLMEngineProcessorConfig`` takes.
    """
    try:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        if importlib.util.find_spec("vllm") is None:
            raise ImportError("vllm")
    except ImportError as error:
        raise ValueError(f"ray.vllm needs vLLM ({error} is missing): pip install 'irg[vllm]'") from error
    config = vLLMEngineProcessorConfig(**processor_config(endpoint, local))
    template = endpoint.extra.get("chat_template_kwargs")
    processor: Processor = build_processor(
        config,
        preprocess=engine_request,
        postprocess=_answer,
        builder_kwargs=None if template is None else {"chat_template_kwargs": template},
    )
    return processor


def processor_config(endpoint: Endpoint, local: Vllm) -> dict[str, Any]:
    """The fields of ``vLLMEngineProcessorConfig``."""
    return {
        "model_source": local.model or endpoint.model,
        "engine_kwargs": dict(local.engine_kwargs),
        "concurrency": (local.replicas, local.replicas),
        "batch_size": local.batch_size,
        "prepare_multimodal_stage": True,  # images are decoded outside the engine
        "should_continue_on_error": True,  # a request that is too long must not end the build
    } | local.options


def engine_request(row: dict[str, Any]) -> dict[str, Any]:
    """A request as the engine takes it: messages, sampling parameters. All contents become lists of parts, so that
    messages of all rows have one form."""
    body = json.loads(row["body"])
    messages = [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in body["messages"]
    ]
    sampling = {name: body[name] for name in SAMPLING if name in body}
    return {"messages": messages, "sampling_params": sampling, "body": ""}  # the images need not travel twice


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    wanted = ("key", "model", "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in wanted}


def _keep(folder: Path, row: dict[str, Any]) -> dict[str, str]:
    """Put an answer on disk; for a request that failed, the reason is returned."""
    if failed := row.get(_FAILED):
        return {"key": row["key"], "failure": " ".join(str(failed).split())[:300]}
    counts = (int(row["num_input_tokens"] or 0), int(row["num_generated_tokens"] or 0))
    keep_answer(AnswerCache(folder), row["key"], row["model"], row["generated_text"], *counts, by="ray.data.llm")
    return {"key": row["key"], "failure": ""}
