"""Whole trajectories by reward: what they are worth in literal numbers, and runs on a tiny model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irg.engine.ops import Written
from irg.learning.recipe import Lora, Mixture, Optimizer
from irg.learning.rl.credit import Outcome, chosen_groups, outcome_figures, trajectory_return
from irg.learning.rl.plan import make_plan, report
from irg.learning.rl.prompts import Prompt, TrajectoryPrompts
from irg.learning.rl.recipe import Advantage, Credit, Drawing, Evaluate, Loss, RLRecipe, Rollout
from irg.learning.rl.rewards import Judged, RewardTerm, Score
from irg.learning.rl.run import train_by_reward
from irg.learning.rl.trajectories import Round, TrajectoryGroup
from irg.learning.rl.trajectory_packs import learned_trajectories, trajectory_packs
from irg.learning.rl.trajectory_trainer import TrajectoryTrainer
from irg.results.trajectory import Trajectory

from .runs import dark, identical, log

Make = Callable[..., RLRecipe]
FREE = Credit(gain=0.0, further_gains=0.0, damage=0.0, false_stop=0.0)


def low(prompt: Prompt, trajectory: Trajectory) -> Score:
    """Share of the last text's bytes below 64; a text with a zero byte is malformed."""
    text = trajectory.turns[-1].thinking or ""
    return Score(sum(ord(letter) < 64 for letter in text) / max(1, len(text)), malformed="\0" in text)


@pytest.fixture(autouse=True)
def plugins(add_rewards: Callable[..., None]) -> None:
    add_rewards(dark=dark, low=low)


@pytest.fixture
def recipe(small_rl_recipe: Make, tmp_path: Path) -> Make:
    """Two prompts a step, four trajectories each. The first images are drawn."""
    (tmp_path / "prompts.txt").write_text("a dog\ntwo cats on a couch\n")
    return partial(
        small_rl_recipe,
        steps=3,
        policy="trajectory",
        rewards=(RewardTerm("dark"),),
        rollout=Rollout(prompts=2, samples=4, max_tokens=5),
        drawing=Drawing(32, 32, num_timesteps=4),
        credit=Credit(rounds=2, right_groups=2),
        advantage=Advantage("grpo", "group", least_std=1e-4, clip=1.0),
        tokens_per_pack=250,
    )


# --------------------------------------------------------------------------------------------------------------- credit


@pytest.mark.parametrize(
    ("rewards", "done", "value"),
    [
        ([0.0], False, 0.0),
        ([1.0], True, 1.0),
        ([0.0], True, -0.5),  # it stopped on a wrong image
        ([0.0, 1.0], False, 1.3),
        ([1.0, 0.0], False, -0.5),
        ([1.0, 0.0, 1.0], False, 0.8),  # 1 + 0.3 - 0.5: less than staying right
        ([0.0, 0.5, 1.0], True, 1.45),  # 1 + 0.3 + 0.3 x 0.5
        ([0.0, 0.8, 0.4], False, 0.44),  # 0.4 + 0.24 - 0.2
    ],
)
def test_returns_in_numbers(rewards: list[float], done: bool, value: float) -> None:
    assert trajectory_return(rewards, done, Credit()) == pytest.approx(value)


def test_damage_that_pays_is_refused() -> None:
    Credit(rounds=6)
    with pytest.raises(ValueError, match="with 8 rounds it pays to damage"):
        Credit(rounds=8)
    with pytest.raises(ValueError, match="with 2 rounds it pays to damage"):
        Credit(rounds=2, gain=0.6)


def outcome(*rewards: float | None, done: bool = False) -> Outcome:
    return Outcome(rewards, (False,) * (len(rewards) - 1), done, Judged(rewards[-1], {}))


def test_repair_and_damage() -> None:
    found = outcome_figures(
        [outcome(0.0, 1.0), outcome(0.2, 0.0, done=True), outcome(1.0, 0.4), outcome(0.0, None)], Credit()
    )
    assert found["repair"] == 0.5 and found["damage"] == 1.0 and found["false_stop"] == pytest.approx(1 / 3)
    assert found["first"] == pytest.approx(0.4) and found["last"] == pytest.approx(1.4 / 3)
    assert "damage" not in outcome_figures([outcome(0.0, 1.0)], Credit()) and outcome_figures([], Credit()) == {}


def test_few_groups_go_on_from_right_images() -> None:
    first = [Judged(value, {}) for value in (1.0, 0.0, None, 0.7, 0.3)]
    assert chosen_groups(first, Credit(right_groups=1)) == [0, 1, 4]
    assert chosen_groups(first, Credit(right_groups=0)) == [1, 4]


def test_a_malformed_text_alone_is_punished(recipe: Make) -> None:
    """By min(A, 0) - 0.5, after scaling; other texts and the images of its trajectory keep A."""
    text = Written((), "", (1,), 0.0, True, (-1.0, -1.0))
    rounds = [Round(text, None), Round(text, None)]
    group = TrajectoryGroup(Prompt("p"), [], [rounds, rounds, rounds])
    wrong = [[True, False], [False, True], [False, False]]
    found = learned_trajectories([group], [[0.75, -0.25, None]], [wrong], recipe())
    assert [one.text_advantages for one in found] == [[-0.5, 0.75], [-0.25, -0.75]]
    assert [one.advantage for one in found] == [0.75, -0.25]
    assert learned_trajectories([group], [[0.0] * 3], [[[False] * 2] * 3], recipe()) == []
    assert len(learned_trajectories([group], [[0.0] * 3], [wrong], recipe())) == 3


# -------------------------------------------------------------------------------------------------------------- packs


def test_packs_repeat_the_rollouts(recipe: Make) -> None:
    """The ratio is 1 to the bit, and the packed forward gives the engine's probabilities, also behind second images."""
    trainer = TrajectoryTrainer(recipe(), quiet=True)
    record = trainer.train_step()
    assert record["ratio_gap"] == 0.0 and record["old_gap"] == 0.0 and 0 < record["rollout_gap"] < 2e-5
    assert record["images"] > 1.5 and record["rollout_mse"] > 0 and record["grad_norm"] > 0
    trainer = TrajectoryTrainer(recipe(minibatches=2, epochs=2, advantage=Advantage("rloo")), quiet=True)
    trainer.update = lambda factor: (0.0, False)  # type: ignore[method-assign]
    record = trainer.train_step()
    assert record["ratio_gap"] == 0.0 and record["old_gap"] == 0.0
    moved = TrajectoryTrainer(recipe(minibatches=2), quiet=True).train_step()
    assert moved["ratio_gap"] > 1e-5 and moved["old_gap"] > 0


def test_images_by_flow_grpo(recipe: Make) -> None:
    """Second images by the density of their stochastic steps, beside the texts; again the ratios are 1."""
    how = Drawing(32, 32, num_timesteps=6, learning="flow-grpo", kl=1e-3)
    record = TrajectoryTrainer(recipe(drawing=how, loss=Loss(kl=1e-3)), quiet=True).train_step()
    assert record["ratio_gap"] == record["flow_ratio_gap"] == record["flow_kl"] == record["kl"] == 0.0
    assert record["flow_rollout_gap"] < 5e-6 and record["grad_norm"] > 0


def test_siblings_share_a_first_image(recipe: Make) -> None:
    trainer = TrajectoryTrainer(recipe(credit=Credit(rounds=2, right_groups=9)), quiet=True)
    groups, outcomes, roots = trainer.begin_rounds([Prompt("a dog"), Prompt("three")], [[1, 2, 3], [4, 5, 6]], 1.0)()
    assert len(groups) == len(roots) == 2
    for group, some, root in zip(groups, outcomes, roots, strict=True):
        assert [one.rewards[0] for one in some] == [root.total] * 2 and group.prompt.thinking is not None
        for rounds, one in zip(group.siblings, some, strict=True):
            images = [r.drawn.image for r in rounds if r.drawn is not None]
            assert one.rewards[1:] == tuple(1 - float(np.asarray(image).mean()) / 255 for image in images)
            assert one.malformed == tuple(not r.text.complete for r in rounds) and len(rounds) == 2
    (a, b), _ = (group.siblings for group in groups)
    assert a[0].text.ids != b[0].text.ids


def test_each_image_has_the_advantage_of_its_trajectory(recipe: Make) -> None:
    trainer = TrajectoryTrainer(recipe(noise_copies=2, tokens_per_pack=4000), quiet=True)
    groups, outcomes, _ = trainer.begin_rounds([Prompt("a dog")], [[1, 2, 3]], 1.0)()
    malformed = [[one.malformed for one in some] for some in outcomes]
    samples = learned_trajectories(groups, [[1.0, -1.0]], malformed, trainer.recipe)
    args = (trainer.encoder, trainer.loaded.autoencoder, lambda: 0.0, trainer.loader.feed.attention)
    (pack,) = trajectory_packs(samples, trainer.recipe, *args)
    per_image = 4 * 2  # tokens of a 32 x 32 image, at two noise levels
    expected = [1.0] * per_image * 2 + [-1.0] * per_image * 2
    assert pack.flow.advantages_I[pack.flow.target_M].tolist() == expected and pack.counts("sequence")[0] == sum(
        len(one.rounds) for one in samples
    )


# ---------------------------------------------------------------------------------------------------------------- learn


TEXTS = {
    "frozen": ("vit_model", "connector", "gen"),
    "mse_weight": 0.0,
    "rollout": Rollout(2, 48, max_tokens=2),
    "steps": 10,
}
IMAGES = {
    "frozen": ("vit_model", "connector", "und", "embed_tokens"),
    "rollout": Rollout(2, 16, max_tokens=2),
    "steps": 6,
}


@pytest.mark.parametrize(("reward", "changes"), [("low", TEXTS), ("dark", IMAGES)])
def test_it_raises_the_reward(recipe: Make, tmp_path: Path, reward: str, changes: dict[str, Any]) -> None:
    """Either head alone does: texts of low bytes, and dark second images."""
    changes = {
        "credit": FREE,
        "optimizer": Optimizer(lr=3e-2, eps=1e-8, betas=(0.9, 0.95)),
        "noise_copies": 2,
    } | changes
    changes |= {"rewards": (RewardTerm(reward),), "tokens_per_pack": 3000, "save_every": 100}
    train_by_reward(recipe(**changes), quiet=True)
    lines = log(tmp_path / "run")
    last = [line["last"] for line in lines]
    assert sum(last[-3:]) - sum(last[:3]) > 3 * 0.5 * lines[0]["reward_std"], last


@pytest.mark.parametrize("changes", [{}, {"lora": Lora(rank=2, base="float32"), "loss": Loss(kl=0.1)}])
def test_resumed_is_uninterrupted(recipe: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = changes | {"steps": 2, "minibatches": 2, "evaluate": Evaluate(2, count=3)}
    whole = train_by_reward(recipe(out=str(tmp_path / "whole"), **changes), quiet=True)
    train_by_reward(recipe(stop_after=1, **changes), quiet=True)
    parts = train_by_reward(recipe(**changes), quiet=True)
    assert identical(whole, parts)
    same = ("reward", "last", "grad_norm", "held_out/last", "kl")
    for one, other in zip(log(whole.parent), log(parts.parent), strict=True):
        assert {name: one.get(name) for name in same} == {name: other.get(name) for name in same}
    assert "held_out/repair" in log(parts.parent)[0] or "held_out/damage" in log(parts.parent)[0]


def test_given_first_images_and_imitation_beside(recipe: Make, rows: Path, tmp_path: Path) -> None:
    source = TrajectoryPrompts("trajectories", (str(rows),))
    changes: dict[str, Any] = {"data": (str(rows),), "mixture": Mixture(improving_full=1.0), "prompts": source}
    train_by_reward(recipe(steps=2, tokens_per_pack=400, **changes), quiet=True)
    lines = log(tmp_path / "run")
    assert all(line["n/improving_full"] >= 1 and line["mse"] > 0 for line in lines)
    kept = [json.loads(line) for line in (tmp_path / "run" / "texts.jsonl").read_text().splitlines()]
    assert kept[0]["rewards"][0] is not None and len(kept[0]["rewards"]) >= 1


# ------------------------------------------------------------------------------------------------------------- refusals


def test_credit_is_of_trajectories(recipe: Make) -> None:
    with pytest.raises(ValueError, match="credit is for policy trajectory, not reflection"):
        recipe(policy="reflection", drawing=Drawing(), credit=Credit(damage=0.4))


def test_the_dry_run(recipe: Make) -> None:
    plan = make_plan(recipe())
    told = report(plan)
    assert not plan.problems and "trajectories per step: 8 (2 prompts x 4), up to 2 rounds" in told, told
    assert plan.flops > plan.rollout_flops > 0 and plan.memory["key-value cache"] > 0
    wrong = make_plan(recipe(drawing=Drawing(33, 32)))
    assert any("multiples of 16, got 33 x 32" in problem for problem in wrong.problems), wrong.problems
