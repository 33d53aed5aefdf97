"""The unified model's own arithmetic: what goes in, what a velocity is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from irg.model.network.config import ModelConfig, tiny
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder, token_batch
from irg.model.network.unified import UnifiedModel
from irg.model.weights.initialize import random_model
from irg.sequence import Latents, Part, Patches, Target, Text, TokenKind, lay_out


def model(prediction: str) -> UnifiedModel:
    config: ModelConfig = replace(tiny(), prediction=prediction)  # type: ignore[arg-type]
    return random_model(config, seed=0)


@torch.no_grad()
def run(network: UnifiedModel, parts: list[Part], times: Tensor | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """Latents that go in, hidden states of both streams."""
    generator = torch.Generator().manual_seed(seed)
    layout = lay_out(parts, network.config.grammar)
    order = StreamOrder.of([layout])
    kinds = layout.kinds_T
    latents = torch.randn(int((kinds >= TokenKind.LATENT).sum()), network.config.latent_values, generator=generator)
    patches = torch.randn(int((kinds == TokenKind.PATCH).sum()), network.config.vit.patch_values, generator=generator)
    times = torch.zeros(len(latents)) if times is None else times
    batch = token_batch([layout], order, patches, latents, times)
    hidden_UC, hidden_GC = network(batch, PackedAttention([layout], order))
    assert hidden_GC is not None
    return latents, hidden_UC, hidden_GC


@torch.no_grad()
def test_plain_velocity_is_the_head() -> None:
    network = model("velocity")
    times = torch.tensor([0.3, 0.3, 0.9, 0.9])
    latents, _, hidden = run(network, [Text((5,)), Target((1, 2)), Target((1, 2), noise=1)], times)
    assert torch.equal(network.velocity(hidden, latents, times), network.llm2vae(hidden))


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_preconditioned_velocity(t: float) -> None:
    """v = x (2t - 1) / w + net / sqrt(w) with w = t^2 + (1 - t)^2, written out number by number."""
    network = model("preconditioned")
    times = torch.full((2,), t)
    latents, _, hidden = run(network, [Text((5,)), Target((1, 2))], times)
    got, net = network.velocity(hidden, latents, times), network.llm2vae(hidden)
    w = {0.0: 1.0, 0.25: 0.625, 0.5: 0.5, 1.0: 1.0}[t]
    for row in range(2):
        for value in (0, 7, 23):
            wanted = latents[row, value].item() * (2 * t - 1) / w + net[row, value].item() / w**0.5
            assert got[row, value].item() == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
def test_a_silent_network_makes_the_best_linear_guess() -> None:
    """For data and noise of unit variance, x (2t - 1) / w is the regression of noise - data on x."""
    network = model("preconditioned")
    network.llm2vae.weight.zero_()
    generator = torch.Generator().manual_seed(0)
    shape, t = (4000, network.config.latent_values), 0.3
    data, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    x, target = (1 - t) * data + t * noise, noise - data
    guess = network.velocity(torch.zeros(shape[0], 32), x, torch.full((shape[0],), t))
    slope = (guess * x).sum() / x.square().sum()
    assert slope == pytest.approx(float((target * x).sum() / x.square().sum()), abs=0.01)


@torch.no_grad()
def test_the_preconditioned_network_sees_unit_variance() -> None:
    """The input is divided by sqrt(w); clean latents (t = 0) go in as they are."""
    plain, scaled = model("velocity"), model("preconditioned")
    parts: list[Part] = [Latents((1, 2)), Text((5,)), Target((1, 2))]
    at_half = torch.tensor([0.0, 0.0, 0.5, 0.5])
    latents, und, gen = run(scaled, parts, at_half)
    layout = lay_out(parts, plain.config.grammar)
    order = StreamOrder.of([layout])
    by_hand = latents * torch.tensor([1.0, 1.0, 2.0**0.5, 2.0**0.5])[:, None]
    und_2, gen_2 = plain(token_batch([layout], order, None, by_hand, at_half), PackedAttention([layout], order))
    assert torch.allclose(und, und_2, atol=1e-5) and torch.allclose(gen, gen_2, atol=1e-5)


@torch.no_grad()
def test_text_alone_has_no_generation_stream() -> None:
    network = model("velocity")
    layout = lay_out([Text((5, 6))], network.config.grammar)
    order = StreamOrder.of([layout])
    hidden, generated = network(token_batch([layout], order), PackedAttention([layout], order))
    assert generated is None and hidden.shape == (4, 32)
    assert network.logits(hidden).shape == (4, 300)


@torch.no_grad()
def test_every_kind_of_token_gets_its_own_embedding() -> None:
    """Changing one image's content changes its own tokens only, before the first layer."""
    network = model("velocity")
    parts: list[Part] = [Text((5,)), Patches((1, 2)), Latents((1, 1)), Patches((2, 1)), Target((1, 1))]
    layout = lay_out(parts, network.config.grammar)
    order = StreamOrder.of([layout])
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(4, network.config.vit.patch_values, generator=generator)
    latents = torch.randn(2, network.config.latent_values, generator=generator)

    def embedded(patches: Tensor, latents: Tensor) -> Tensor:
        und, gen = network.embed(token_batch([layout], order, patches, latents, torch.tensor([0.0, 0.5])))
        assert gen is not None
        return torch.cat([und, gen])[torch.from_numpy(order.stream_of_T)]

    def changed(patches: Tensor, latents: Tensor) -> list[int]:
        difference = (embedded(patches, latents) - before).abs().amax(dim=1)
        return difference.nonzero().flatten().tolist()

    before = embedded(patches, latents)
    # reading order: bos 5 eos | start P P end | start L end | start P P end | start N end
    one_more = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None]
    assert changed(patches + one_more, latents) == [11, 12]  # images are read whole, each by itself
    assert changed(patches, latents + torch.tensor([1.0, 0.0])[:, None]) == [8]
    assert changed(patches, latents + torch.tensor([0.0, 1.0])[:, None]) == [15]
