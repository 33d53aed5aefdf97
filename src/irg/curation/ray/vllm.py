"""What a stage asks an endpoint, asked of a vLLM on Ray's own GPUs (``ray.data.llm``) instead.

Questions are collected by the stage itself, with a client that calls nobody, answered in bulk and put where that
client finds answers. So instructions, checks, corrections and the names of answers are those of the endpoint's way, and
a build may change from one to the other at any time. An answer that fails its check is a new question (with the
complaint), so a stage takes a round more for each correction; a round starts the engines anew, and only if there are
questions.
"""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from irg.curation.build import Layout, Told
from irg.curation.ray.workers import Asker, Counter, bare
from irg.curation.recipe import Vllm
from irg.curation.vlm import SAMPLING, EndpointStage
from irg.endpoints import AnswerCache, Endpoint, keep_answer

_FAILED = "__inference_error__"  # ray.data.llm's column for what went wrong with a row

Processor = Callable[[Any], Any]
"""A data set with the columns key, model, body -> one with key, model and what :func:`_answer` names."""


def answer(layout: Layout, stage: EndpointStage, told: Told) -> dict[str, str]:
    """Let a local vLLM answer all that a stage asks; returns what it could not answer, and why.

    Raises:
        ValueError: vLLM is not installed or fails, or a file is damaged. Answers that came are kept.
    """
    import ray

    assert stage.local is not None
    blocks, refused = layout.blocks(), dict[str, str]()
    for _ in range(stage.config.endpoint.corrections + 1):
        blocks = _with_questions(layout, stage, blocks, refused)
        if not blocks:
            break
        asked = _over(layout, stage, blocks, Asker, refused)
        answered = vllm_processor(stage.config.endpoint, stage.local)(asked)
        try:
            for row in answered.map(partial(_keep, layout.answers)).iter_rows():
                told(f"{stage.name} answers", 1, bool(row["refused"]), 0.0)
                if row["refused"]:
                    refused[row["key"]] = row["refused"]
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason is given"]
            raise ValueError(
                f"{stage.name}: the local vLLM failed: {lines[-1].strip()[:300]}. Answers that came are kept; build "
                "again to go on"
            ) from error
    return refused


def _over(layout: Layout, stage: EndpointStage, blocks: list[int], worker: type[Asker], refused: dict[str, str]) -> Any:
    """A data set of what workers say to blocks."""
    import ray.data

    data = ray.data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
    return data.map_batches(
        worker,
        fn_constructor_args=(layout.recipe, bare(layout), stage.name, refused),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=layout.recipe.ray.workers.get(stage.name, 1)),
    )


def _with_questions(layout: Layout, stage: EndpointStage, blocks: list[int], refused: dict[str, str]) -> list[int]:
    """The blocks that something is to be asked about: an engine takes minutes to start, so one starts only for those.

    Raises:
        ValueError: a block cannot be read.
    """
    rows = list(_over(layout, stage, blocks, Counter, refused).iter_rows()) if blocks else []
    if problem := next((row["problem"] for row in rows if row["problem"]), ""):
        raise ValueError(f"{problem}. What is made is kept; build again to go on")
    return sorted(row["block"] for row in rows if row["questions"])


# ---- ray.data.llm


def vllm_processor(endpoint: Endpoint, local: Vllm) -> Processor:
    """A processor that answers questions.

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
        preprocess=question,
        postprocess=_answer,
        builder_kwargs=None if template is None else {"chat_template_kwargs": template},
    )
    return processor


def processor_config(endpoint: Endpoint, local: Vllm) -> dict[str, Any]:
    """The fields of ``vLLMEngineProcessorConfig``."""
    return {
        "model_source": local.model or endpoint.model,
        "engine_kwargs": dict(local.engine),
        "concurrency": (local.replicas, local.replicas),
        "batch_size": local.batch,
        "prepare_multimodal_stage": True,  # images are decoded outside the engine
        "should_continue_on_error": True,  # a question that is too long must not end the build
    } | local.options


def question(row: dict[str, Any]) -> dict[str, Any]:
    """A question as the engine takes it: messages, sampling parameters. All contents become lists of parts, so that
    messages of all rows have one form."""
    body = json.loads(row["body"])
    messages = [
        {"role": told["role"], "content": [{"type": "text", "text": told["content"]}]}
        if isinstance(told["content"], str)
        else told
        for told in body["messages"]
    ]
    sampling = {name: body[name] for name in SAMPLING if name in body}
    return {"messages": messages, "sampling_params": sampling, "body": ""}  # the images need not travel twice


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    wanted = ("key", "model", "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in wanted}


def _keep(folder: Path, row: dict[str, Any]) -> dict[str, str]:
    """Put an answer on disk; a question that failed is handed back with the reason."""
    if failed := row.get(_FAILED):
        return {"key": row["key"], "refused": " ".join(str(failed).split())[:300]}
    counts = (int(row["num_input_tokens"] or 0), int(row["num_generated_tokens"] or 0))
    keep_answer(AnswerCache(folder), row["key"], row["model"], row["generated_text"], *counts, by="ray.data.llm")
    return {"key": row["key"], "refused": ""}
