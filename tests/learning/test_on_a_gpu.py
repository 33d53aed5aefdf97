"""Training on a GPU: all that a large run needs at once, beside what the CPU computes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from irg.learning.parallel import leave
from irg.learning.recipe import Parallel, Samples, TrainRecipe
from irg.learning.trainer import train
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import random_model
from irg.model.weights.tokenizer import TextTokenizer

from .conftest import start_folder
from .runs import identical, log

pytestmark = pytest.mark.gpu
SAMPLES = Samples(2, ("a dog",), {"height": 32, "width": 32, "max_think_tokens": 3, "num_timesteps": 3})


@pytest.fixture
def folder(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Path:
    """A model whose heads are large enough for flex attention."""
    decoder = replace(tiny_loaded.config.decoder, num_attention_heads=2, num_key_value_heads=1)
    config = replace(tiny_loaded.config, decoder=decoder)
    loaded = LoadedModel(config, random_model(config, seed=0), tiny_loaded.autoencoder)
    return start_folder(tmp_path / "start", loaded, tiny_tokenizer)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_sharded_run_logs_what_the_cpu_does(
    small_recipe: Callable[..., TrainRecipe], tmp_path: Path, compiled: bool
) -> None:
    """FSDP2 in bfloat16, flex attention, selective checkpointing, averaged weights, samples and validation."""
    common = {"steps": 4, "ema": 0.5, "validate_every": 2, "validation_rows": 1}
    train(small_recipe(out=str(tmp_path / "cpu"), **common), quiet=True)
    parallel = Parallel(precision="bfloat16", recompute="selective", attention="flex", compile=compiled)
    out = tmp_path / "cuda"
    try:
        train(small_recipe(out=str(out), device="cuda", parallel=parallel, samples=SAMPLES, **common), quiet=True)
    finally:
        leave()
    wanted, got = log(tmp_path / "cpu"), log(out)
    for name, step in (("mse", 0), ("ce", 0), ("val/mse@0.9/with", 1), ("val/mse@0.9/with", 3)):
        assert got[step][name] == pytest.approx(wanted[step][name], rel=0.05), (name, step)
    assert list((out / "samples").rglob("*.png"))
    assert not identical(tmp_path / "cpu" / "model", out / "model")
