"""The recipes by reward for 7 B: their dry runs with BAGEL's sizes, and each from end to end on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_rows import write_shards

from irg import recipes, registry
from irg.cli.main import main
from irg.curation.records import TrajectoryRecord, png
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import RLRecipe
from irg.results.trajectory import Trajectory

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = ("irg-7b-rl", "irg-7b-rl-draw", "irg-7b-rl-trajectory")


def dark(prompt: Prompt, trajectory: Trajectory) -> float:
    """How dark the last image is, and how many low bytes the last text has."""
    assert trajectory.image is not None
    text = trajectory.turns[-1].thinking or ""
    return 1 - float(np.asarray(trajectory.image).mean()) / 255 + sum(letter < "@" for letter in text) / 10


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[[str], list[str]]:
    """Options that give a recipe prompts of its own kind."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dog", "include": [{"class": "dog", "count": 1}]}\n"two cats"\n')
    image = png(np.full((64, 64, 3), 100, np.uint8))
    write_shards([TrajectoryRecord("a dog", "a dog on grass", image, "fix", image)], tmp_path / "rows")

    def options(name: str) -> list[str]:
        return ["--prompts.path", f"[{tmp_path / 'rows'}]" if name == "irg-7b-rl" else str(tmp_path / "p.jsonl")]

    return options


@pytest.mark.parametrize("name", SHIPPED)
def test_the_dry_run_with_bagels_sizes(
    name: str, prompts: Callable[[str], list[str]], own_plugins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(RECIPES / f"{name}.yaml")
    assert main(["train", path, "--dry-run", "--model", "bagel_7b", *prompts(name)]) == 0
    told = capsys.readouterr().out
    assert "trained: 161,480,704" in told or "trained: 322,961,408" in told
    assert "no problems found" in told and "GPU hours for 300 steps" in told


@pytest.mark.parametrize(("name", "policy"), [("rl-plan", "thinking"), ("rl-trajectory", "trajectory")])
def test_irg_minis_recipes_are_read(name: str, policy: str, own_plugins: None) -> None:
    recipe = recipes.load(RLRecipe, str(RECIPES / "mini" / f"{name}.yaml"))
    assert recipe.policy == policy and recipe.model == "mini" and recipe.evaluate.every


TINY: dict[str, Any] = {
    "steps": 2,
    "rewards": "[{name: dark}]",
    "device": "cpu",
    "parallel": "{precision: float32, recompute: full}",
    "lora": "{rank: 2, base: float32}",
    "images": "{}",
    "rollout.prompts": 2,
    "rollout.samples": 3,
    "tokens_per_pack": 600,
    "evaluate": "{every: 2, count: 2}",
    "limits": "{malformed: 0}",
    "save_every": 1,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_tiny_run_from_end_to_end(
    name: str, prompts: Callable[[str], list[str]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.load
    monkeypatch.setattr(registry, "load", lambda group, plugin: dark if plugin == "dark" else real(group, plugin))
    changes = TINY | {"model": folder, "out": tmp_path / "run"}
    changes |= {} if name == "irg-7b-rl-draw" else {"rollout.max_tokens": 5}
    changes |= {} if name == "irg-7b-rl" else {"drawing.height": 32, "drawing.width": 32, "drawing.num_timesteps": 4}
    changes |= {"credit.right_groups": 2} if name == "irg-7b-rl-trajectory" else {}
    options = [word for key, value in changes.items() for word in (f"--{key}", str(value))] + prompts(name)
    path = str(RECIPES / f"{name}.yaml")
    recipe = recipes.load(RLRecipe, path, options)
    assert recipe.lora.rank == 2 and recipe.drawing.learning == ("nft" if name == "irg-7b-rl" else "flow-grpo")
    assert main(["train", path, *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "grad_norm" in line]
    assert len(trained) == 2 and all(line["grad_norm"] > 0 and line["reward_failed"] == 0 for line in trained)
    assert "held_out_reward" in lines[-1] and list((tmp_path / "run" / "model").glob("*.safetensors"))
