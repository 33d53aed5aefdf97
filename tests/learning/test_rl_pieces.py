"""Learning by reward, piece by piece: rewards, advantages, the loss, limits, prompts."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from irg import recipes, registry
from irg.learning.rl.advantages import advantages
from irg.learning.rl.limits import LimitGuard
from irg.learning.rl.loss import k3, policy_losses, token_scores
from irg.learning.rl.prompts import FilePrompts, Prompt
from irg.learning.rl.recipe import Advantage, Limits, Loss, RLRecipe
from irg.learning.rl.rewards import Rewards, RewardTerm, Score
from irg.model.weights.checkpoint import LoadedModel
from irg.results.trajectory import Trajectory, Turn


def said(text: str, prompt: str = "p") -> Trajectory:
    return Trajectory(prompt, "think", 0, "tiny", {}, [Turn(text, None)])


# ----------------------------------------------------------------------------------------------------------- advantages

FINE = [[False] * 4]


def test_rloo_is_the_reward_minus_the_mean_of_the_others() -> None:
    ((a, b, c, d),) = advantages([[1.0, 0.0, 0.0, 0.5]], FINE, Advantage("rloo"))
    assert (a, b, c, d) == pytest.approx((1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3))


def test_grpo_divides_by_the_groups_deviation() -> None:
    ((a, b),) = advantages([[3.0, 1.0]], [[False] * 2], Advantage("grpo", "group"))
    assert (a, b) == pytest.approx((1.0, -1.0))
    ((a, b),) = advantages([[3.0, 1.0]], [[False] * 2], Advantage("grpo", "group", least_std=2.0))
    assert (a, b) == pytest.approx((0.5, -0.5))


def test_scaling_by_the_step_keeps_the_groups_proportions() -> None:
    wide, narrow = advantages([[4.0, 0.0], [1.0, 1.0]], [[False] * 2] * 2, Advantage("grpo", "step"))
    assert wide == pytest.approx([2 / math.sqrt(2), -2 / math.sqrt(2)]) and narrow == [0.0, 0.0]


def test_masked_rewards_count_nowhere() -> None:
    ((a, b, c, d),) = advantages([[1.0, None, 0.0, None]], FINE, Advantage("rloo"))
    assert (a, b, c, d) == (1.0, None, -1.0, None)
    assert advantages([[1.0, None]], [[False] * 2], Advantage()) == [[None, None]]


def test_equal_rewards_have_no_advantage_to_the_bit() -> None:
    assert advantages([[0.1] * 7], [[False] * 7], Advantage("rloo", "group")) == [[0.0] * 7]


def test_malformed_texts_are_never_encouraged() -> None:
    """The others keep their advantages; bounds are applied before."""
    how = Advantage("grpo", clip=1.0, malformed_penalty=0.5)
    ((a, b, c),) = advantages([[9.0, 0.0, 0.0]], [[True, True, False]], how)
    assert (a, b, c) == (-0.5, -1.5, -1.0)


# ----------------------------------------------------------------------------------------------------------------- loss


def test_the_gradient_by_hand() -> None:
    """At ratio 1 the loss has the policy gradient: -A d log p; beyond a bound, none where it would go further."""
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    old = torch.tensor([-1.0, -1.5, -1.5, -0.5])  # ratios 1, e^0.5 (above 1.2) twice, e^-0.5 (below 0.8)
    wanted = [2.0, 2.0, -2.0, -2.0]
    scored = policy_losses(logprobs, torch.zeros(4), old, torch.tensor(wanted), None, Loss(clip_low=0.2, clip_high=0.2))
    scored.loss_L.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-2.0, 0.0, 2 * math.exp(0.5), 0.0])
    assert scored.clipped_L.tolist() == [False, True, False, True]
    assert scored.loss_L.tolist() == pytest.approx([-2.0, -2.4, 2 * math.exp(0.5), 1.6])


def test_divergence_and_entropy_enter_with_their_weights() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference, entropy = torch.tensor([-1.0, -1.0]), torch.tensor([0.5, 0.25])
    how = Loss(clip_low=0.0, clip_high=0.0, kl=0.1, entropy=0.2)
    scored = policy_losses(logprobs, entropy, logprobs.detach(), torch.zeros(2), reference, how)
    assert scored.loss_L.tolist() == pytest.approx([-0.1, 0.1 * (math.e - 2) - 0.05])
    scored.loss_L.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([0.0, 0.1 * (1 - math.e)])


def test_the_divergence_is_right_on_average() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    mean = (p * k3(p.log(), q.log())).sum()
    assert mean.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


def test_chunks_of_logits_change_nothing(tiny_loaded: LoadedModel) -> None:
    model, generator = tiny_loaded.model, torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 32, generator=generator).requires_grad_()
    labels = torch.arange(7)
    found = []
    for limit in (1 << 20, 3 * model.config.decoder.vocab_size):
        logprobs, entropy = token_scores(model, hidden, labels, 0.7, limit)
        (gradient,) = torch.autograd.grad((logprobs * labels).sum() + entropy.sum(), hidden)
        found.append((logprobs, entropy, gradient))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    softmax = (model.logits(hidden) / 0.7).softmax(-1)
    assert found[0][0].exp().tolist() == pytest.approx(softmax[labels, labels].tolist(), abs=1e-6)
    assert found[0][1].tolist() == pytest.approx(torch.special.entr(softmax).sum(-1).tolist(), abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- rewards


def length(prompt: Prompt, trajectory: Trajectory) -> float:
    """Long texts."""
    return float(len(trajectory.turns[-1].thinking or ""))


@dataclass(frozen=True)
class Holds:
    """A letter."""

    letter: str
    fails: bool = False

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        text = trajectory.turns[-1].thinking or ""
        if self.fails and "!" in text:
            raise RuntimeError("no line")
        share = text.count(self.letter) / max(1, len(text))
        return Score(share, {"letters": float(text.count(self.letter))}, f"{share:.0%}", malformed="?" in text)


class Many:
    """Ranks within the step."""

    def __init__(self, *results: Any) -> None:
        self.results = results

    def scores(self, prompts: Any, trajectories: Any) -> list[Any]:
        return list(self.results)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rewards by name, as if packages had registered them."""
    known: dict[str, Any] = {"length": length, "holds": Holds}
    real = registry.load

    def load(group: str, name: str) -> Any:
        return known[name] if group == registry.REWARDS and name in known else real(group, name)

    monkeypatch.setattr(registry, "load", load)
    return known


def judge(terms: list[RewardTerm], *texts: str) -> list[Any]:
    return Rewards(terms).judge([Prompt("p")] * len(texts), [said(text) for text in texts])


def test_the_weighted_sum(plugins: Mapping[str, Any]) -> None:
    one, two = judge([RewardTerm("length", 0.1), RewardTerm("holds", 2.0, {"letter": "a"})], "ab", "aa?")
    assert one.total == pytest.approx(0.2 + 1.0) and two.total == pytest.approx(0.3 + 4 / 3)
    assert (one.malformed, two.malformed) == (False, True)
    assert one.figures() == {"reward/length": 2.0, "reward/holds": 0.5, "reward/holds/letters": 1.0}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, None, "1", True])
def test_what_is_no_finite_number_masks_the_text(plugins: dict[str, Any], wrong: Any) -> None:
    plugins["odd"] = lambda prompt, trajectory: wrong
    (one,) = judge([RewardTerm("length"), RewardTerm("odd")], "ab")
    assert one.total is None and one.failure.startswith("odd: ") and set(one.scores) == {"length"}


def test_a_reward_that_raises_masks_only_its_text(plugins: Mapping[str, Any]) -> None:
    one, two = judge([RewardTerm("holds", 1.0, {"letter": "a", "fails": True})], "a!", "ab")
    assert (one.total, one.failure) == (None, "holds: no line") and two.total == 0.5


def test_a_reward_may_score_a_step_at_once(plugins: dict[str, Any]) -> None:
    plugins["many"] = Many(1.0, ValueError("lost"), Score(0.25))
    assert [one.total for one in judge([RewardTerm("many")], "a", "b", "c")] == [1.0, None, 0.25]
    plugins["many"] = Many(1.0)
    assert [one.failure for one in judge([RewardTerm("many")], "a", "b")] == ["many: 1 scores for 2 trajectories"] * 2


def test_options_are_strict(plugins: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rewards.holds.options.leter: unknown field \(did you mean 'letter'"):
        RewardTerm("holds", 1.0, {"leter": "a"}).load()
    with pytest.raises(ValueError, match=r"rewards.length: it is a plain function and takes no options"):
        RewardTerm("length", 1.0, {"x": 1}).load()
    with pytest.raises(ValueError, match=r"no plug-in 'lenght' in irg\.rewards"):
        RewardTerm("lenght").load()


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_limit_must_be_passed_several_times_in_a_row() -> None:
    guard = LimitGuard(Limits(reward_failures=0.1, entropy=0.2, patience=2))
    guard.check({"reward_failed": 0.5, "entropy": 1.0})
    guard.check({"reward_failed": 0.0, "entropy": 0.1})
    resumed = LimitGuard(guard.limits)
    resumed.load(json.loads(json.dumps(guard.state())))
    with pytest.raises(ValueError, match=r"0.15 nats of entropy a token, and limits.entropy is 0.2: passed in 2 steps"):
        resumed.check({"reward_failed": 0.5, "entropy": 0.15})
    guard.check({"reward_failed": 0.5, "entropy": 0.3})
    with pytest.raises(ValueError, match=r"0.4 of all texts have a reward that failed \(the last: no line\)"):
        guard.check({"reward_failed": 0.4, "entropy": 0.3}, "no line")
    alike = LimitGuard(Limits(equal_groups=0.9, patience=1))
    alike.check({"equal_groups": 0.9})
    with pytest.raises(ValueError, match=r"1 of all groups have equal rewards, and limits.equal_groups is 0.9"):
        alike.check({"equal_groups": 1.0})


# -------------------------------------------------------------------------------------------------- prompts and recipes


def test_prompts_of_a_file_come_in_a_new_order_every_time_through(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('a dog\n\n{"prompt": "two cats", "count": 2}\nthree\n{"prompt": "four"}\n')
    source = FilePrompts("file", str(file))
    epochs = [[prompt for step in (2 * e, 2 * e + 1) for prompt in source.draw(7, step, 2)] for e in range(4)]
    assert all(sorted(p.text for p in epoch) == ["a dog", "four", "three", "two cats"] for epoch in epochs)
    assert len({tuple(p.text for p in epoch) for epoch in epochs}) > 1
    assert source.draw(7, 3, 2) == epochs[1][2:]
    assert {p.text: p.truth for p in epochs[0]}["two cats"] == {"count": 2}


@pytest.mark.parametrize(
    ("text", "message"), [("", "has no lines"), ('{"x": 1}', "line 1: it has no prompt"), ("{", "line 1: ")]
)
def test_a_broken_file_of_prompts_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        FilePrompts("file", str(file)).check(False)


BASE: dict[str, Any] = {
    "kind": "rl",
    "model": "mini",
    "out": "run",
    "steps": 2,
    "prompts": {"kind": "file", "path": "p.txt"},
    "rewards": [{"name": "length"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": []}, "rewards: name at least one"),
        ({"rewards": [{"name": "a"}, {"name": "a"}]}, "rewards: a is named twice"),
        ({"rollout": {"samples": 1}}, "samples at least 2"),
        ({"minibatches": 20}, "minibatches 20 is more than rollout.prompts 16"),
        ({"prompts": {"kind": "fil"}}, r"prompts.kind: must be one of file, trajectories"),
        ({"loss": {"clip_low": 1.0}}, r"clip_low must be in \[0, 1\)"),
        ({"mixture": {"initial_full": 1.0}}, "data: name at least one"),
        ({"validate_every": 5}, "validate_every measures rows of a mixture"),
        ({"noise": 1}, "noise: unknown field"),
    ],
)
def test_recipes_are_strict(change: dict[str, Any], message: str) -> None:
    recipes.build(RLRecipe, BASE)
    with pytest.raises(ValueError, match=message):
        recipes.build(RLRecipe, BASE | change)
