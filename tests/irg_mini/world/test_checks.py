"""Checks: literal ones, and that they say what the critic by code decides."""

import numpy as np
import pytest
from PIL import Image

from irg.critics import Review
from irg.results.reflection import first_sentence, is_done
from irg_mini import world
from irg_mini.data.checks import as_seen, changed_scene
from irg_mini.measure.compare_critic import CompareCritic

PROMPT = "a photo of a red apple left of a blue bus"


def said(things: str, prompt: str = PROMPT, plan: bool = True) -> str:
    request = world.parse_prompt(prompt)
    assert request is not None
    text = world.check(request, world.parse_layout(f"Scene: meadow. Things: {things}."), plan)
    return text.removeprefix("<think> Analysis: ").removesuffix(" </think>")


@pytest.mark.parametrize(
    ("things", "text"),
    [
        (
            "medium red apple at (2,6); medium blue bus at (9,6)",
            "one red apple: red medium (2,6)(1,5)(4,8), yes; one blue bus: blue medium (9,6)(8,5)(11,8), yes; "
            "others: none; apple at (2,6) left of bus at (9,6): 7 left 0 down, yes; "
            "overlap: (9,6) none. nothing is wrong. Improvements: none.",
        ),
        (
            "medium green apple at (2,6)",
            "one red apple: green medium (2,6)(1,5)(4,8), no; one blue bus: none, no; others: none; "
            "apple left of bus: no; overlap: none. "
            "one blue bus is missing; the apple at (2,6) is green, not red. Improvements: a new plan.",
        ),
        (
            "medium red apple at (7,6); medium blue bus at (9,6)",
            "one red apple: red medium (7,6)(6,5)(9,8), yes; one blue bus: blue medium (9,6)(8,5)(11,8), yes; "
            "others: none; apple at (7,6) left of bus at (9,6): 2 left 0 down, yes; "
            "overlap: (9,6) (7,6) 2 right 0 down, yes. "
            "the apple at (7,6) and bus at (9,6) overlap. Improvements: a new plan.",
        ),
        (
            "medium red apple at (9,6); medium blue bus at (2,6); small blue bus at (2,10)",
            "one red apple: red medium (9,6)(8,5)(11,8), yes; one blue bus: blue medium (2,6)(1,5)(4,8), "
            "blue small (2,10)(1,9)(4,11), two no; others: none; "
            "apple at (9,6) left of bus at (2,6): 7 right 0 down, no, bus at (2,10): 7 right 4 up, no; "
            "overlap: (2,6) none, (2,10) none. "
            "there is an extra bus at (2,10); the apple at (9,6) is not left of the bus. Improvements: a new plan.",
        ),
        (
            "medium red apple at (2,6); medium blue bus at (9,6); small dog at (2,7); small cat at (4,9)",
            "one red apple: red medium (2,6)(1,5)(4,8), yes; one blue bus: blue medium (9,6)(8,5)(11,8), yes; "
            "others: dog at (2,7), cat at (4,9); apple at (2,6) left of bus at (9,6): 7 left 0 down, yes; "
            "overlap: (9,6) none, (2,7) (2,6) 0 right 1 down, yes, (4,9) (2,6) 2 right 3 down, no "
            "(2,7) 2 right 2 down, no. there is an extra dog at (2,7); "
            "there is an extra cat at (4,9); the apple at (2,6) and dog at (2,7) overlap. Improvements: a new plan.",
        ),
    ],
)
def test_literal(things: str, text: str) -> None:
    assert said(things) == text


def test_what_is_seen_may_overlap_and_has_no_background() -> None:
    things = "medium dog at (6,6); medium cat at (7,6)"
    assert said(things, "a dog and a cat in a desert", plan=False).endswith(
        "yes; others: none. nothing is wrong. Improvements: none."
    )
    assert "desert: no" in said(things, "a dog and a cat in a desert")
    assert (
        world.list_of_seen(world.parse_layout(f"Scene: meadow. Things: {things}.").things)
        == f"in the picture: {things}."
    )


def test_it_is_what_the_critic_by_code_decides() -> None:
    """Of plans and of what is seen, right or changed."""
    rng, critic, verdicts = np.random.default_rng(3), CompareCritic(), set[tuple[bool, bool]]()
    blank = Image.new("RGB", (8, 8))
    for _ in range(60):
        request, scene = world.sample_pair(rng, vocab="geneval", split="test", background=0.3)
        prompt = world.caption(request)
        plan = changed_scene(request, scene, rng)
        right = critic.accepts(prompt, world.think(request, plan))
        assert is_done(world.check(request, plan, plan=True)) is right
        seen = as_seen(request, plan)
        listed = world.list_of_seen(seen.things)
        text = f"<think> Analysis: {listed} x. Improvements: x. Steps: x. Final prompt: x. </think>"
        assert first_sentence(text) == listed
        done = critic.judge(Review(prompt, blank, reflection=text)).done
        assert is_done(world.check(request, seen, plan=False)) is done
        verdicts.add((right, done))
    assert len(verdicts) >= 3  # overlaps are no flaw of what is seen
    critic.close()


@pytest.mark.parametrize("things", ["", "medium blue bus at (9,6)", "medium red apple at (2,6)"])
def test_a_plan_that_lacks_what_was_asked_for_can_be_changed(things: str) -> None:
    """A model's plan may be empty, or lack a thing that a relation is about."""
    request = world.parse_prompt(PROMPT)
    assert request is not None
    plan = world.parse_layout(f"Scene: meadow. Things: {things}.") if things else world.Scene("meadow", ())
    for seed in range(40):
        changed = changed_scene(request, plan, np.random.default_rng(seed))
        assert not is_done(world.check(request, changed, plan=True)) or len(changed.things) == 2
