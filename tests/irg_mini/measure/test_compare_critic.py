"""The critic by code: literal plans and reflections."""

import pytest
from PIL import Image

from irg.critics import CriticError, CriticOptions, Review, make_critic
from irg_mini.measure.compare_critic import CompareCritic, make

PROMPT = "a photo of a red apple left of a blue bus"
RIGHT = "medium red apple at (2,6); medium blue bus at (9,6)"
BLANK = Image.new("RGB", (8, 8))


def plan(things: str) -> str:
    return f"Scene: meadow. Things: {things}."


def said(seen: str) -> str:
    """A reflection that says so, and that nothing is wrong, which is not believed."""
    return (
        f"<think> Analysis: in the picture: {seen}. nothing is wrong. Improvements: none. Steps: none. "
        f"Final prompt: {plan(RIGHT)} </think>"
    )


@pytest.fixture
def critic() -> CompareCritic:
    return CompareCritic()


@pytest.mark.parametrize(
    ("things", "accepted"),
    [
        (RIGHT, True),
        ("medium green apple at (2,6); medium blue bus at (9,6)", False),
        ("medium red apple at (9,6); medium blue bus at (2,6)", False),
        ("medium red apple at (2,6)", False),
        (RIGHT + "; small dog at (5,10)", False),
        ("large red", False),
        ("medium red apple at (6,6); medium blue bus at (9,6)", False),  # they overlap
    ],
)
def test_plans(critic: CompareCritic, things: str, accepted: bool) -> None:
    assert critic.accepts(PROMPT, plan(things)) is accepted


def test_a_background_that_is_asked_for(critic: CompareCritic) -> None:
    assert critic.accepts("a photo of a dog", "Scene: desert. Things: large dog at (6,6).")
    assert not critic.accepts("a photo of a dog in a meadow", "Scene: desert. Things: large dog at (6,6).")
    assert critic.accepts("colorless green ideas sleep furiously", "nonsense")  # what it can't read it does not judge


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (RIGHT, ""),
        ("medium red apple at (2,6)", "one blue bus is missing"),
        ("medium red apple at (2,6); medium red bus at (9,6)", "the bus at (9,6) is red, not blue"),
        ("medium red apple at (9,6); medium blue bus at (2,6)", "the apple at (9,6) is not left of the bus"),
        (RIGHT + "; small dog at (5,10)", "there is an extra dog at (5,10)"),
        ("none", "one blue bus is missing; one red apple is missing"),
    ],
)
def test_what_is_seen(critic: CompareCritic, seen: str, wrong: str) -> None:
    verdict = critic.judge(Review(PROMPT, BLANK, reflection=said(seen)))
    assert (verdict.wrong, verdict.done) == (wrong, not wrong)
    assert verdict.score == 1 / (1 + (wrong.count(";") + 1 if wrong else 0))


def test_what_it_can_not_judge(critic: CompareCritic) -> None:
    for reflection in ("", "no sections", said("a lot of things"), said(RIGHT).replace("in the picture: ", "")):
        with pytest.raises(CriticError) as caught:
            critic.judge(Review(PROMPT, BLANK, reflection=reflection))
        assert caught.value.kind == "bad_answer"
    with pytest.raises(CriticError, match="does not know what"):
        critic.judge(Review("colorless green ideas", BLANK, reflection=said(RIGHT)))


@pytest.mark.usefixtures("own_plugins")
def test_by_name() -> None:
    critic = make_critic("mini-compare")
    assert critic.name == "mini-compare"
    critic.close()
    with pytest.raises(ValueError, match="takes nothing after its name, got 'x'"):
        make("x", CriticOptions())
