"""Training by reward from a folder to a folder, on a model of a few thousand weights and a reward that counts bytes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from irg.cli.main import main
from irg.engine.ops import Write, Written
from irg.learning.checkpoints import checkpoints
from irg.learning.recipe import Lora, Mixture, Optimizer, Parallel
from irg.learning.rl.packs import Learned, PolicyPack, learned, policy_packs
from irg.learning.rl.prompts import Prompt, TrajectoryPrompts
from irg.learning.rl.recipe import Advantage, Evaluate, Limits, Loss, RLRecipe, Rollout
from irg.learning.rl.rewards import RewardTerm
from irg.learning.rl.rollouts import Group, roll_out
from irg.learning.rl.run import train_by_reward
from irg.learning.rl.trainer import RLTrainer
from irg.model.network.packed_attention import PackedAttention
from irg.results.trajectory import Trajectory

from .runs import identical, log, weights

Make = Callable[..., RLRecipe]


def low(prompt: Prompt, trajectory: Trajectory) -> float:
    """Share of bytes below 64: a quarter of a random model's."""
    text = trajectory.turns[-1].thinking or ""
    return sum(ord(letter) < 64 for letter in text) / max(1, len(text))


def broken(prompt: Prompt, trajectory: Trajectory) -> float:
    raise ConnectionError("nobody there")


@pytest.fixture(autouse=True)
def plugins(add_rewards: Callable[..., None]) -> None:
    add_rewards(low=low, broken=broken)


@pytest.fixture
def recipe(small_rl_recipe: Make) -> Make:
    """Three prompts a step, four texts each."""
    return partial(small_rl_recipe, rollout=Rollout(prompts=3, samples=4, max_tokens=6), tokens_per_pack=120)


SAME = ("reward", "entropy", "length", "policy_loss", "grad_norm", "rollout_gap", "kl")


# --------------------------------------------------------------------------------------------------------------- ratios


def test_the_ratio_before_the_first_update_is_one(recipe: Make) -> None:
    """To the bit, with one update and, if weights stay, in every minibatch and epoch; the engine agrees to rounding."""
    once = RLTrainer(recipe(), quiet=True).train_step()
    assert once["ratio_gap"] == 0.0 and 0 < once["rollout_gap"] < 1e-5
    trainer = RLTrainer(recipe(minibatches=2, epochs=2), quiet=True)
    trainer.update = lambda factor: (0.0, False)  # type: ignore[method-assign]
    assert trainer.train_step()["ratio_gap"] == 0.0
    moving = RLTrainer(recipe(minibatches=2), quiet=True).train_step()
    assert moving["ratio_gap"] > 1e-4
    low = RLTrainer(recipe(minibatches=2, parallel=Parallel(precision="bfloat16")), quiet=True).train_step()
    assert low["ratio_gap"] > 1e-4


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_reflections_see_the_first_turn_as_the_engine_does(recipe: Make, rows: Path, temperature: float) -> None:
    """System prompt, prompt, thinking, an image read twice: the packed forward gives the engine's probabilities."""
    how = Rollout(prompts=6, samples=3, max_tokens=5, temperature=temperature)
    source = TrajectoryPrompts("trajectories", (str(rows),))
    trainer = RLTrainer(recipe(policy="reflection", prompts=source, rollout=how, tokens_per_pack=600), quiet=True)
    record = trainer.train_step()
    assert record["ratio_gap"] == 0.0 and record["rollout_gap"] < 2e-5 and record["grad_norm"] > 0
    groups = trainer.begin_texts(source.draw(0, 0, 1), [[1, 2]], 1.0)()
    trajectory = groups[0].trajectory(groups[0].texts[0], "tiny")
    assert len(trajectory.turns) == 2 and trajectory.turns[0].given and trajectory.image is not None
    assert trajectory.turns[1].thinking == groups[0].texts[0].text


def test_a_reflection_needs_a_first_turn(recipe: Make) -> None:
    with pytest.raises(ValueError, match="a reflection looks at a first image: use kind trajectories"):
        RLTrainer(recipe(policy="reflection"), quiet=True)


# ---------------------------------------------------------------------------------------------------------------- learn


@pytest.mark.parametrize(
    ("advantage", "more"),
    [
        (Advantage("rloo"), {}),
        (Advantage("grpo", "group"), {"minibatches": 2, "loss": Loss("sequence", entropy=0.01)}),
    ],
)
def test_it_raises_the_reward(recipe: Make, tmp_path: Path, advantage: Advantage, more: dict[str, Any]) -> None:
    """Two bytes a text, each worth a half if it is below 64: from a quarter of all to more in a few steps. How far
    depends on the seed: 0.46 to 0.98 in six runs."""
    changes: dict[str, Any] = {"rollout": Rollout(prompts=2, samples=64, max_tokens=2), "tokens_per_pack": 3000}
    changes |= {"optimizer": Optimizer(lr=3e-2, eps=1e-8, betas=(0.9, 0.95)), "advantage": advantage}
    train_by_reward(recipe(steps=8, save_every=100, **changes, **more), quiet=True)
    lines = log(tmp_path / "run")
    assert lines[0]["reward"] < 0.35 and lines[-1]["reward"] > lines[0]["reward"] + 0.15
    assert lines[-1]["entropy"] < lines[0]["entropy"] - 0.5


def test_a_penalty_on_divergence_keeps_the_policy_near(recipe: Make, tmp_path: Path) -> None:
    """It is 0 to the bit in the first step, and stays smaller the more it weighs."""
    for name, kl in (("free", 1e-9), ("held", 5.0)):
        train_by_reward(recipe(out=str(tmp_path / name), steps=6, loss=Loss(kl=kl), save_every=100), quiet=True)
    free, held = log(tmp_path / "free"), log(tmp_path / "held")
    assert free[0]["kl"] == held[0]["kl"] == 0.0
    assert 0 < held[-1]["kl"] < 0.5 * free[-1]["kl"]


def test_adapters_are_held_against_the_model_without_them(recipe: Make, tmp_path: Path) -> None:
    lora = Lora(rank=4, base="float32")
    train_by_reward(recipe(lora=lora, loss=Loss(kl=0.1), steps=3), quiet=True)
    lines = log(tmp_path / "run")
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] > 0 and all(line["ratio_gap"] == 0 for line in lines)


def test_the_generation_side_is_frozen(recipe: Make, folder: Path) -> None:
    before = weights(folder)
    after = weights(train_by_reward(recipe(steps=2, frozen=("vit_model", "connector", "gen")), quiet=True))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("moe_gen" in n or n.startswith(("vae2llm", "llm2vae", "time_embedder")) for n in changed)


def test_imitation_goes_on_beside(recipe: Make, rows: Path, tmp_path: Path) -> None:
    """A supervised pack with every update: its loss falls, and weight 0 is as none."""
    mixture = Mixture(initial_full=1.0)
    changes: dict[str, Any] = {"data": (str(rows),), "mixture": mixture, "steps": 8, "save_every": 100}
    train_by_reward(recipe(**changes), quiet=True)
    lines = log(tmp_path / "run")
    assert lines[-1]["ce"] < 0.9 * lines[0]["ce"] and lines[0]["n/initial_full"] >= 1
    assert lines[0]["loss"] == pytest.approx(lines[0]["policy_loss"] + lines[0]["ce"] + lines[0]["mse"], abs=1e-4)
    none = train_by_reward(recipe(out=str(tmp_path / "none"), steps=2), quiet=True)
    zero = train_by_reward(recipe(out=str(tmp_path / "zero"), **changes | {"steps": 2, "supervised_weight": 0.0}), True)
    for name, tensor in weights(none).items():
        assert torch.allclose(tensor, weights(zero)[name], atol=1e-6), name


# --------------------------------------------------------------------------------------------------------------- masks


def written(ids: tuple[int, ...], complete: bool = True) -> Written:
    return Written((), "", ids, 0.0, complete, (-1.0,) * (len(ids) + complete))


def packs_of(trainer: RLTrainer, samples: list[Learned]) -> list[PolicyPack]:
    return policy_packs(samples, trainer.recipe, trainer.config, PackedAttention)


def test_what_the_model_did_not_choose_has_no_weight(recipe: Make) -> None:
    trainer = RLTrainer(recipe(), quiet=True)
    (group,) = trainer.begin_texts([Prompt("ab")], [[1, 2]], 1.0)()
    texts = [written((5, 6, 7), complete=False), written((8,))]
    for average, first in (("token", 1.0), ("sequence", 1 / 3)):
        trainer.recipe = recipe(loss=Loss(average))  # type: ignore[arg-type]
        (pack,) = packs_of(trainer, [Learned(group, texts, [0.5, -0.5])])
        assert pack.pack.labels_L.tolist() == [5, 6, 7, 257, 8, 257]
        assert pack.weights_L.tolist() == pytest.approx([first] * 3 + [0.0] + [1.0 if average == "token" else 0.5] * 2)
        assert pack.advantages_L.tolist() == [0.5] * 4 + [-0.5] * 2
        assert pack.counts(average) == ((5, 0) if average == "token" else (2, 0))


def test_masked_texts_and_equal_groups_are_left_out() -> None:
    group = Group(Prompt("p"), [], [written((1,)), written((2,)), written((3,))])
    (kept,) = learned([group, group, group], [[0.5, None, -0.5], [0.0, 0.0, None], [None] * 3])
    assert [text.ids for text in kept.texts] == [(1,), (3,)] and kept.advantages == [0.5, -0.5]
    assert len(learned([group], [[0.0] * 3], skip_equal=False)) == 1


def test_packs_are_filled_in_order_and_change_no_gradient(recipe: Make) -> None:
    """One pack, or many: the same sum, each text behind its own prefix."""
    gradients = []
    for room in (60, 4000):
        trainer = RLTrainer(recipe(tokens_per_pack=room), quiet=True)
        trainer.update = lambda factor: (0.0, False)  # type: ignore[method-assign]
        trainer.train_step()
        gradients.append([p.grad for p in trainer.state.weights])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)  # type: ignore[arg-type]


def test_a_reward_that_always_fails_stops_the_run(recipe: Make, folder: Path, tmp_path: Path) -> None:
    terms = (RewardTerm("low"), RewardTerm("broken"))
    trainer = RLTrainer(recipe(rewards=terms, limits=Limits(malformed=0.0, patience=2)), quiet=True)
    with pytest.warns(UserWarning, match="cannot score 12 of 12 texts, such as: broken: nobody there"):
        record = trainer.train_step()
    assert record["reward_failed"] == 1.0 and record["grad_norm"] == 0.0 and record["reward/low"] > 0
    start = weights(folder)
    assert all(torch.equal(p, start[name]) for name, p in trainer.state.named_weights.items())
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"1 of all texts .* nobody there.* in 2 steps"):
        trainer.train_step()


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("imitating", [False, True])
def test_resumed_is_uninterrupted(recipe: Make, rows: Path, tmp_path: Path, imitating: bool) -> None:
    """Rollouts, rewards and updates have the same bits."""
    changes: dict[str, Any] = {"minibatches": 2, "loss": Loss(kl=0.05), "evaluate": Evaluate(2, count=3)}
    if imitating:
        changes |= {"data": (str(rows),), "mixture": Mixture(initial_full=0.5, direct=0.5)}
    whole = train_by_reward(recipe(out=str(tmp_path / "whole"), **changes), quiet=True)
    train_by_reward(recipe(stop_after=2, **changes), quiet=True)
    parts = train_by_reward(recipe(**changes), quiet=True)
    assert identical(whole, parts)
    for one, other in zip(log(whole.parent), log(parts.parent), strict=True):
        assert {name: one.get(name) for name in SAME} == {name: other.get(name) for name in SAME}
    lines = log(parts.parent)
    assert ["held_out_reward" in line for line in lines] == [True, False, True, False, True]


KILLED = """
import os, sys
from irg import recipes, registry
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.run import train_by_reward
calls = 0
def low(prompt, trajectory):
    global calls
    calls += 1
    if calls == 16:
        os.kill(os.getpid(), 9)
    text = trajectory.turns[-1].thinking or ""
    return sum(ord(letter) < 64 for letter in text) / max(1, len(text))
usual = registry.load
registry.load = lambda group, name: low if group == registry.REWARDS else usual(group, name)
train_by_reward(recipes.load(RLRecipe, sys.argv[1]), quiet=True)
"""


def test_killed_is_uninterrupted(recipe: Make, tmp_path: Path) -> None:
    """kill -9 in the midst of the third step's rewards; what is there then goes on to the same bits."""
    small = recipe(rollout=Rollout(prompts=2, samples=3, max_tokens=5))
    (tmp_path / "recipe.yaml").write_text(json.dumps(asdict(small)))
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "recipe.yaml")]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run(command, env=os.environ | threads).returncode == -signal.SIGKILL
    assert checkpoints(tmp_path / "run") and not (tmp_path / "run" / "model").exists()
    parts = train_by_reward(small, quiet=True)
    whole = train_by_reward(replace(small, out=str(tmp_path / "whole")), quiet=True)
    assert len(log(tmp_path / "whole")) == 4 < len(log(tmp_path / "run")) + 2
    assert identical(whole, parts)


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_tells_recipes_apart(
    recipe: Make, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("a dog\n")
    file = tmp_path / "rl.yaml"
    prompts = {"kind": "file", "path": str(tmp_path / "p.txt")}
    plain = {"kind": "rl", "model": str(folder), "out": str(tmp_path / "out"), "steps": 1, "prompts": prompts}
    small = {"rollout": {"prompts": 1, "samples": 2, "max_tokens": 3}, "limits": {"malformed": 0}}
    file.write_text(json.dumps(plain | small | {"rewards": [{"name": "low"}]}))
    assert main(["train", str(file), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "texts per step: 2 (1 prompts x 2)" in told and "rewards: 1 x low" in told and "no problems" in told
    assert not (tmp_path / "out").exists()
    assert main(["train", str(file), "--dry-run", "--prompts.path", "nowhere", "--rewards", "[{name: lov}]"]) == 2
    told = capsys.readouterr().out
    assert "no prompts could be read: they are guessed" in told and "operations per step" in told
    assert "PROBLEM: prompts: nowhere can't be read" in told and "PROBLEM: no plug-in 'lov'" in told
    assert main(["train", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"Written to {tmp_path / 'out' / 'model'}\n")
    assert (tmp_path / "out" / "model").is_dir() and len(log(tmp_path / "out")) == 1
    kept = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert len(kept) == 2 and kept[0]["reward"] >= kept[1]["reward"] and kept[0]["prompt"] == "a dog"


def test_rollouts_are_those_of_separate_requests(recipe: Make) -> None:
    """What is packed and learned from is what the model writes to the same prompt and seed alone."""
    trainer = RLTrainer(recipe(), quiet=True)
    write = Write(6, 1.0, logprobs=True)
    prompts, seeds = [Prompt("a dog"), Prompt("two")], [[1, 2], [3, 4]]
    args = (trainer.model, trainer.loaded.autoencoder, trainer.encoder)
    together = roll_out(*args, prompts, write, seeds)
    in_turn = roll_out(*args, prompts, write, seeds, at_once=1)
    assert [[t.ids for t in g.texts] for g in in_turn] == [[t.ids for t in g.texts] for g in together]
    for group, own in zip(together, seeds, strict=True):
        for text, seed in zip(group.texts, own, strict=True):
            ((alone,),) = [one.texts for one in roll_out(*args, [group.prompt], write, [[seed]])]
            assert alone.ids == text.ids and alone.logprobs == pytest.approx(text.logprobs, abs=1e-5)
