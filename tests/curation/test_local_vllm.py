"""A local vLLM in the place of an endpoint, on Ray. The engine here is a fake: no test has run the real one."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("tenacity")

import teachers
from faulty_server import FaultyServer
from teachers import recipe_dict, reply

from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.progress import progress_of
from irg.curation.ray import vllm as local_vllm
from irg.curation.ray.vllm import engine_request, processor_config
from irg.curation.recipe import DataRecipe, Vllm
from irg.endpoints import Endpoint, image_part
from irg.recipes import build as read

STAGES = ("reflect", "judge-vlm")


def recipe(url: str, out: Path, engine: str, **more: Any) -> DataRecipe:
    """Two turns only; the images come from the server whoever writes the words."""
    told = recipe_dict(url, out, engine=engine, think=None, rows_per_block=6)
    told["prompts"]["sources"][0] |= {"repairs": 1.0, "rows": 12}
    for one in (told["reflect"], told["judges"][0]):
        one["endpoint"] |= {"corrections": 1, "price_per_million_in": 0.0}
    told["ray"] = {"vllm": {name: {"engine_kwargs": {"max_model_len": 4096}} for name in STAGES}}
    return read(DataRecipe, told | more)


def content(plan: DataRecipe) -> dict[tuple[str, str], Any]:
    folder = BuildFolder.of(plan)
    rows = {}
    for name, stage_folder in folder.stage_folders.items():
        for block in stage_folder.blocks():
            rows |= {(name, key): row | {"seconds": 0} for key, row in stage_folder.read(block).items()}
    return rows


def fake_processor(seen: list[Any], fails: str = "no prompt has these words") -> Any:
    """In the place of :func:`vllm_processor`: answers as the server does, by the same rule."""

    def answered(row: dict[str, Any]) -> dict[str, Any]:
        told = engine_request(row)
        assert told["body"] == "" and set(told["sampling_params"]) == {"temperature", "max_tokens", "seed"}
        if fails in str(told["messages"][0]["content"][-1]["text"]):
            return row | told | {"__inference_error__": "ValueError: the prompt is too long"}
        asked = {"messages": told["messages"], "seed": told["sampling_params"]["seed"]}
        text = reply("chat/completions", asked)
        return {
            "key": row["key"],
            "model": row["model"],
            "generated_text": text,
            "num_input_tokens": 100,
            "num_generated_tokens": 10,
            "__inference_error__": "",
        }

    def processor(endpoint: Endpoint, local: Vllm) -> Any:
        seen.append(processor_config(endpoint, local))
        return lambda data: data.map(answered)

    return processor


@pytest.fixture
def cluster() -> Any:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    ray.cloudpickle.register_pickle_by_value(teachers)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_local_vllm_makes_what_the_endpoint_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(local_vllm, "vllm_processor", fake_processor(seen))
    with FaultyServer(reply) as server:
        there = recipe(server.url, tmp_path / "endpoint", "files")
        build(there, log=lambda _: None)
        chats = [path for _, path, _ in server.log].count("chat/completions")
        server.log.clear()
        here = recipe(server.url, tmp_path / "vllm", "ray")
        told: dict[str, int] = {}
        build(here, log=lambda _: None, progress=lambda name, made, *_: told.update({name: told.get(name, 0) + made}))
        assert {path for _, path, _ in server.log} == {"images/edits"}  # nobody was asked for words
        made = content(here)
        assert made == content(there)
        assert any("complaints" in str(row["made"]) for row in made.values())  # answers were corrected
        assert any(row["rejected"] for row in made.values())  # or never good
        assert told["reflect answers"] + told["judge-vlm answers"] == chats
        assert [one["engine_kwargs"] for one in seen] == [{"max_model_len": 4096}] * len(seen) and 2 <= len(seen) <= 4
        rounds, log = len(seen), len(server.log)
        build(here, log=lambda _: None)  # nothing is asked twice, and no engine starts
        build(recipe(server.url, tmp_path / "vllm", "files"), log=lambda _: None)  # the endpoint would find them too
        assert len(seen) == rounds and len(server.log) == log


@pytest.mark.usefixtures("cluster")
def test_what_the_engine_refuses_rejects_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_vllm, "vllm_processor", fake_processor([], fails="Prompt: "))
    plan = recipe("http://127.0.0.1:9/v1", tmp_path, "ray", judges=[], target=None)
    plan = DataRecipe(**{**vars(plan), "ray": type(plan.ray)(vllm={"reflect": Vllm()})})
    build(plan, log=lambda _: None)
    (state,) = [state for state in progress_of(BuildFolder.of(plan)) if state.name == "reflect"]
    assert state.reasons == {"refused": 12} and state.pending == 0
    rows = BuildFolder.of(plan).stage_folders["reflect"].read(0)
    assert {row["rejected"] for row in rows.values()} == {
        "refused: vlm refuses: ValueError: the prompt is too long",
    }


def test_a_question_is_an_engines() -> None:
    talk = [
        {"role": "user", "content": [image_part(b"png"), {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
    ]
    body = {"model": "m", "messages": talk, "temperature": 0.3, "max_tokens": 9, "seed": 4, "top_p": 0.9}
    told = engine_request({"key": "k", "body": json.dumps(body)})
    assert told["sampling_params"] == {"temperature": 0.3, "max_tokens": 9, "seed": 4, "top_p": 0.9}
    assert told["messages"][0] == talk[0]
    assert told["messages"][1]["content"] == [{"type": "text", "text": "A cat."}]


def test_it_costs_nothing_and_changes_no_key(tmp_path: Path) -> None:
    here, there = (recipe("http://x/v1", tmp_path, engine) for engine in ("ray", "files"))
    assert BuildFolder.of(here).keys == BuildFolder.of(there).keys
    calls = {stage.name: stage.calls() for stage in BuildFolder.of(here).stages}
    assert calls["reflect"] == calls["judge-vlm"] == [] and calls["target"]
    said: list[str] = []
    with pytest.raises(ValueError):  # nobody is at that address
        build(recipe("http://127.0.0.1:9/v1", tmp_path, "files"), log=said.append)
    assert "ray.vllm is for engine: ray; reflect, judge-vlm: the endpoint is called instead" in said


def test_mistakes_are_named(tmp_path: Path) -> None:
    def folder(ray: dict[str, Any], **more: Any) -> None:
        BuildFolder.of(recipe("http://x/v1", tmp_path, "ray", ray=ray, **more))

    with pytest.raises(ValueError, match=r"ray\.vllm: 'reflct' is no stage .*did you mean 'reflect'.*judge-vlm"):
        folder({"vllm": {"reflct": {}}})
    with pytest.raises(ValueError, match=r"ray\.vllm: 'target' is no stage that calls a vision-language endpoint"):
        folder({"vllm": {"target": {}}})
    with pytest.raises(
        ValueError, match=r"ray\.workers: no stage 'judge'.*there are draft, reflect, target, judge-vlm"
    ):
        folder({"workers": {"judge": 2}})
    with pytest.raises(ValueError, match=r"replicas must be at least 1, got 0"):
        folder({"vllm": {"reflect": {"replicas": 0}}})
    endpoint = {"url": "http://x/v1", "model": "m", "extra": {"response_format": {"type": "json_object"}}}
    with pytest.raises(ValueError, match=r"ray\.vllm\.reflect: the endpoint's extra\.response_format means nothing"):
        folder({"vllm": {"reflect": {}}}, reflect={"kind": "endpoint", "endpoint": endpoint})


def test_without_vllm_it_says_what_to_install() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"ray\.vllm needs vLLM .*pip install 'irg\[vllm\]'"):
            local_vllm.vllm_processor(Endpoint("http://x/v1", "m"), Vllm())


def test_the_real_configuration_takes_our_fields() -> None:
    llm = pytest.importorskip("ray.data.llm", exc_type=ImportError)
    options = {"accelerator_type": "H100"}
    local = Vllm(engine_kwargs={"tensor_parallel_size": 2}, replicas=2, batch_size=8, options=options)
    config = llm.vLLMEngineProcessorConfig(**processor_config(Endpoint("http://x/v1", "Qwen/VL"), local))
    assert config.model_source == "Qwen/VL" and config.concurrency == (2, 2) and config.batch_size == 8
    assert config.engine_kwargs["tensor_parallel_size"] == 2 and config.accelerator_type == "H100"
    assert config.should_continue_on_error
