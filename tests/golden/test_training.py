"""Case i_training: one packed batch, forward and backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from irg.learning.objective import FlowTargets, Losses, flow_targets, losses, total
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder, TokenBatch, token_batch
from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.images import patchify
from irg.sequence.layout import IGNORE, TokenKind, TokenLayout, lay_out
from irg.sequence.parts import Latents, Part, Patches, Target

from .fixture import Case, close, close_relative, crop_apart, pad_together, to_reading_order, trainable
from .packs import check_packing, loss_weights, training_samples

GROUPS: dict[str, Callable[[str], bool]] = {
    "embed_tokens": lambda name: "embed_tokens" in name,
    "lm_head": lambda name: "lm_head" in name,
    "llm_gen_expert": lambda name: name.startswith("language_model.") and "_moe_gen" in name,
    "llm_und_expert": lambda name: (
        name.startswith("language_model.model.") and "_moe_gen" not in name and "embed_tokens" not in name
    ),
}


@dataclass
class Packed:
    """The recorded batch, built by our own means."""

    samples: list[list[Part]]
    layouts: list[TokenLayout]
    order: StreamOrder
    batch: TokenBatch
    attend: PackedAttention
    padded_latents: Tensor
    flow: FlowTargets
    loss_rows: Tensor
    labels: Tensor
    target_rows: Tensor


@pytest.fixture(scope="module")
def i(case: Callable[[str], Case]) -> Case:
    return case("i_training")


@pytest.fixture(scope="module")
def packed(i: Case, loaded: LoadedModel, device: torch.device) -> Packed:
    config = loaded.config
    samples = training_samples(i, config)
    parts = [part for sample in samples for part in sample]
    layouts = [lay_out(sample, config.grammar) for sample in samples]
    order = StreamOrder.of(layouts)
    drawn = [part for part in parts if isinstance(part, Latents | Target)]
    pixels = pad_together([part.content for part in drawn])
    with torch.no_grad():
        padded = loaded.autoencoder.encode(pixels.to(device), i["vae_eps"].to(device))
    apart = crop_apart(padded, [part.grid for part in drawn], config.latent_patch_size)
    clean_GD = torch.cat([patchify(latent, config.latent_patch_size) for latent in apart])
    shift = config_shift(i)
    flow = flow_targets(clean_GD, i["noise"].to(device), i["in.packed_timesteps"].to(device), shift)
    patches = torch.cat([part.content for part in parts if isinstance(part, Patches)])
    batch = token_batch(layouts, order, patches, flow.noisy_GD, flow.times_G).to(device)
    labels_U = torch.cat([torch.from_numpy(layout.labels_T) for layout in layouts])[order.und_T]
    kinds_G = torch.cat([torch.from_numpy(layout.kinds_T) for layout in layouts])[order.gen_T]
    loss_rows = (labels_U != IGNORE).nonzero().flatten()
    return Packed(
        samples=samples,
        layouts=layouts,
        order=order,
        batch=batch,
        attend=PackedAttention(layouts, order, device=device),
        padded_latents=padded,
        flow=flow,
        loss_rows=loss_rows.to(device),
        labels=labels_U[loss_rows].to(device),
        target_rows=(kinds_G == TokenKind.NOISY).nonzero().flatten().to(device),
    )


def config_shift(i: Case) -> float:
    """The noise schedule's shift, from config.json beside the case."""
    from irg.model.weights.config_files import read_json

    return read_json(i.path.parent / "config.json")["bagel_config"]["timestep_shift"]


@pytest.fixture(scope="module")
def scored(packed: Packed, loaded: LoadedModel) -> Iterator[Losses]:
    """Losses of the batch, their gradients in the model while the tests of this module run."""
    loaded.model.zero_grad()
    result = losses(
        loaded.model,
        packed.batch,
        packed.attend,
        packed.flow.velocity_GD,
        packed.loss_rows,
        packed.labels,
        packed.target_rows,
    )
    total(result)[0].backward()
    yield result
    loaded.model.zero_grad()


def test_packing(i: Case, packed: Packed) -> None:
    check_packing(i, "in.", "in.", packed.layouts, packed.samples)


def test_pixels_and_latents(i: Case, packed: Packed) -> None:
    parts = [part for sample in packed.samples for part in sample]
    pixels = pad_together([part.content for part in parts if isinstance(part, Latents | Target)])
    close(pixels, i["in.padded_images"], "padded_images", atol=1e-6)
    assert packed.batch.patches_PD is not None
    close(packed.batch.patches_PD, i["in.packed_vit_tokens"], "packed_vit_tokens", atol=1e-6)
    close(packed.padded_latents, i["padded_latent"], "padded_latent")
    close(packed.flow.times_G, i["shifted_timesteps"], "shifted_timesteps", atol=1e-6)


@torch.no_grad()
def test_hidden_states(i: Case, packed: Packed, loaded: LoadedModel) -> None:
    model = loaded.model
    close(to_reading_order(model.embed(packed.batch), packed.order), i["input_sequence"], "input_sequence")
    hidden = to_reading_order(model(packed.batch, packed.attend), packed.order)
    close(hidden, i["last_hidden_state"], "last_hidden_state")


def test_losses(i: Case, packed: Packed, scored: Losses) -> None:
    close(scored.ce_L, i["ce"], "ce")
    close(scored.mse_MD, i["mse"], "mse")
    loss, ce, mse = total(scored)
    parts = [part for sample in packed.samples for part in sample]
    weights = loss_weights(parts).to(scored.ce_L.device)
    for got, name in ((loss, "loss"), (ce, "ce_mean"), (mse, "mse_mean")):
        close(got, i[name], name)
    close(total(scored, ce_weights_L=weights)[1], i["ce_reweighted"], "ce_reweighted")


def rounding_noise(i: Case) -> float:
    """Norms below this are zero in exact arithmetic (a ViT's key bias shifts all logits of a query alike)."""
    return torch.finfo(torch.float32).eps * i.values["grad_norm_total"]


@pytest.mark.usefixtures("scored")
def test_every_gradient(i: Case, loaded: LoadedModel) -> None:
    recorded = i.starting("grad.")
    parameters = trainable(loaded.model)
    assert set(recorded) == set(parameters)
    for name, wanted in recorded.items():
        grad = parameters[name].grad
        assert grad is not None, f"{name} has no gradient"
        close_relative(grad, wanted, name, rounding_noise(i))


@pytest.mark.usefixtures("scored")
def test_gradient_norms(i: Case, loaded: LoadedModel) -> None:
    squares = {name: p.grad.double().square().sum().item() for name, p in trainable(loaded.model).items()}  # type: ignore[union-attr]
    for name, wanted in i.values["grad_norm_per_parameter"].items():
        assert squares[name] ** 0.5 == pytest.approx(wanted, rel=1e-3, abs=rounding_noise(i)), name
    for group, wanted in i.values["grad_norm_per_group"].items():
        belongs = GROUPS.get(group, lambda name, group=group: name.startswith(f"{group}."))
        norm = sum(square for name, square in squares.items() if belongs(name)) ** 0.5
        assert norm == pytest.approx(wanted, rel=1e-3), group
    assert sum(squares.values()) ** 0.5 == pytest.approx(i.values["grad_norm_total"], rel=1e-3)
