"""Sample images of a run in one process; of several: test_parallel.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from irg.learning import sampling
from irg.learning.checkpoints import checkpoints
from irg.learning.recipe import Lora, Parallel, Samples, TrainRecipe
from irg.learning.sampling import averaged_model
from irg.learning.setup import adapter_of
from irg.learning.trainer import Trainer, train

Make = Callable[..., TrainRecipe]
SETTINGS = {"height": 32, "width": 32, "max_think_tokens": 3, "num_timesteps": 3}


@pytest.fixture
def recipe(small_recipe: Make) -> Make:
    """Two steps, samples after each, a checkpoint at the end."""
    samples = Samples(every=1, prompts=("p0",), settings=SETTINGS)
    return lambda **changes: small_recipe(**{"steps": 2, "save_every": 10, "samples": samples} | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"parallel": Parallel(precision="bfloat16")}, {"lora": Lora(rank=2)}, {"lora": Lora(rank=2, base="nf4")}],
    ids=["float32", "bfloat16", "adapters", "nf4"],
)
def test_images_are_drawn(recipe: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    if "nf4" in str(changes):
        pytest.importorskip("torchao")
    train(recipe(**changes), quiet=True)
    for step in (1, 2):
        assert (tmp_path / "run" / "samples" / f"step-{step:08d}" / "00" / "initial.png").is_file()


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=2)])
def test_the_averages_are_sampled_and_nothing_is_copied(recipe: Make, lora: Lora) -> None:
    trainer = Trainer(recipe(lora=lora), quiet=True)
    trainer.train_step()
    averages = trainer.state.averages()
    made = averaged_model(trainer.model, averages, adapter_of(trainer.recipe), trainer.ranks, torch.float32)
    assert made is not None and made is not trainer.model
    found = dict(made.named_parameters())
    assert found.keys() == dict(trainer.model.named_parameters()).keys()
    for name, parameter in trainer.model.named_parameters():
        assert found[name].data_ptr() == averages.get(parameter, parameter).data_ptr(), name


@pytest.mark.parametrize("error", [RuntimeError("the decoder\nbroke"), torch.OutOfMemoryError("no memory left")])
def test_a_failure_does_not_end_the_run(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is a warning with its reason; the step before it is in a checkpoint; the result is that of a run without."""
    whole = train(recipe(out=str(tmp_path / "whole"), samples=Samples()), quiet=True)
    saved: list[list[str]] = []

    def fail(*_: Any) -> Any:
        trainer.writer.wait()
        saved.append([path.name for path in checkpoints(tmp_path / "run")])
        raise error

    monkeypatch.setattr(sampling, "draw", fail)
    trainer = Trainer(recipe(), quiet=True)
    with pytest.warns(UserWarning, match=r"cannot draw samples at step 1 \(\w+: (the decoder broke|no memory left)\)"):
        folder = trainer.fit()
    assert saved == [["step-00000001"], ["step-00000001", "step-00000002"]]
    assert (folder / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
