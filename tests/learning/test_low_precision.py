"""bfloat16 training in one CPU process."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from irg.learning.low_precision import LowPrecisionCopy
from irg.learning.recipe import Mixture, Optimizer, Parallel, TrainRecipe
from irg.learning.trainer import Trainer, train
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.weights.checkpoint import LoadedModel


@pytest.fixture
def recipe(small_recipe: Callable[..., TrainRecipe]) -> Callable[..., TrainRecipe]:
    """A small run of all six modes in bfloat16."""
    low = {
        "mixture": Mixture(0.5, 0.5, 1.0, 0.5, 0.5, 1.0),
        "optimizer": Optimizer(kind="muon", lr=1e-3, muon_lr=1e-2, eps=1e-8),
        "parallel": Parallel(precision="bfloat16"),
    }
    return lambda **changes: small_recipe(**low | changes)


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.gradients({0: trainer.loader.pack(0)})
    return {name: p.grad for name, p in trainer.state.named_weights.items() if p.grad is not None}


def test_gradients_are_those_of_float32_up_to_rounding(recipe: Callable[..., TrainRecipe]) -> None:
    low = Trainer(recipe(), quiet=True)
    assert not dist.is_initialized() and low.loader.feed.attention is SharedPrefixAttention
    got, wanted = gradients(low), gradients(Trainer(recipe(parallel=Parallel()), quiet=True))
    assert got.keys() == wanted.keys()
    assert all(grad.dtype == torch.float32 for grad in got.values())
    total = sum(float(wanted[name].square().sum()) for name in wanted)
    off = sum(float((got[name] - wanted[name]).square().sum()) for name in wanted)
    assert 0 < (off / total) ** 0.5 < 0.03  # eight bits of mantissa


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(recipe: Callable[..., TrainRecipe], tmp_path: Path) -> None:
    whole = train(recipe(out=str(tmp_path / "whole")), quiet=True)
    train(recipe(stop_after=4), quiet=True)
    resumed = train(recipe(), quiet=True)
    left, right = (load_file(folder / "weights.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_small_steps_are_not_lost(tiny_loaded: LoadedModel) -> None:
    """A step below bfloat16's resolution moves the float32 weight, and in time the copy."""
    model = deepcopy(tiny_loaded.model)
    low = LowPrecisionCopy(model)
    weight, copy = model.llm2vae.bias, low.model.llm2vae.bias
    with torch.no_grad():
        weight.fill_(1.0)
    low.refresh()
    for _ in range(4):
        copy.grad = torch.ones_like(copy)
        low.collect()
        assert copy.grad is None and weight.grad is not None
        with torch.no_grad():
            weight.sub_(weight.grad, alpha=2**-10)
        weight.grad = None
        low.refresh()
    assert weight[0] == 1 - 4 * 2**-10 and copy[0] == 1 - 2**-8


def test_several_packs_add_up(tiny_loaded: LoadedModel) -> None:
    model = deepcopy(tiny_loaded.model)
    low = LowPrecisionCopy(model)
    for _ in range(2):
        low.model.llm2vae.bias.grad = torch.full_like(low.model.llm2vae.bias, 0.5)
        low.collect()
    assert model.llm2vae.bias.grad is not None and model.llm2vae.bias.grad.unique().tolist() == [1.0]
