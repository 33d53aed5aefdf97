"""Questions about a scene and their answers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import irg_mini.world as mw

SEEDS = st.integers(0, 2**32 - 1)
SCENE = mw.Scene(
    "sea",
    (
        mw.Thing("apple", "green", 2, 8, "small"),
        mw.Thing("apple", "green", 5, 8, "small"),
        mw.Thing("bus", None, 9, 5, "medium"),
        mw.Thing("banana", None, 2, 2, "small"),
    ),
)


def answers(form: str) -> dict[str, str]:
    """Everything that is asked about the scene in this form."""
    found = {}
    for seed in range(400):
        for question in mw.ask(SCENE, np.random.default_rng(seed), forms=[form]):
            assert question.form == form
            assert found.setdefault(question.text, question.answer) == question.answer
    return found


@pytest.mark.parametrize(
    ("form", "question", "answer"),
    [
        ("what", "What is in the picture?", "two green apples, a bus and a banana"),
        ("what_at", "What is at (9,5)?", "a bus"),
        ("what_related", "What is left of the bus?", "two green apples and a banana"),
        ("what_related", "What is above the banana?", "nothing"),
        ("how_many", "How many apples are there?", "two"),
        ("color", "What color is the banana?", "yellow"),
        ("where", "Where is the bus?", "at (9,5)"),
        ("is_there", "Is there a bus?", "yes"),
        ("is_there", "Is there a green apple?", "yes"),
        ("is_there", "Is there a red apple?", "no"),
        ("is_related", "Is the bus right of the banana?", "yes"),
        ("is_related", "Is the bus above the banana?", "no"),
        ("background", "What is the background?", "sea"),
        ("background", "Where does this happen?", "by the sea"),
    ],
)
def test_questions_to_the_letter(form: str, question: str, answer: str) -> None:
    assert answers(form)[question] == answer


def test_what_has_no_answer_is_not_asked() -> None:
    assert set(answers("color")) == {"What color is the banana?"}  # a bus has many, and there are two apples
    assert set(answers("where")) == {"Where is the bus?", "Where is the banana?"}
    empty = mw.Scene("snow", ())
    found = [q for seed in range(100) for q in mw.ask(empty, np.random.default_rng(seed), 3)]
    assert {q.form for q in found} == {"what", "how_many", "is_there", "background"}
    assert {q.answer for q in found} == {"nothing", "none", "no", "snow", "in the snow"}


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_questions_are_short_different_and_of_known_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    request = mw.sample_request(rng, vocab="full")
    try:
        scene = mw.sample_scene(request, rng)
    except ValueError:
        return
    questions = mw.ask(scene, rng, 5, "full")
    assert len(questions) >= 3 and len({q.text for q in questions}) == len(questions)
    words = set(mw.vocabulary("full"))
    for question in questions:
        assert question.form in mw.FORMS
        assert len(question.text.split()) <= 15 and question.answer
        assert {*mw.split_words(question.text), *mw.split_words(question.answer)} <= words


def test_yes_and_no_are_balanced_and_core_asks_for_nothing_else() -> None:
    rng = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for _ in range(600):
        scene = mw.sample_scene(mw.sample_request(rng), rng)
        for question in mw.ask(scene, rng, 1, forms=["is_there"]):
            found[question.answer] += 1
            assert set(mw.split_words(question.text)) <= set(mw.vocabulary()) | {"Is", "there", "?", "a"}
    assert set(found) == {"yes", "no"} and 0.4 < found["yes"] / sum(found.values()) < 0.6


def test_unknown_forms_are_named() -> None:
    with pytest.raises(ValueError, match="unknown forms of question: why"):
        mw.ask(SCENE, np.random.default_rng(0), forms=["why"])
