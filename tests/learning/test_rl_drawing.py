"""The flow head by reward: DiffusionNFT's loss in literal numbers, and runs on a tiny model that learns to draw."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irg.engine import ops
from irg.engine.flow import time_grid
from irg.learning.combinations import Run, problems
from irg.learning.recipe import Lora, Mixture, Optimizer
from irg.learning.rl.drawing_trainer import DrawingTrainer
from irg.learning.rl.drawings import LearnedDrawings, draw_groups, drawing_packs
from irg.learning.rl.flow_grpo import flow_grpo_losses, step_logprobs
from irg.learning.rl.flow_learning import velocities, window_of
from irg.learning.rl.nft import nft_losses, optimality
from irg.learning.rl.plan import make_plan, report
from irg.learning.rl.prompts import Prompt, TrajectoryPrompts
from irg.learning.rl.recipe import Advantage, Drawing, Evaluate, Limits, Loss, RLRecipe, Rollout
from irg.learning.rl.rewards import RewardTerm
from irg.learning.rl.run import train_by_reward

from .runs import dark, identical, log, weights

Make = Callable[..., RLRecipe]


@pytest.fixture(autouse=True)
def plugins(add_rewards: Callable[..., None]) -> None:
    add_rewards(dark=dark)


@pytest.fixture
def recipe(small_rl_recipe: Make, tmp_path: Path) -> Make:
    """Two prompts a step, four images each."""
    (tmp_path / "prompts.txt").write_text("a dog\ntwo cats on a couch\n")
    return partial(
        small_rl_recipe,
        policy="drawing",
        rewards=(RewardTerm("dark"),),
        rollout=Rollout(prompts=2, samples=4),
        drawing=Drawing(32, 32, num_timesteps=4),
        advantage=Advantage("grpo", "step", least_std=1e-6),
        frozen=("vit_model", "connector", "und", "embed_tokens"),
        ema=0.5,
        tokens_per_pack=200,
    )


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
    assert optimality(torch.tensor([-7.0, -1.0, -0.5, 0.0, 0.5, 3.0])).tolist() == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_stochastic_steps_density_in_numbers() -> None:
    """t = 0.8, d = 0.3, level 0.5: std = 1, so the scale is sqrt(0.3); the mean of x = 2, v = 1 is 1.2875. Values 0.3
    and 0.0 from the mean: log p = -(0.09 / 0.6 + 0) / 2 - log(0.3) / 2 - log(2 pi) / 2."""
    how = Drawing(num_timesteps=11, timestep_shift=1.0, learning="flow-grpo", noise_level=0.5)
    x, v, one = torch.full((1, 2), 2.0), torch.ones(1, 2), torch.zeros(())
    step = ops.StochasticStep(0.8, 0.5, x, torch.tensor([[1.5875, 1.2875]]), one)
    value = -0.075 - 0.5 * np.log(0.3) - 0.5 * np.log(2 * np.pi)
    (logprob,), ((mean, std),) = step_logprobs(v, [step], how)
    assert logprob.item() == pytest.approx(value, abs=1e-5) and mean.flatten().tolist() == pytest.approx([1.2875] * 2)
    assert std == pytest.approx(0.3**0.5)
    again = ops.StochasticStep(0.8, 0.5, x, step.x_after_ND, torch.tensor(value + 0.25))
    moved = v + torch.tensor([[0.0, 1.0]])  # its second mean is lower by 0.3375
    found = flow_grpo_losses(
        torch.cat([v, v]), torch.cat([v, moved]), torch.cat([v, moved]), [step, again], torch.tensor([2.0, -1.0]), how
    )
    ratio = np.exp(0.3375**2 / 1.2)
    assert found.ratio_I.tolist() == pytest.approx([1.0, ratio], abs=1e-5) and found.clipped_I.tolist() == [
        False,
        False,
    ]
    assert found.loss_I.tolist() == pytest.approx([-2.0, ratio], abs=1e-5)
    assert found.kl_I is not None and found.kl_I.tolist() == pytest.approx([0.0, 0.3375**2 / 1.2], abs=1e-5)
    assert found.rollout_gap_I[1].item() == pytest.approx(0.25 + 0.3375**2 / 1.2, abs=1e-5)
    ahead = flow_grpo_losses(torch.cat([v, v]), None, None, [step, again], torch.tensor([0.0, -1.0]), how)
    assert ahead.ratio_I.tolist() == pytest.approx([np.exp(value), np.exp(-0.25)], abs=1e-5)  # to 0 and value + 0.25
    assert ahead.loss_I.tolist() == pytest.approx([0.0, 0.9], abs=1e-5) and ahead.rollout_gap_I.tolist() == [0.0, 0.0]
    held = flow_grpo_losses(v, moved, None, [step], torch.tensor([1.0]), replace(how, clip=0.05))
    assert held.clipped_I.tolist() == [True] and held.loss_I.item() == pytest.approx(-1.05)


# ---------------------------------------------------------------------------------------------------------------- packs


def test_an_image_in_a_pack_is_predicted_as_alone(recipe: Make) -> None:
    """Images behind one prefix do not see each other; each carries its own r, over all of its noise levels."""
    trainer = DrawingTrainer(recipe(noise_copies=2), quiet=True)
    (group,) = trainer.begin_drawings([Prompt("a dog")], [[1, 2, 3]])()
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
    n = len(one.target_M)
    assert len(three.target_M) == 3 * n and three.counts("token") == (0, 3 * n)
    assert three.advantages_I[three.target_M].tolist() == [0.5] * n + [-1.0] * n + [0.0] * n
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


GRPO = {
    "drawing": Drawing(32, 32, num_timesteps=6, learning="flow-grpo", window=2, kl=1e-3),
    "noise_copies": 1,
    "ema": 0.0,
}


def test_the_ratio_before_the_first_update_is_one(recipe: Make) -> None:
    """To the bit, with one update and, if weights stay, in every minibatch and epoch; the sampler's own densities agree
    to rounding."""
    once = DrawingTrainer(recipe(**GRPO), quiet=True).train_step()
    assert once["flow_ratio_gap"] == 0.0 and once["flow_kl"] == 0.0 and once["grad_norm"] > 0
    assert 0 <= once["flow_rollout_gap"] < 5e-6, once["flow_rollout_gap"]
    assert "rollout_mse" not in once
    cps = GRPO | {"drawing": replace(GRPO["drawing"], stochastic="cps")}
    trainer = DrawingTrainer(recipe(minibatches=2, epochs=2, **cps), quiet=True)
    trainer.update = lambda factor: (0.0, False)  # type: ignore[method-assign]
    kept = trainer.train_step()
    assert kept["flow_ratio_gap"] == 0.0 and kept["flow_rollout_gap"] < 5e-6
    moving = DrawingTrainer(recipe(minibatches=2, **GRPO), quiet=True).train_step()
    assert moving["flow_ratio_gap"] > 1e-5 and moving["flow_kl"] > 0


def test_only_the_windows_steps_are_stochastic(recipe: Make) -> None:
    trainer = DrawingTrainer(recipe(**GRPO), quiet=True)
    (group,), grid = trainer.begin_drawings([Prompt("a dog")], [[1, 2]], window=1)(), time_grid(6, 3.0).tolist()
    for drawn in group.drawings:
        assert [(step.now, step.after) for step in drawn.stochastic] == [(grid[1], grid[2]), (grid[2], grid[3])]
        assert torch.equal(drawn.stochastic[0].x_after_ND, drawn.stochastic[1].x_ND)
    (plain,) = trainer.begin_drawings([Prompt("a dog")], [[1, 2]])()
    assert all(drawn.stochastic == () for drawn in plain.drawings)
    assert {window_of(trainer.recipe, step) for step in range(20)} == {0, 1}


def test_flow_grpo_raises_the_reward(recipe: Make, tmp_path: Path) -> None:
    ends = {}
    for sign in (1.0, -1.0):
        out = tmp_path / f"{sign}"
        changes: dict[str, Any] = {"rollout": Rollout(prompts=2, samples=16), "steps": 5, "save_every": 100}
        changes |= {"optimizer": Optimizer(lr=3e-2, eps=1e-8, betas=(0.9, 0.95)), "tokens_per_pack": 2000, **GRPO}
        train_by_reward(recipe(out=str(out), rewards=(RewardTerm("dark", sign),), **changes), quiet=True)
        lines = log(out)
        ends[sign] = (lines[-1]["reward/dark"] - lines[0]["reward/dark"]) / lines[0]["reward_std"]
    assert ends[1.0] > 1 and ends[-1.0] < -1, ends


def test_it_raises_the_reward(recipe: Make, folder: Path, tmp_path: Path) -> None:
    """Images get darker; with the reward turned round, lighter. What is frozen keeps its bits."""
    ends = {}
    for sign in (1.0, -1.0):
        out = tmp_path / f"{sign}"
        changes: dict[str, Any] = {"rollout": Rollout(prompts=2, samples=16), "noise_copies": 2, "steps": 6}
        changes["optimizer"] = Optimizer(lr=3e-2, eps=1e-8, betas=(0.9, 0.95))
        changes |= {"rewards": (RewardTerm("dark", sign),), "tokens_per_pack": 2000, "save_every": 100}
        model = train_by_reward(recipe(out=str(out), **changes), quiet=True)
        lines = log(out)
        ends[sign] = (lines[-1]["reward/dark"] - lines[0]["reward/dark"]) / lines[0]["reward_std"]
    assert ends[1.0] > 1 and ends[-1.0] < -1, ends  # in standard deviations of a prompt's images at first
    before, after = weights(folder), weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("moe_gen" in n or n.startswith(("vae2llm", "llm2vae", "time_embedder")) for n in changed)


@pytest.mark.parametrize("changes", [{}, {"lora": Lora(rank=2, base="float32")}, GRPO])
def test_resumed_is_uninterrupted(recipe: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also the old policy: images, rewards and weights have the same bits."""
    changes = changes | {"steps": 2, "minibatches": 2, "evaluate": Evaluate(2, count=2)}
    if "lora" in changes:
        changes["frozen"] = ()
    whole = train_by_reward(recipe(out=str(tmp_path / "whole"), **changes), quiet=True)
    train_by_reward(recipe(stop_after=1, **changes), quiet=True)
    parts = train_by_reward(recipe(**changes), quiet=True)
    assert identical(whole, parts)
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
        (GRPO | {"noise_copies": 2}, "noise_copies has no use with drawing.learning flow-grpo"),
    ],
)
def test_settings_without_a_use_are_refused(recipe: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(**changes)


def test_settings_of_the_other_method_are_refused() -> None:
    with pytest.raises(ValueError, match=r"drawing.clip has no use with drawing.learning nft"):
        Drawing(clip=0.2)
    with pytest.raises(ValueError, match=r"drawing.beta has no use with drawing.learning flow-grpo"):
        Drawing(learning="flow-grpo", beta=0.5)
    with pytest.raises(ValueError, match=r"drawing.window must be from 1 to the 3 steps, got 4"):
        Drawing(num_timesteps=4, learning="flow-grpo", window=4)
    with pytest.raises(ValueError, match=r"drawing.stochastic has no use with drawing.learning nft"):
        Drawing(stochastic="cps")
    for changes in ({"noise_level": 1.1}, {"num_timesteps": 3}):
        with pytest.raises(ValueError, match=r"drawing.stochastic cps: noise_level must be at most 1, and window less"):
            Drawing(learning="flow-grpo", stochastic="cps", **changes)


def test_the_dry_run(recipe: Make) -> None:
    plan = make_plan(recipe(tokens_per_pack=40))
    told = report(plan)
    assert "images per step: 8 (2 prompts x 4) of 32 x 32 pixels, 3 steps" in told and not plan.problems, told
    stochastic = make_plan(recipe(**GRPO))
    assert "5 steps of the sampler, 2 of them stochastic and learned, without" in report(stochastic)
    assert stochastic.packs == 1 and stochastic.memory["reference"] > 0
    assert plan.packs == 2 and plan.flops > plan.rollout_flops > 0
    wrong = make_plan(recipe(drawing=Drawing(33, 32)))
    assert any("multiples of 16, got 33 x 32" in problem for problem in wrong.problems), wrong.problems
    with pytest.raises(ValueError, match="multiples of 16, got 33 x 32"):
        DrawingTrainer(recipe(drawing=Drawing(33, 32)), quiet=True)
    low = replace(recipe(), parallel=replace(recipe().parallel, precision="bfloat16"))
    assert any("old policy in float32" in problem for problem in problems(Run(low, 1, False)))
