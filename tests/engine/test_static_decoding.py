"""Decoding by a compiled function: the same texts, compiled once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from recorded_graph import RecordedGraph, recording
from torch._dynamo.utils import counters

from irg.engine import static_decoding
from irg.engine.engine import Engine
from irg.engine.ngram_drafter import MAX_DRAFT_TOKENS
from irg.engine.ops import Draw, Look, Program, Say, Write
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.engine.static_decoding import ROW_MULTIPLE
from irg.model.network.config import tiny
from irg.model.placement.offload import offload_layers
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import random_model
from irg.model.weights.quantize import quantize
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def program(prompt: str) -> Program:
    """A whole loop: sampled and greedy texts, long and short ones, images drawn and looked at."""
    yield Say(prompt)
    first = yield Write(30, 0.8, top_p=0.9)
    drawn = yield Draw(32, 32, DrawSettings(num_timesteps=3, cfg_text_scale=2.0), drop_text=first.handles)
    yield Look(Image.new("RGB", (64, 64), "red"))
    second = yield Write(25, 0.0, prefix="the red", logprobs=True)
    third = yield Write(9, 1.0, top_k=9, choices=("yes", "no"))
    return first, second, third, drawn


def run(runner: Runner, tokenizer: TextTokenizer, requests: int) -> list[Any]:
    engine = Engine(runner, tokenizer, ("the red cat",))
    with engine.session() as session:
        added = [session.add(program(f"{n} cats"), seed=n, expected_slots=(300, 300, 300)) for n in range(requests)]
        for _ in session:
            pass
    for request in added:
        assert request.error is None, request.error
    return [request.result for request in added]


@pytest.mark.parametrize("grouped", [True, False])
def test_a_request_is_compiled_once_and_writes_the_same(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, grouped: bool
) -> None:
    """One graph without breaks for all texts of the request, and of the next one; grouped heads or not."""
    decoder = tiny_loaded.config.decoder
    heads = decoder.num_key_value_heads if grouped else decoder.num_attention_heads
    config = replace(tiny_loaded.config, decoder=replace(decoder, num_key_value_heads=heads))
    model = tiny_loaded.model if grouped else random_model(config, seed=3)
    wanted = run(Runner(model, tiny_loaded.autoencoder), tiny_tokenizer, 1)
    runner = Runner(model, tiny_loaded.autoencoder)
    runner.decode_statically(MAX_DRAFT_TOKENS + 1, compiled=True, backend="aot_eager")
    for _ in range(2):
        for got, want in zip(run(runner, tiny_tokenizer, 1), wanted, strict=True):
            assert [w.ids for w in got[:3]] == [w.ids for w in want[:3]]
            assert got[1].logprobs == pytest.approx(want[1].logprobs, abs=1e-5)
            assert torch.allclose(got[3].latents, want[3].latents, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["unimplemented"]
    assert runner.cache.shape == ((1, ROW_MULTIPLE), (1, 300), (1, 300))


def test_requests_together_write_the_same(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    """Texts begin and end at different turns; those whose rows are not neighbors are fed without the function."""
    wanted = run(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer, 3)
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
    runner.decode_statically(MAX_DRAFT_TOKENS + 1, compiled=True, backend="eager")
    for got, want in zip(run(runner, tiny_tokenizer, 3), wanted, strict=True):
        assert [w.ids for w in got[:3]] == [w.ids for w in want[:3]]
    assert 1 <= counters["stats"]["unique_graphs"] <= 3  # as many as there are numbers of texts
    assert not counters["graph_break"]


@pytest.mark.parametrize("most", [64, 2])
def test_graphs_write_the_same(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Replayed operations on the same tensors: everything that changes from token to token is in one of them. Three
    requests need more rows: the cache grows, and graphs of the old one are no longer used."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(static_decoding, "MAX_GRAPHS", most)
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
    runner.decode_statically(MAX_DRAFT_TOKENS + 1)
    assert runner.static is not None
    runner.static.captures = True
    for requests in (1, 3, 1):
        wanted = run(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer, requests)
        for got, want in zip(run(runner, tiny_tokenizer, requests), wanted, strict=True):
            assert [w.ids for w in got[:3]] == [w.ids for w in want[:3]]
            assert got[1].logprobs == pytest.approx(want[1].logprobs, abs=1e-5)
    graphs = runner.static._graphs
    assert 1 <= len(graphs) <= most and max(graph.replays for graph, _ in graphs.values()) > 3


def test_what_can_not_be_captured_is_computed(
    tiny_loaded: LoadedModel,
    tiny_tokenizer: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_graph(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", no_graph)
    wanted = run(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer, 1)
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
    runner.decode_statically(MAX_DRAFT_TOKENS + 1)
    assert runner.static is not None
    runner.static.captures = True
    ((*texts, _),) = run(runner, tiny_tokenizer, 1)
    assert [text.ids for text in texts] == [text.ids for text in wanted[0][:3]]
    (told,) = caplog.messages
    assert told.endswith("slower: CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize(
    ("device", "quantized", "compiled", "wanted"),
    [
        ("cpu", False, False, None),
        ("cpu", False, True, True),
        ("cpu", True, True, None),
        ("cuda", False, False, False),
        ("cuda", False, True, True),
        ("cuda", True, True, False),
    ],
)
def test_what_is_accelerated(
    tiny_loaded: LoadedModel, device: str, quantized: bool, compiled: bool, wanted: bool | None
) -> None:
    """Decoding with fixed shapes on CUDA always, elsewhere compiled; quantized weights never compiled there."""
    model = random_model(tiny_loaded.config, seed=3)
    if quantized:
        quantize(model, "fp8")
    runner = Runner(model, tiny_loaded.autoencoder)
    runner.cache.device = torch.device(device)
    runner.accelerate(MAX_DRAFT_TOKENS + 1, compiled)
    assert (None if runner.static is None else runner.static.compiled) == wanted
    assert (runner.drawing is not None) == compiled


def test_offloaded_layers_are_refused(tiny_loaded: LoadedModel) -> None:
    model = random_model(tiny(vocab_size=260), seed=1)
    offload_layers(model, "cpu")
    with pytest.raises(ValueError, match="compile needs the whole model on one device"):
        Runner(model, tiny_loaded.autoencoder).decode_statically(8)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("requests", [1, 3])
def test_cuda_graphs_write_the_same(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, requests: int, compiled: bool
) -> None:
    """Twice, the second time on rows and graphs that are there already."""
    model, autoencoder = random_model(tiny_loaded.config, seed=3).cuda(), tiny_loaded.autoencoder
    wanted = run(Runner(model, autoencoder), tiny_tokenizer, requests)
    runner = Runner(model, autoencoder)
    runner.accelerate(MAX_DRAFT_TOKENS + 1, compiled)
    for _ in range(2):
        for got, want in zip(run(runner, tiny_tokenizer, requests), wanted, strict=True):
            assert [w.ids for w in got[:3]] == [w.ids for w in want[:3]]
    assert runner.static is not None and runner.static._graphs


def test_what_can_not_be_compiled_is_told_before_the_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.reasoning.pipeline.load_with_plan", None)
    with pytest.raises(ValueError, match="compile needs the whole model on one device"):
        IRGPipeline.from_pretrained("mini", compile=True, memory="offload")
