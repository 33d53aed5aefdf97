"""The flow head by reward: DiffusionNFT's loss in literal numbers, and runs on a tiny model that learns to draw."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from irg import registry
from irg.engine import ops
from irg.learning.combinations import Run, problems
from irg.learning.recipe import Lora, Mixture, Optimizer
from irg.learning.rl.drawing_trainer import DrawingTrainer
from irg.learning.rl.drawings import draw_groups
from irg.learning.rl.nft import nft_losses, optimality
from irg.learning.rl.plan import make_plan, report
from irg.learning.rl.prompts import FilePrompts, Prompt, TrajectoryPrompts
from irg.learning.rl.recipe import Advantage, Drawing, Evaluate, Limits, Loss, RLRecipe, Rollout
from irg.learning.rl.rewards import RewardTerm
from irg.learning.rl.run import train_by_reward
from irg.results.trajectory import Trajectory

Make = Callable[..., RLRecipe]


def dark(prompt: Prompt, trajectory: Trajectory) -> float:
    """How dark the image is, from 0 to 1."""
    assert trajectory.image is not None
    return 1 - float(np.asarray(trajectory.image).mean()) / 255


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda group, name: dark if (group, name) == (registry.REWARDS, "dark") else real(group, name)
    )


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Make:
    """A small recipe with some fields changed."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\ntwo cats on a couch\n")

    def make(**changes: Any) -> RLRecipe:
        base = RLRecipe(
            model=str(folder),
            out=str(tmp_path / "run"),
            steps=4,
            policy="drawing",
            prompts=FilePrompts("file", str(prompts)),
            rewards=(RewardTerm("dark"),),
            rollout=Rollout(prompts=2, samples=4),
            drawing=Drawing(32, 32, num_timesteps=4),
            advantage=Advantage("grpo", "step", least_std=1e-6),
            frozen=("vit_model", "connector", "und", "embed_tokens"),
            optimizer=Optimizer(lr=1e-2, eps=1e-8, betas=(0.9, 0.95)),
            limits=Limits(malformed=0.0),
            ema=0.5,
            tokens_per_pack=200,
            save_every=1,
        )
        return replace(base, **changes)

    return make


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    (file,) = [p for p in path.glob("*.safetensors") if p.name != "ae.safetensors"]
    return load_file(file)


# -------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_in_numbers() -> None:
    """old 1, new 3, target 2, beta 0.5: v+ = 2 and v- = 0, so the errors are 0 and 4."""
    new, old, target = (torch.full((3, 1), value) for value in (3.0, 1.0, 2.0))
    assert nft_losses(new, old, target, torch.tensor([1.0, 0.0, 0.25]), 0.5).tolist() == [0.0, 4.0, 3.0]
    assert nft_losses(new, old, target, torch.tensor([1.0, 0.0, 0.5]), 1.0).tolist() == [1.0, 9.0, 5.0]
    wide = nft_losses(torch.tensor([[3.0, 1.0]]), torch.ones(1, 2), torch.tensor([[2.0, 0.0]]), torch.ones(1), 0.5)
    assert wide.tolist() == [0.5]  # errors 0 and 1, their mean


def test_the_gradient_where_both_policies_agree() -> None:
    """2 beta (2 r - 1) (v - target): towards good images, away from bad ones, nothing for the mean."""
    new = torch.full((3, 1), 3.0, requires_grad=True)
    nft_losses(new, new.detach(), torch.full((3, 1), 2.0), torch.tensor([1.0, 0.5, 0.0]), 0.1).sum().backward()
    assert new.grad is not None and new.grad.flatten().tolist() == pytest.approx([0.2, 0.0, -0.2], abs=1e-6)


def test_advantages_become_shares() -> None:
    assert [optimality(a) for a in (-7.0, -1.0, -0.5, 0.0, 0.5, 3.0)] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]


# ---------------------------------------------------------------------------------------------------------------- packs


def test_an_image_in_a_pack_is_predicted_as_alone(recipe: Make) -> None:
    """Images behind one prefix do not see each other; each carries its own r, over all of its noise levels."""
    trainer = DrawingTrainer(recipe(noise_copies=2), quiet=True)
    from irg.learning.rl.drawing_trainer import velocities
    from irg.learning.rl.drawings import LearnedDrawings, drawing_packs

    (group,) = trainer.draw([Prompt("a dog")], [[1, 2, 3]])
    found = []
    for numbers in ([0, 1, 2], [1]):
        sample = LearnedDrawings(group, [group.drawings[i] for i in numbers], [[0.5, -1.0, 0.0][i] for i in numbers])
        levels = iter([0.1 * i + j for i in numbers for j in range(2)])
        feed = trainer.loader.feed.attention
        (own,) = drawing_packs([sample], trainer.recipe, trainer.encoder.config, lambda it=levels: next(it), feed)
        times = torch.sigmoid(own.pack.normal_G)
        own.pack.batch.latents_GD, own.pack.batch.times_G = own.pack.clean_GD, times
        found.append((own, velocities(trainer.model, own)))
    (three, v_three), (one, v_one) = found
    n = len(one.optimality_M)
    assert len(three.optimality_M) == 3 * n and three.counts("token") == (0, 3 * n)
    assert three.optimality_M.tolist() == [0.75] * n + [0.0] * n + [0.5] * n
    assert torch.allclose(v_three[n : 2 * n], v_one, atol=1e-5)
    assert not torch.allclose(v_three[:n], v_one, atol=1e-3)


def test_rollouts_are_those_of_separate_requests(recipe: Make) -> None:
    trainer = DrawingTrainer(recipe(), quiet=True)
    args = (trainer.model, trainer.loaded.autoencoder, trainer.encoder)
    prompts, how = [Prompt("a dog"), Prompt("two", thinking="so")], trainer.recipe.drawing
    together = draw_groups(*args, prompts, how, [[1, 2], [3, 4]])
    for group, seeds in zip(together, [[1, 2], [3, 4]], strict=True):
        for drawn, seed in zip(group.drawings, seeds, strict=True):
            ((alone,),) = [g.drawings for g in draw_groups(*args, [group.prompt], how, [[seed]])]
            assert isinstance(alone, ops.Drawn) and torch.allclose(alone.latents, drawn.latents, atol=1e-4)
    assert [len(group.prefix) for group in together] == [1, 3]  # the prompt alone; system prompt, prompt, thinking
    assert not torch.equal(together[0].drawings[0].latents, together[0].drawings[1].latents)


# ---------------------------------------------------------------------------------------------------------------- learn


def test_the_old_policy_is_the_average(recipe: Make) -> None:
    """It draws, and in the first step it is the policy itself; then the average of weights, halfway behind."""
    trainer = DrawingTrainer(recipe(ema_warmup=False), quiet=True)
    first = trainer.train_step()
    assert first["old_gap"] == 0.0 and first["grad_norm"] > 0 and first["rollout_mse"] > 0
    name = next(n for n, p in trainer.state.named_weights.items() if p.ndim == 2)
    start = weights(Path(trainer.recipe.model))[name]
    half = (start + trainer.state.named_weights[name].detach()) / 2
    assert torch.allclose(dict(trainer.old_policy().named_parameters())[name], half, atol=1e-6)
    assert trainer.train_step()["old_gap"] > 0
    assert not {"entropy", "kl", "length", "ratio_gap"} & first.keys()


def test_it_raises_the_reward(recipe: Make, folder: Path, tmp_path: Path) -> None:
    """Images get darker; with the reward turned round, lighter. What is frozen keeps its bits."""
    ends = {}
    for sign in (1.0, -1.0):
        out = tmp_path / f"{sign}"
        changes: dict[str, Any] = {"rollout": Rollout(prompts=2, samples=16), "noise_copies": 2, "steps": 12}
        changes["optimizer"] = Optimizer(lr=3e-2, eps=1e-8, betas=(0.9, 0.95))
        changes |= {"rewards": (RewardTerm("dark", sign),), "tokens_per_pack": 2000, "save_every": 100}
        model = train_by_reward(recipe(out=str(out), **changes), quiet=True)
        lines = log(out)
        ends[sign] = (lines[-1]["reward/dark"] - lines[0]["reward/dark"]) / lines[0]["reward_std"]
    assert ends[1.0] > 1 and ends[-1.0] < -1, ends  # in standard deviations of a prompt's images at first
    before, after = weights(folder), weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("moe_gen" in n or n.startswith(("vae2llm", "llm2vae", "time_embedder")) for n in changed)


@pytest.mark.parametrize("changes", [{}, {"lora": Lora(rank=2, base="float32")}])
def test_resumed_is_uninterrupted(recipe: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also the old policy: images, rewards and weights have the same bits."""
    changes = changes | {"minibatches": 2, "evaluate": Evaluate(2, count=2)}
    if "lora" in changes:
        changes["frozen"] = ()
    whole = train_by_reward(recipe(out=str(tmp_path / "whole"), **changes), quiet=True)
    train_by_reward(recipe(stop_after=2, **changes), quiet=True)
    parts = train_by_reward(recipe(**changes), quiet=True)
    left, right = weights(whole), weights(parts)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    same = ("reward", "policy_loss", "grad_norm", "old_gap", "held_out_reward")
    for one, other in zip(log(whole.parent), log(parts.parent), strict=True):
        assert {name: one.get(name) for name in same} == {name: other.get(name) for name in same}


def test_imitation_goes_on_beside(recipe: Make, rows: Path, tmp_path: Path) -> None:
    source = TrajectoryPrompts("trajectories", (str(rows),))
    changes: dict[str, Any] = {"data": (str(rows),), "mixture": Mixture(initial_full=1.0), "prompts": source}
    train_by_reward(recipe(steps=2, tokens_per_pack=400, **changes), quiet=True)
    assert all(line["n/initial_full"] >= 1 and line["mse"] > 0 for line in log(tmp_path / "run"))


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": "thinking"}, "drawing is for policy drawing or trajectory, not thinking"),
        ({"loss": Loss(kl=0.1)}, "loss is of texts"),
        ({"rollout": Rollout(temperature=0.5)}, "rollout.temperature and rollout.max_tokens are of texts"),
        ({"limits": Limits(kl=1.0)}, "limits.kl and limits.entropy are of texts"),
        ({"frozen": ("gen",)}, "frozen: policy drawing trains gen"),
    ],
)
def test_settings_without_a_use_are_refused(recipe: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(**changes)


def test_the_dry_run(recipe: Make) -> None:
    plan = make_plan(recipe(tokens_per_pack=40))
    told = report(plan)
    assert "images per step: 8 (2 prompts x 4) of 32 x 32 pixels, 3 steps" in told and not plan.problems, told
    assert plan.packs == 2 and plan.flops > plan.rollout_flops > 0
    wrong = make_plan(recipe(drawing=Drawing(33, 32)))
    assert any("multiples of 16, got 33 x 32" in problem for problem in wrong.problems), wrong.problems
    with pytest.raises(ValueError, match="multiples of 16, got 33 x 32"):
        DrawingTrainer(recipe(drawing=Drawing(33, 32)), quiet=True)
    low = replace(recipe(), parallel=replace(recipe().parallel, precision="bfloat16"))
    assert any("old policy in float32" in problem for problem in problems(Run(low, 1, False)))
