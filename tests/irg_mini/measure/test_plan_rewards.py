"""Rewards of plans, on scenes whose truth is known; and the prompts of a run by reward."""

import numpy as np
import pytest

from irg.learning.rl.prompts import Prompt
from irg.results.trajectory import Trajectory, Turn
from irg_mini import world
from irg_mini.data.prompts import MiniPrompts
from irg_mini.measure.plan_rewards import OverlapReward, PlanReward, SizesReward

REQUEST = world.make_request([world.Include("clock"), world.Include("apple", color="red", position=("left of", 0))])
PROMPT = Prompt("a red apple left of a clock", REQUEST.to_json())
RIGHT = "Scene: meadow. Things: medium red apple at (2,6); medium clock at (8,6)."
BUILTIN = PlanReward(sprites="builtin")


def said(text: str, reflection: str | None = None) -> Trajectory:
    turns = [Turn(text, None)] + ([Turn(reflection, None)] if reflection is not None else [])
    return Trajectory(PROMPT.text, "think", 0, "mini", {}, turns)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("Scene: meadow. Things: medium red apple at (8,6); medium clock at (2,6).", "wrong_place"),
        ("Scene: meadow. Things: medium green apple at (2,6); medium clock at (8,6).", "wrong_color"),
        ("Scene: meadow. Things: medium clock at (8,6).", "missing apple"),
        (RIGHT.replace("medium clock at (8,6)", "medium clock at (8,6); small cat at (5,2)"), "extra"),
        ("Unknown: ox drawn as clock. " + RIGHT, "unknown words: Unknown: ox drawn as clock."),
    ],
)
def test_a_flawed_plan_is_worth_nothing(plan: str, reason: str) -> None:
    score = BUILTIN(PROMPT, said(plan))
    assert score.value == 0.0 and reason in score.reasons and not score.malformed
    assert score.parts == {"flawless": 0.0, "accepted": 0.0}


def test_what_is_no_layout_is_malformed() -> None:
    score = BUILTIN(PROMPT, said("Scene: meadow. Things: a clock."))
    assert score.malformed and score.value == 0.0 and score.reasons == "no layout"


def test_a_right_plan_counts_in_full_once_the_detector_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from irg_mini.measure import plan_rewards

    class Blind:
        def detect(self, images: np.ndarray, threshold: float) -> list[list[world.Seen]]:
            return [[] for _ in images]

    class Seeing(Blind):
        def detect(self, images: np.ndarray, threshold: float) -> list[list[world.Seen]]:
            return [world.see(world.parse_layout(RIGHT), 128) for _ in images]

    for detector, value in ((Blind(), 0.3), (Seeing(), 1.0)):
        monkeypatch.setattr(plan_rewards, "detector_named", lambda name, found=detector: found)
        flawed, right = BUILTIN.scores([PROMPT] * 2, [said("none"), said(RIGHT)])
        assert (flawed.value, right.value) == (0.0, value)


def test_a_reflection_is_judged_by_the_plan_it_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from irg_mini.measure import plan_rewards

    seen = world.see(world.parse_layout(RIGHT), 128)
    fake = type("Fake", (), {"detect": lambda self, images, threshold: [seen for _ in images]})
    monkeypatch.setattr(plan_rewards, "detector_named", lambda name: fake())
    text = world.reflect(REQUEST, [], world.parse_layout(RIGHT), seen, 128)
    assert "Final prompt: Scene: meadow." in text
    assert BUILTIN(PROMPT, said("Scene: meadow. Things: none.", text)).value == 1.0


def test_overlap_counts_where_it_was_not_asked_for() -> None:
    reward = OverlapReward()
    assert reward(PROMPT, said(RIGHT)).value == 0.0
    crowded = RIGHT.replace("(8,6)", "(3,6)")
    assert -1.0 <= reward(PROMPT, said(crowded)).value < -0.2
    on = world.make_request([world.Include("suitcase"), world.Include("clock", position=("on", 0))])
    stacked = "Scene: meadow. Things: small clock at (5,4); large suitcase at (5,5)."
    assert reward(Prompt("a clock on a suitcase", on.to_json()), said(stacked)).value == 0.0
    loose = world.make_request([world.Include("suitcase"), world.Include("clock")])
    assert reward(Prompt("a clock and a suitcase", loose.to_json()), said(stacked)).value < -0.2


def test_rare_sizes_are_worth_more_than_frequent_ones() -> None:
    plans = [RIGHT] * 7 + [RIGHT.replace("medium", "large")]
    scores = [score.value for score in SizesReward().scores([PROMPT] * 8, [said(plan) for plan in plans])]
    assert len(set(scores[:7])) == 1 and scores[0] < 0 < scores[7]
    assert SizesReward().scores([PROMPT], [said("nothing")])[0].value == 0.0


def test_a_prompt_without_its_truth_is_read() -> None:
    flawed = "Scene: meadow. Things: medium clock at (8,6)."
    assert "missing apple" in BUILTIN(Prompt(PROMPT.text), said(flawed)).reasons
    with pytest.raises(ValueError, match="does not know what 'quantum foam' asks for"):
        BUILTIN(Prompt("quantum foam"), said(flawed))


def test_prompts_follow_from_seed_and_step() -> None:
    source = MiniPrompts("miniworld", {"compound": 1.0}, sprites="builtin", vocab="core")
    assert source.draw(3, 5, 4) == source.draw(3, 5, 4) != source.draw(3, 6, 4)
    for prompt in source.draw(0, 0, 5):
        assert world.Request.from_json(dict(prompt.truth)).tag == "compound"
    held_out = MiniPrompts("miniworld", {"compound": 1.0, "two_object": 1.0}, "test", "builtin", "core").draw(0, 0, 4)
    requests = [world.Request.from_json(dict(prompt.truth)) for prompt in held_out]
    assert [request.tag for request in requests] == ["compound", "two_object"] * 2
    assert all(world.held_out(request) for request in requests)
    with pytest.raises(ValueError, match="no requests of the form 'stacking'"):
        MiniPrompts("miniworld", {"stacking": 1.0}, vocab="core")
