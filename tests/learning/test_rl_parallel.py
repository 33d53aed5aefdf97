"""Learning by reward in two sharded processes: the rollouts, figures and gradients of one."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from irg.learning.recipe import Lora, Optimizer
from irg.learning.rl.prompts import FilePrompts
from irg.learning.rl.recipe import Advantage, Credit, Drawing, Evaluate, Limits, Loss, RLRecipe, Rollout
from irg.learning.rl.rewards import RewardTerm

from .test_parallel import start
from .worker import run

TEXT: dict[str, Any] = {"loss": Loss(kl=0.1), "minibatches": 2}
LOOP: dict[str, Any] = {"policy": "trajectory", "credit": Credit(right_groups=3), "noise_copies": 2}
DRAW: dict[str, Any] = {"policy": "drawing", "lora": Lora(rank=2, base="float32"), "noise_copies": 1}
GRPO = Drawing(32, 32, num_timesteps=4, learning="flow-grpo", kl=0.01)
SAME = ("reward", "reward_std", "policy_loss", "kl", "entropy", "flow_kl", "last", "tokens", "ratio_gap", "rollout_mse")


@pytest.fixture
def plan(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A recipe as plain data."""
    (tmp_path / "p.txt").write_text("a dog\ntwo cats on a couch\nthree\n")

    def make(out: str, **changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "model": str(folder),
            "out": str(tmp_path / out),
            "steps": 2,
            "prompts": FilePrompts("file", str(tmp_path / "p.txt")),
            "rewards": (RewardTerm("low"),),
            "rollout": Rollout(prompts=3, samples=4, max_tokens=5),
            "drawing": Drawing()
            if changes.get("policy", "thinking") == "thinking"
            else Drawing(32, 32, num_timesteps=4),
            "advantage": Advantage("grpo", "step"),
            "optimizer": Optimizer(lr=1e-3, eps=1e-8),
            "limits": Limits(malformed=0.0),
            "tokens_per_pack": 150,
        }
        if changes.get("policy") == "drawing":
            base |= {"drawing": GRPO, "rollout": Rollout(prompts=3, samples=4)}
        return json.loads(json.dumps(asdict(RLRecipe(**base | changes))))

    return make


def test_two_processes_make_the_update_of_one(plan: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    policies = {"text": TEXT, "loop": LOOP, "draw": DRAW}
    for world in ("one", "two"):
        jobs = [
            {"recipe": plan(f"{world}-{name}", **changes), "dump": str(tmp_path / f"{world}-{name}.safetensors")}
            for name, changes in policies.items()
        ]
        if world == "one":
            for job in jobs:
                run(job)
        else:
            whole = {"recipe": plan("whole", evaluate=Evaluate(2, count=3), **TEXT)}
            assert start([*jobs, whole], tmp_path, 2) == [0, 0]
    for name in policies:
        one, two = (load_file(tmp_path / f"{world}-{name}.safetensors") for world in ("one", "two"))
        records = [json.loads((tmp_path / f"{world}-{name}.json").read_text()) for world in ("one", "two")]
        for figure in SAME:
            if figure in records[0]:
                assert records[1][figure] == pytest.approx(records[0][figure], rel=1e-4, abs=1e-6), (name, figure)
        largest = max(float(grad.abs().max()) for grad in one.values())
        assert one.keys() == two.keys() and largest > 1e-6
        for key, grad in one.items():  # a key's bias has no gradient but rounding
            assert torch.allclose(
                two[key], grad, rtol=1e-4, atol=max(1e-4 * float(grad.abs().max()), 1e-7 * largest)
            ), (name, key)
    assert (tmp_path / "whole" / "model" / "weights.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and "held_out_reward" in lines[-1]
