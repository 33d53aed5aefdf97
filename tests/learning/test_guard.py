"""What goes wrong in a run, and that nothing else does with it."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trajectory_rows import write_shards

from irg.learning import checkpoints
from irg.learning.checkpoints import latest
from irg.learning.data.rows import BadRow, Rejections
from irg.learning.gradient_guard import GradientGuard
from irg.learning.recipe import Guard, Lora, Mixture, Optimizer, Parallel, TrainRecipe
from irg.learning.trackers import LogFile
from irg.learning.trainer import Trainer, train
from irg.model.weights.adapter_files import read_adapter
from irg.model.weights.checkpoint import load_model
from irg.reasoning.pipeline import IRGPipeline

from .conftest import records

Make = Callable[..., TrainRecipe]


@pytest.fixture
def recipe(folder: Path, rows: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> TrainRecipe:
        base: dict[str, Any] = {
            "model": str(folder),
            "data": (str(rows),),
            "out": str(tmp_path / "run"),
            "steps": 4,
            "mixture": Mixture(initial_full=1.0, improving_full=1.0),
            "optimizer": Optimizer(lr=1e-3),
            "tokens_per_pack": 200,
            "log_every": 1,
            "save_every": 2,
        }
        return TrainRecipe(**base | changes)

    return make


# --------------------------------------------------------------------------------------------------------------- guard


def test_spikes_are_skipped() -> None:
    guard = GradientGuard(Guard(spike=4.0, patience=3))
    assert all(guard.accepts(1.0) for _ in range(30))
    assert not guard.accepts(4.5) and guard.average == 1.0
    assert guard.accepts(3.9) and 1.0 < guard.average < 1.2
    assert not guard.accepts(math.nan) and not guard.accepts(math.inf)
    with pytest.raises(ValueError, match=r"3 steps in a row .* not finite .*nan.* lower optimizer\.lr"):
        guard.accepts(math.nan)
    again = GradientGuard(Guard(spike=4.0))
    again.load(json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state()


def test_early_norms_are_no_spikes() -> None:
    guard = GradientGuard(Guard(spike=2.0))
    assert all(guard.accepts(norm) for norm in (1.0, 5.0, 0.1, 20.0))


def test_a_run_of_nothing_but_nan_stops(recipe: Make) -> None:
    trainer = Trainer(recipe(guard=Guard(patience=2)), quiet=True)
    with torch.no_grad():
        trainer.model.llm2vae.bias[0] = math.nan
    with pytest.raises(ValueError, match="2 steps in a row"):
        trainer.fit()


# -------------------------------------------------------------------------------------------------------------- memory


def test_out_of_memory_names_the_pack(recipe: Make) -> None:
    trainer = Trainer(recipe(noise_copies=2), quiet=True)

    def score(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.score = score  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"step 0, pack 0: 1\d\d tokens \(.* x improving_full.*tokens_per_pack \(now 200\).*noise_copies.*recompute"):  # fmt: skip # noqa: E501
        trainer.train_step()


def test_out_of_memory_elsewhere(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(ValueError, match=r"out of memory outside a pack .* adamw8bit"):
        train(recipe(), quiet=True)


# ---------------------------------------------------------------------------------------------------------------- disk


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every shard is refused."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.HuggingFaceStorageWriter, "write_data", refuse)


def test_a_full_disk_harms_no_checkpoint(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(stop_after=2), quiet=True)
    kept = latest(tmp_path / "run")
    assert kept is not None
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    with monkeypatch.context() as patch:
        full_disk(patch)
        with pytest.raises(ValueError, match=r"cannot write checkpoint .*No space left.*are untouched"):
            train(recipe(stop_after=3), quiet=True)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    resumed = train(recipe(), quiet=True)
    whole = train(recipe(out=str(tmp_path / "whole")), quiet=True)
    a, b = (load_file(path / "weights.safetensors") for path in (resumed, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_goes_on_while_the_disk_is_full(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(recipe(save_every=1), quiet=True)
    with monkeypatch.context() as patch:
        full_disk(patch)
        trainer.train_step()
        trainer.save()
        trainer.train_step()
        with pytest.warns(UserWarning, match="No space left on device.*training goes on"):
            trainer.save()
        trainer.writer.wait()
    trainer.train_step()
    trainer.save()
    assert trainer.writer.wait() is None
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "run")] == ["step-00000003"]


def test_a_log_that_cannot_be_written_costs_its_lines() -> None:
    lines = LogFile(Path("/dev/full"))
    with pytest.warns(UserWarning, match='cannot write /dev/full .*No space left.*"loss": 2.5, "ce": null'):
        lines.log(3, {"loss": 2.5, "ce": math.nan})
    refused = Rejections(Path("/dev/full"))
    with pytest.warns(UserWarning, match=r"cannot write /dev/full .*No space left.*a\.parquet, row 1: broken"):
        refused.add(BadRow("a.parquet, row 1", "broken"))
    assert refused.count == 1


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("stream", [True, False])
def test_other_rows_in_the_same_place(recipe: Make, rows: Path, tmp_path: Path, stream: bool) -> None:
    """Places in the data mean nothing in other data: an error, or with force a new round."""
    train(recipe(stop_after=2, stream=stream), quiet=True)
    write_shards(records()[:2], tmp_path / "more")
    shutil.copy(tmp_path / "more" / "part-00000.parquet", rows / "part-00009.parquet")
    with pytest.raises(ValueError, match=r"rows are not those of .*step-00000002: files were added.*--force"):
        train(recipe(stream=stream), quiet=True)
    train(recipe(stream=stream), quiet=True, force=True)


def test_force_takes_another_mixture_and_optimizer(recipe: Make) -> None:
    """Neither samples of modes that are gone nor moments of another kind are taken over."""
    one = {"stream": True, "mixture": Mixture(initial_full=1.0), "optimizer": Optimizer(kind="muon")}
    train(recipe(stop_after=2, **one), quiet=True)
    other = {"stream": True, "mixture": Mixture(improving_full=1.0), "optimizer": Optimizer(lr=1e-3)}
    train(recipe(stop_after=3, **other, parallel=Parallel(accumulate=2)), quiet=True, force=True)
    train(recipe(stop_after=4, **one), quiet=True, force=True)


def test_another_number_of_packs(recipe: Make) -> None:
    train(recipe(stop_after=2), quiet=True)
    more = recipe(parallel=Parallel(accumulate=2))
    with pytest.raises(ValueError, match=r"made with 1 packs a step \(1 processes\), now there are 2 .*--force"):
        train(more, quiet=True)
    train(more, quiet=True, force=True)


def test_force_goes_on_with_another_recipe(recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe(stop_after=2), quiet=True)
    changed = recipe(optimizer=Optimizer(lr=5e-4))
    with pytest.raises(ValueError, match=r"different: optimizer\.lr\).*--force"):
        train(changed, quiet=True)
    train(changed, quiet=True, force=True)
    assert "with another recipe (different: optimizer.lr)" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ adapters


def test_adapters_are_trained_saved_and_merged(recipe: Make, folder: Path, tmp_path: Path) -> None:
    lora = Lora(rank=4, alpha=8.0, targets=("q_proj", "up_proj"), base="float32")
    out = train(recipe(lora=lora, save_every=2, stop_after=2), quiet=True)
    out = train(recipe(lora=lora), quiet=True)  # resumed
    read = read_adapter(tmp_path / "run" / "adapter")
    tensors = read.tensors()
    assert all(layer.scale == 2.0 and layer.a.shape[0] == 4 for layer in read.layers.values())
    assert {name.rpartition(".")[2].removesuffix("_moe_gen") for name in read.layers} == {"q_proj", "up_proj"}
    assert any(bool(t.abs().max() > 0) for name, t in tensors.items() if name.endswith("lora_B"))
    start, end = load_model(folder).model.state_dict(), load_model(out).model.state_dict()
    name = "language_model.model.layers.0.self_attn.q_proj_moe_gen"
    delta = 2.0 * tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
    assert torch.allclose(end[f"{name}.weight"], start[f"{name}.weight"] + delta, atol=1e-6)
    changed = {n for n in start if not torch.equal(start[n], end[n])}
    assert changed == {path.replace("lora_A", "weight") for path in tensors if path.endswith("lora_A")}
    shard = next((tmp_path / "run" / "checkpoints" / "step-00000004").glob("*.safetensors"))
    assert all("lora_" in name for name in load_file(shard))  # nothing frozen is in a checkpoint


def test_a_four_bit_base(recipe: Make, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    trainer = Trainer(recipe(lora=Lora(rank=2, base="nf4", merge=False)), quiet=True)
    held = trainer.model.language_model.model.layers[0].mlp.up_proj.weight
    assert "NF4" in type(held).__name__ and not held.requires_grad
    assert trainer.fit() == tmp_path / "run" / "adapter"


def test_eight_bit_moments_resume(recipe: Make, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    torch.compiler.set_stance("force_eager")  # torchao compiles its update, for half a minute
    try:
        # Moments of at least 4096 numbers are held in 8 bits; a checkpoint rounds them once more.
        eight = recipe(optimizer=Optimizer(kind="adamw8bit", lr=1e-3, eps=1e-8))
        whole = train(replace(eight, out=str(tmp_path / "whole")), quiet=True)
        train(replace(eight, stop_after=2), quiet=True)
        trainer = Trainer(eight, quiet=True)
        trainer.resume()
        held = [type(v["exp_avg"]).__name__ for v in trainer.state.optimizers[0].state.values()]
        assert "OptimState8bit" in held
        resumed = train(eight, quiet=True)
    finally:
        torch.compiler.set_stance("default")
    a, b = (load_file(path / "weights.safetensors") for path in (resumed, whole))
    assert all(float((a[name] - b[name]).abs().mean()) < 1e-4 for name in a)  # after four steps of 1e-3


# -------------------------------------------------------------------------------------------------------------- export


def test_a_bagel_folder_stays_one(recipe: Make, folder: Path, tmp_path: Path) -> None:
    """Trained from BAGEL's layout, exported in it, and drawn with; the next stage starts from the EMA weights."""
    sections = json.loads((folder / "config.json").read_text())
    llm, vit = sections.pop("llm_config"), sections.pop("vit_config")
    (folder / "llm_config.json").write_text(json.dumps(llm))
    (folder / "vit_config.json").write_text(json.dumps(vit | {"num_hidden_layers": vit["num_hidden_layers"] + 1}))
    (folder / "config.json").write_text(json.dumps(sections))
    (folder / "weights.safetensors").rename(folder / "ema.safetensors")
    trainer = Trainer(recipe(steps=2), quiet=True)
    out = trainer.fit()
    names = {path.name for path in out.iterdir()}
    assert names == {"ema.safetensors", "ae.safetensors", "config.json", "llm_config.json", "vit_config.json", "tokenizer.json", "irg.json"}  # fmt: skip # noqa: E501
    output = IRGPipeline.from_pretrained(out, device="cpu")(
        "p0", seed=1, height=32, width=32, max_think_tokens=3, num_timesteps=3
    )
    assert output.image.size == (32, 32)
    second = Trainer(recipe(model=str(out), out=str(tmp_path / "stage2")), quiet=True)
    for name, average in zip(trainer.state.named_weights, trainer.state.average, strict=True):
        assert torch.equal(second.state.named_weights[name], average)
    assert any(not torch.equal(a, w) for a, w in zip(trainer.state.average, trainer.state.weights, strict=True))
    shutil.rmtree(out)
