"""Several processes on one machine: the same numbers as one, through a kill -9 too."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchrun import torchrun

from irg.learning.recipe import Mixture, Optimizer, Parallel, Samples, TrainRecipe
from irg.learning.trainer import Trainer, train
from irg.recipes import build

from .worker import dump_gradients

WORKER = Path(__file__).with_name("worker.py")
SAMPLED = {"height": 32, "width": 32, "max_think_tokens": 3, "num_timesteps": 3}
ALL_SIX = Mixture(0.5, 0.5, 1.0, 0.5, 0.5, 1.0, mandatory=("initial_full", "improving_full"))


def start(jobs: list[dict[str, Any]], folder: Path, world: int) -> list[int | None]:
    """Run jobs in processes as torchrun starts them; their exit codes."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ended = torchrun(WORKER, ["jobs.json"], folder, world)
    print(*(process.error for process in ended))  # which pytest shows of a test that fails
    return [process.code for process in ended]


@pytest.fixture
def plan(folder: Path, rows: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A recipe as plain data."""

    def make(out: str, **changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "model": str(folder),
            "data": (str(rows),),
            "out": str(tmp_path / out),
            "steps": 4,
            "mixture": ALL_SIX,
            "optimizer": Optimizer(lr=1e-3, warmup=2),
            "tokens_per_pack": 200,
            "log_every": 1,
            "save_every": 2,
            "stream": True,
            "lookahead": 4,
        }
        return json.loads(json.dumps(asdict(TrainRecipe(**base | changes))))

    return make


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    return load_file(folder / "model" / "weights.safetensors")


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes(plan: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """FSDP2 over two processes: gradients of one; killed and resumed, the bits of a run that was not; moved to one."""
    two = {"parallel": Parallel(recompute="full")}
    last, soon = (Samples(every=n, prompts=("p0",), settings=SAMPLED) for n in (4, 2))
    low = Parallel(precision="bfloat16", recompute="selective")
    validated = {"validate_every": 2, "validation_rows": 1}
    half = tmp_path / "half"  # as BAGEL's weights are stored; what is trained must be float32 all the same
    shutil.copytree(plan("c")["model"], half)
    save_file(
        {n: t.bfloat16() for n, t in load_file(half / "weights.safetensors").items()}, half / "weights.safetensors"
    )
    jobs = [
        {"recipe": plan("a", **two), "dump": str(tmp_path / "two.safetensors")},
        {"recipe": plan("b", parallel=Parallel(replicas=2)), "dump": str(tmp_path / "hsdp.safetensors")},
        {"recipe": plan("c", parallel=low, model=str(half)), "dump": str(tmp_path / "low.safetensors")},
        {"recipe": plan("whole", **two, samples=last)},
        {"recipe": plan("low", parallel=low, model=str(half), steps=2, samples=soon, **validated)},
        {"recipe": plan("killed", **two), "die": 3},
    ]
    assert start(jobs, tmp_path, 2) == [-signal.SIGKILL, -signal.SIGKILL]
    check_gradients(plan, tmp_path)
    shutil.copytree(tmp_path / "killed", tmp_path / "moved")
    assert start([{"recipe": plan("killed", **two)}], tmp_path, 2) == [0, 0]
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name, step in (("whole", 4), ("low", 2)):
        assert (tmp_path / name / "samples" / f"step-{step:08}" / "00" / "initial.png").is_file()
    # the last steps on one process that runs both packs of a step
    train(build(TrainRecipe, plan("moved", parallel=Parallel(accumulate=2))), quiet=True)
    assert losses(tmp_path / "moved")[-2:] == pytest.approx(losses(tmp_path / "whole")[-2:], rel=1e-4)


def test_one_process_in_bfloat16_with_samples(plan: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """FSDP2 of one process: float32 weights, bfloat16 computing, images drawn and measured in it."""
    samples = Samples(every=1, prompts=("p0",), settings=SAMPLED)
    low = Parallel(precision="bfloat16")
    job = plan("one", parallel=low, samples=samples, steps=2, validate_every=1, validation_rows=1)
    assert start([{"recipe": job}], tmp_path, 1) == [0]
    assert (tmp_path / "one" / "samples" / "step-00000002" / "00" / "initial.png").is_file()
    assert all("val/mse@0.9/with" in line for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines())


def check_gradients(plan: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Of two sharded processes, of two replicas and in bfloat16, against one process that runs both packs."""
    recipe = build(TrainRecipe, plan("one", parallel=Parallel(accumulate=2)))
    dump_gradients(Trainer(recipe, quiet=True), tmp_path / "one.safetensors")
    found = {name: load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two", "hsdp", "low")}
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in found}
    one = found["one"]
    assert len(one) == 93
    for name in ("two", "hsdp"):
        assert records[name].keys() == records["one"].keys() and found[name].keys() == one.keys()
        for key, value in records[name].items():
            assert value == pytest.approx(records["one"][key], rel=1e-5), key
        for key, grad in found[name].items():
            assert torch.allclose(grad, one[key], rtol=1e-5, atol=1e-5 * float(one[key].abs().max())), key
    assert records["low"]["loss"] == pytest.approx(records["one"]["loss"], rel=0.02)
    assert all(grad.dtype == torch.float32 for grad in found["low"].values())
