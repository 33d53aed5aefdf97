"""Rollout workers: a run's bits don't depend on how many there are. Once with a double of Ray, once with Ray itself."""

import importlib.util
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from irg.learning.combinations import Run, problems
from irg.learning.recipe import Lora, Optimizer, Parallel
from irg.learning.rl.plan import make_plan, report
from irg.learning.rl.prompts import FilePrompts
from irg.learning.rl.recipe import Advantage, Credit, Drawing, Evaluate, Limits, RLRecipe, Rollout
from irg.learning.rl.rewards import RewardTerm
from irg.learning.rl.run import train_by_reward, trainer_of
from irg.learning.rl.trainer import RLTrainer

from .runs import log
from .worker import low

HAS_RAY = importlib.util.find_spec("ray") is not None
IMAGES = Drawing(32, 32, num_timesteps=4)
POLICIES: dict[str, dict[str, Any]] = {
    "thinking in bfloat16": {"parallel": Parallel(precision="bfloat16")},
    "drawing": {"policy": "drawing", "drawing": IMAGES, "rollout": Rollout(3, 2, at_once=1), "ema": 0.5},
    "trajectory, adapters": {
        "policy": "trajectory",
        "drawing": IMAGES,
        "credit": Credit(right_groups=3),
        "lora": Lora(rank=2, base="float32"),
    },
}


class ActorDied(Exception):
    """What Ray raises when a worker has ended."""


class RayDouble(SimpleNamespace):
    """As much of Ray as the workers use, in this process. What is sent is pickled, as Ray does."""

    exceptions = SimpleNamespace(RayActorError=ActorDied)

    def __init__(self) -> None:
        self.actors: list[Any] = []
        self.calls: list[tuple[int, str]] = []
        self.broken = False

    def is_initialized(self) -> bool:
        return True

    def remote(self, **resources: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda *args: self._start(kind, args))

    def _start(self, kind: type, args: Any) -> Any:
        number = len(self.actors)
        self.actors.append(kind(*pickle.loads(pickle.dumps(args))))

        def call(name: str, *args: Any) -> Any:
            self.calls.append((number, name))
            return getattr(self.actors[number], name)(*pickle.loads(pickle.dumps(args)))

        methods = {n: SimpleNamespace(remote=lambda *args, n=n: call(n, *args)) for n in ("load", "make")}
        return SimpleNamespace(number=number, **methods)

    def put(self, value: Any) -> Any:
        return value

    def get(self, results: list[Any]) -> list[Any]:
        if self.broken:
            raise ActorDied("killed")
        return pickle.loads(pickle.dumps(results))

    def kill(self, actor: Any) -> None:
        self.calls.append((actor.number, "kill"))


def use(double: RayDouble, monkeypatch: pytest.MonkeyPatch) -> RayDouble:
    """Put a double in the place of Ray."""
    monkeypatch.setitem(sys.modules, "ray", double)
    monkeypatch.setattr("irg.learning.combinations._has_ray", lambda: True)
    return double


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> RayDouble:
    """A double in the place of Ray."""
    return use(RayDouble(), monkeypatch)


@pytest.fixture
def recipe(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RLRecipe]:
    """A small recipe with so many workers."""
    monkeypatch.setattr("irg.registry.load", lambda group, name: low)
    (tmp_path / "p.txt").write_text("a dog\ntwo cats on a couch\nthree\n")

    def make(workers: int, **changes: Any) -> RLRecipe:
        made = RLRecipe(
            model=str(folder),
            out=str(tmp_path / f"{workers}"),
            steps=2,
            prompts=FilePrompts("file", str(tmp_path / "p.txt")),
            rewards=(RewardTerm("low"),),
            rollout=Rollout(prompts=3, samples=3, max_tokens=5, at_once=1),
            advantage=Advantage("grpo", "step"),
            optimizer=Optimizer(lr=1e-2, eps=1e-8),
            evaluate=Evaluate(2, count=2),
            limits=Limits(malformed=0.0),
        )
        made = replace(made, **changes)
        return replace(made, rollout=replace(made.rollout, workers=workers))

    return make


STOCHASTIC = replace(IMAGES, learning="flow-grpo")
AHEAD: dict[str, dict[str, Any]] = {
    "thinking": {},
    "drawing": {"policy": "drawing", "drawing": STOCHASTIC, "rollout": Rollout(3, 2, at_once=1)},
    "drawing by NFT": {"policy": "drawing", "drawing": IMAGES, "rollout": Rollout(3, 2, at_once=1), "ema": 0.5},
    "trajectory": {"policy": "trajectory", "drawing": STOCHASTIC, "credit": Credit(right_groups=3)},
}


@pytest.fixture
def ahead(recipe: Callable[..., RLRecipe]) -> Callable[..., RLRecipe]:
    """The same with rollouts that are made ahead."""

    def make(workers: int, policy: str = "thinking", **changes: Any) -> RLRecipe:
        made = recipe(workers, **{"steps": 4, "save_every": 3, **AHEAD[policy], **changes})
        return replace(made, out=f"{made.out}-ahead", rollout=replace(made.rollout, ahead=1))

    return make


def outcome(recipe: RLRecipe) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights, and rewards by step, held-out ones at the end. (Of a step that was taken twice the last line counts.)"""
    train_by_reward(recipe, quiet=True)
    lines = list({line["step"]: line for line in log(Path(recipe.out))}.values())
    rewards = [line.get("reward", 0.0) for line in lines] + [lines[-1]["held_out_reward"]]
    return load_file(Path(recipe.out) / "model" / "weights.safetensors"), rewards


def same(one: tuple[dict[str, torch.Tensor], list[float]], other: tuple[dict[str, torch.Tensor], list[float]]) -> bool:
    return one[1] == other[1] and all(torch.equal(one[0][name], other[0][name]) for name in one[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_workers_make_the_rollouts_of_the_learner(ray: RayDouble, recipe: Callable[..., RLRecipe], policy: str) -> None:
    changes = POLICIES[policy]
    alone = outcome(recipe(0, **changes))
    assert not ray.actors
    assert same(alone, outcome(recipe(2, **changes)))
    made = [number for number, name in ray.calls if name == "make"]
    assert set(made) == {0, 1} and made.count(0) > made.count(1)  # three prompts a step, in turns
    assert [ray.calls.count((number, "load")) for number in (0, 1)] == [3, 3]  # two steps, and before and after them
    assert ray.calls[-2:] == [(0, "kill"), (1, "kill")]


def test_the_dry_run_counts_their_memory_apart(ray: RayDouble, recipe: Callable[..., RLRecipe]) -> None:
    alone, apart = make_plan(recipe(0)), make_plan(recipe(2))
    assert not apart.problems and not ray.actors
    assert alone.memory["key-value cache"] > 0 and "key-value cache" not in apart.memory
    assert any("rollouts are made by workers (2) with 0.0 GB each" in note for note in apart.notes)
    assert apart.flops == alone.flops - alone.rollout_flops and apart.rollout_flops == alone.rollout_flops > 0
    assert "% of the operations below" in report(alone)
    assert f"rollouts: {apart.rollout_flops:.3e} operations a step, of all workers" in report(apart)


def test_a_worker_that_ends_is_told(ray: RayDouble, recipe: Callable[..., RLRecipe]) -> None:
    ray.broken = True
    with pytest.raises(ValueError, match=r"a rollout worker ended \(killed\); start the run again to go on"):
        train_by_reward(recipe(1), quiet=True)


def test_every_rank_is_told_of_a_worker_that_ended() -> None:
    """Else those that wait for its rollouts would wait for ever."""
    ended, exchanged = ValueError("a rollout worker ended"), list[Any]()

    def results(tasks: Any) -> Any:
        raise ended

    for workers in (SimpleNamespace(results=results), None):  # of the main process, and of another
        ranks = SimpleNamespace(gather=lambda value: exchanged.append(value) or [ended, None])
        with pytest.raises(ValueError, match="a rollout worker ended"):
            RLTrainer._results(SimpleNamespace(workers=workers, ranks=ranks), [])  # type: ignore[arg-type]
    assert exchanged == [ended, None]


def test_what_workers_need(recipe: Callable[..., RLRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"rollout\.workers needs rollout\.at_once"):
        Rollout(workers=2)
    monkeypatch.setattr("irg.learning.combinations._has_ray", lambda: False)
    assert problems(Run(recipe(1), 1, False)) == ["rollout.workers needs ray: pip install 'irg[scale]'"]
    assert problems(Run(recipe(0), 1, False)) == []


# ---------------------------------------------------------------------------------------------------------------- ahead


def test_rollouts_are_begun_before_the_last_step_is_learned_from(
    ray: RayDouble, ahead: Callable[..., RLRecipe]
) -> None:
    """With the weights before its update, but for the step after a checkpoint."""
    trainer = RLTrainer(ahead(1, rollout=Rollout(3, 3, max_tokens=5, at_once=3)), quiet=True)
    learn, off_policy = trainer.learn, []

    def learning(batches: Any) -> dict[str, float]:
        ray.calls.append((0, "learn"))
        off_policy.append(trainer.off_policy)
        return learn(batches)

    trainer.learn = learning  # type: ignore[method-assign]
    for _ in range(4):
        trainer.train_step()
    steps = (["load", "make", "make", "learn"], ["load", "make", "learn"], ["learn"], ["load", "make", "learn"])
    assert [name for _, name in ray.calls] == [name for step in steps for name in step]
    assert off_policy == [False, True, True, False]


@pytest.mark.parametrize("policy", AHEAD)
def test_the_ratio_is_to_the_weights_that_made_the_rollouts(
    ray: RayDouble, ahead: Callable[..., RLRecipe], policy: str
) -> None:
    """In the second step it is not 1, but to rounding it would be if the first step's update were taken back. (So it is
    with NFT's distance from the old policy.)"""
    figures = {"thinking": ["ratio_gap"], "drawing": ["flow_ratio_gap"], "drawing by NFT": ["old_gap"]}
    names, gaps = figures.get(policy, ["ratio_gap", "flow_ratio_gap"]), []
    for taken_back in (False, True):
        trainer = trainer_of(ahead(1, policy))(ahead(1, policy), quiet=True)
        start = {name: p.detach().clone() for name, p in trainer.state.named_weights.items()}
        first = trainer.train_step()
        assert all(first[name] == 0.0 for name in names) and first["grad_norm"] > 0
        if taken_back:
            trainer.model.load_state_dict(start, strict=False)
        second = trainer.train_step()
        gaps.append([second[name] for name in names])
        assert second["wait"] > 0 and "rollout_seconds" not in second and second.get("rollout_gap", 0.0) == 0.0
    assert all(off > 1e-3 and 0 <= on < 1e-4 for off, on in zip(*gaps, strict=True)), gaps


def test_evaluation_has_the_newest_weights(ray: RayDouble, ahead: Callable[..., RLRecipe]) -> None:
    trainer = RLTrainer(ahead(1, evaluate=Evaluate(1, count=3, temperature=0.0)), quiet=True)
    trainer.train_step()  # leaves rollouts of the next step with the workers
    found = trainer.evaluate()
    trainer.recipe = replace(trainer.recipe, rollout=Rollout(3, 3, max_tokens=5, at_once=1))
    assert trainer.evaluate() == found


class Killed(Exception):
    """As a kill: nothing is saved."""


@pytest.mark.parametrize("policy", ["thinking", "trajectory"])
def test_resumed_is_uninterrupted_whatever_the_number_of_workers(
    ray: RayDouble, ahead: Callable[..., RLRecipe], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """A run ends while rollouts that were made ahead are learned from, and goes on from its checkpoint of step 2, with
    another worker."""
    small = {"save_every": 2, "evaluate": Evaluate(2, count=2)}
    whole, broken = outcome(ahead(2, policy, **small)), ahead(1, policy, **small)
    trainer = trainer_of(broken)
    learn = trainer.learn

    def killed(self: Any, batches: Any) -> dict[str, float]:
        if self.state.step == 3:
            assert self.off_policy
            raise Killed
        return learn(self, batches)

    monkeypatch.setattr(trainer, "learn", killed)
    with pytest.raises(Killed):
        train_by_reward(broken, quiet=True)
    monkeypatch.setattr(trainer, "learn", learn)
    assert same(whole, outcome(replace(broken, rollout=replace(broken.rollout, workers=2))))


def test_what_making_them_ahead_needs(ray: RayDouble, ahead: Callable[..., RLRecipe]) -> None:
    plan = make_plan(ahead(1, "drawing by NFT"))
    assert not plan.problems and plan.memory["policy that drew ahead"] == 4 * plan.trained
    assert "policy that drew ahead" not in make_plan(ahead(1, "drawing")).memory
    with pytest.raises(ValueError, match=r"rollout\.ahead needs rollout\.workers"):
        Rollout(ahead=1)
    with pytest.raises(ValueError, match=r"rollout\.ahead must be 0 or 1"):
        Rollout(workers=1, at_once=1, ahead=2)
    with pytest.raises(ValueError, match=r"rollout\.ahead has no use where every step ends with a checkpoint"):
        ahead(1, save_every=1)
    with pytest.raises(ValueError, match=r"rollout\.ahead with policy trajectory needs drawing\.learning flow-grpo"):
        ahead(1, "trajectory", drawing=IMAGES)


# ------------------------------------------------------------------------------------------------------------------ Ray


@pytest.mark.ray
@pytest.mark.skipif(not HAS_RAY, reason="needs ray: the extra scale")
def test_two_workers_of_ray(
    recipe: Callable[..., RLRecipe], ahead: Callable[..., RLRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make the rollouts of the learner and, ahead, those of a worker in its process."""
    assert same(outcome(recipe(0)), outcome(recipe(2)))
    beside = outcome(ahead(2))
    use(RayDouble(), monkeypatch)
    assert same(outcome(ahead(1)), beside)
