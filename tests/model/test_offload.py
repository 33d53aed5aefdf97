"""Layers that wait in host memory: the same numbers, and only the copies that are needed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from irg.engine.runner import Runner
from irg.model.network.config import ModelConfig, tiny
from irg.model.network.unified import UnifiedModel
from irg.model.placement.offload import LayerOffload, _fit_host_memory, offload_layers, offloaded_layers
from irg.model.weights import quantize
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import random_model
from irg.sequence.parts import Text


def deeper(layers: int) -> ModelConfig:
    import dataclasses

    config = tiny(vocab_size=260)
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_hidden_layers=layers))


def outputs(model: UnifiedModel, loaded: LoadedModel) -> list[torch.Tensor]:
    """Text prefilled and decoded, then a velocity, then text again."""
    runner = Runner(model, loaded.autoencoder)
    context = runner.cache.new()
    hidden = runner.extend([(context, [Text((5, 6, 7))])])
    assert hidden is not None
    logits = runner.feed([context], [[9]])[:, 0]
    noise = torch.randn(4, model.config.latent_values, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    velocity = runner.branches([(context, (2, 2))]).velocity(noise, torch.tensor([0.5]))
    return [hidden, logits, velocity, runner.feed([context], [[11]])[:, 0]]


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("resident", [0, 1, 2])
def test_offloaded_layers_give_the_same_numbers(tiny_loaded: LoadedModel, layers: int, resident: int) -> None:
    model = random_model(deeper(layers), seed=1)
    wanted = outputs(model, tiny_loaded)
    offload = offload_layers(model, "cpu", resident)
    assert len(offload.offloaded) == max(0, layers - resident)
    for got, want in zip(outputs(model, tiny_loaded), wanted, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", [None, "int4"])
def test_packed_blocks_hold_the_same_numbers(tiny_loaded: LoadedModel, kind: quantize.Quantization | None) -> None:
    """The layout that CUDA uses, one aligned block an expert, with mixed dtypes too."""
    model = copy.deepcopy(tiny_loaded.model)
    if kind is not None:
        pytest.importorskip("torchao")
        quantize.quantize(model, kind)
    wanted = outputs(model, tiny_loaded)
    LayerOffload(list(model.language_model.model.layers), [0, 1], torch.device("cpu"), packed=True)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, tiny_loaded), wanted, strict=True))


def test_layers_are_pinned_only_where_host_memory_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [torch.nn.Linear(10, 10, bias=False)] * 2  # 800 bytes
    for free, fits in ((1001, True), (999, False)):
        monkeypatch.setattr("irg.model.placement.offload.free_memory", lambda _, free=free: free)
        assert _fit_host_memory(layers) is fits


def test_layers_share_two_device_buffers(tiny_loaded: LoadedModel) -> None:
    model = random_model(deeper(5), seed=1)
    host = [layer.mlp.up_proj.weight.data_ptr() for layer in model.language_model.model.layers]
    offload_layers(model, "cpu")
    buffers = [layer.mlp.up_proj.weight.data_ptr() for layer in model.language_model.model.layers]
    assert len(set(buffers)) == 2 and not set(buffers) & set(host)
    assert buffers[0] == buffers[2] == buffers[4] and buffers[1] == buffers[3]


def test_text_copies_the_understanding_expert_only() -> None:
    """A token costs one copy of each layer's understanding expert; an image two a layer."""
    model = random_model(deeper(4), seed=1)
    offload = offload_layers(model, "cpu")
    tokens = torch.zeros(1, 32)

    def run(generation: torch.Tensor | None) -> int:
        before = offload.copies
        positions = torch.zeros(1 if generation is None else 2, dtype=torch.int64)
        decoder = model.language_model.model
        decoder(tokens, generation, decoder.rope(positions, tokens.dtype), lambda layer, q, k, v: q)
        return offload.copies - before

    assert run(None) == 4 + 2  # all four, and the first two of the next pass
    assert run(None) == 4
    assert run(tokens) == 8 + 2  # the two that were ready are the understanding expert's
    assert run(tokens) == 8


# ------------------------------------------------------------------------------------------------------------ streams


class Streams:
    """Stands for ``torch.cuda``: notes what each stream does to which memory, and what events put before what.

    Every access has a clock: how many of each stream's accesses come before it for sure.
    """

    def __init__(self) -> None:
        self.main = self.current = Stream()
        self.accesses: list[tuple[int, bool, Stream, dict[Stream, int]]] = []  # memory, written, stream, clock

    def Stream(self, device: torch.device) -> "Stream":
        return Stream()

    def current_stream(self, device: torch.device) -> "Stream":
        return self.current

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def access(self, memory: int, written: bool) -> None:
        clock = self.current.clock
        clock[self.current] = clock.get(self.current, 0) + 1
        self.accesses.append((memory, written, self.current, dict(clock)))

    def races(self) -> list[int]:
        """Memory that two accesses without an order are to, one of which writes; ``ANY`` is all memory."""
        return [
            a[0]
            for n, a in enumerate(self.accesses)
            for b in self.accesses[n + 1 :]
            if (a[1] or b[1]) and (a[0] == b[0] or ANY in (a[0], b[0])) and b[3].get(a[2], 0) < a[3][a[2]]
        ]


class Stream:
    def __init__(self) -> None:
        self.clock: dict[Stream, int] = {}

    def record_event(self) -> dict["Stream", int]:
        return dict(self.clock)

    def wait_event(self, event: dict["Stream", int]) -> None:
        for stream, count in event.items():
            self.clock[stream] = max(self.clock.get(stream, 0), count)


ANY = -1


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("packed", [True, False])
def test_copies_and_layers_wait_for_each_other(layers: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer computes on what is being copied, nor is anything copied over what is still computed with, the first
    copies included: their memory may have been freed by work that is not done."""
    model, streams = random_model(deeper(layers), seed=1), Streams()
    streams.access(ANY, written=True)
    copy_ = torch.Tensor.copy_

    def copied(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if streams.current is not streams.main:
            streams.access(self.data_ptr(), written=True)
        return copy_(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    decoder = model.language_model.model
    LayerOffload(list(decoder.layers), range(layers), torch.device("cpu"), packed, streams)
    for layer in decoder.layers:
        memory = {p.untyped_storage().data_ptr(): "_moe_gen" in name for name, p in layer.named_parameters()}

        def computes(_: object, args: tuple[Any, ...], memory: dict[int, bool] = memory) -> None:
            for pointer, generation in memory.items():
                if not generation or args[1] is not None:
                    streams.access(pointer, written=False)

        layer.register_forward_pre_hook(computes)  # after the offload's hook
    tokens = torch.zeros(1, 32)
    for generation in (None, None, tokens, None, tokens, tokens):
        rope = decoder.rope(torch.zeros(1 if generation is None else 2), tokens.dtype)
        decoder(tokens, generation, rope, lambda layer, q, k, v: q)
    assert any(written for _, written, *_ in streams.accesses[1:]) and streams.races() == []


def test_offloaded_layers_are_spread_evenly() -> None:
    assert offloaded_layers(28, 0) == list(range(28))
    assert offloaded_layers(8, 4) == [1, 3, 5, 7]
    assert offloaded_layers(28, 28) == offloaded_layers(2, 3) == []
    assert offloaded_layers(28, 25) == [4, 14, 23]


def test_quantized_layers_can_be_offloaded(tiny_loaded: LoadedModel) -> None:
    pytest.importorskip("torchao")
    model = copy.deepcopy(tiny_loaded.model)
    quantize.quantize(model, "int4")
    wanted = outputs(model, tiny_loaded)
    offload = LayerOffload(list(model.language_model.model.layers), [0, 1], torch.device("cpu"))
    assert offload.copies == 0
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, tiny_loaded), wanted, strict=True))


@pytest.mark.gpu
def test_offload_to_a_gpu_gives_the_same_numbers(tiny_loaded: LoadedModel) -> None:
    model = random_model(deeper(5), seed=1)
    whole = copy.deepcopy(model).to("cuda")
    wanted = outputs(whole, tiny_loaded)
    layers = model.language_model.model.layers
    del model.language_model.model.layers
    model.to("cuda")
    model.language_model.model.layers = layers
    offload_layers(model, "cuda", resident=1)
    for got, want in zip(outputs(model, tiny_loaded), wanted, strict=True):
        torch.testing.assert_close(got, want)
