"""The form of a verdict: what is asked, what is taken, and the complaint about everything else."""

import json
from typing import Any

import pytest
from PIL import Image

from irg.critics import Review, Verdict
from irg.critics.form import question, read

GOOD: dict[str, Any] = {"wrong": "the cup is blue", "change": "make the cup red", "done": False, "score": 4}


def said(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize("around", ["{}", "\n {}\n", "```json\n{}\n```", "```\n{}\n```"])
def test_a_verdict_is_read(around: str) -> None:
    assert read(around.replace("{}", said())) == Verdict("the cup is blue", "make the cup red", False, 0.4)


@pytest.mark.parametrize("nothing", ["", "none", "None.", "N/A", "no changes", "Nothing"])
def test_done_asks_for_nothing(nothing: str) -> None:
    assert read(said(wrong=nothing, change=nothing, done=True, score=9.5)) == Verdict("", "", True, 0.95)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("The cup is blue.", "not one JSON object and nothing else"),
        (f"Here it is: {said()}", "not one JSON object and nothing else"),
        (f"{said()} {said()}", "not one JSON object and nothing else"),
        ("[]", "not one JSON object and nothing else"),
        ("[" * 100_000, "not one JSON object and nothing else"),
        ("I'm sorry, but I can't help with that.", "it is a refusal"),
        (
            said()[:-1] + ', "why": "?"}',
            "its fields must be exactly wrong, change, done, score; it has wrong, change, ",
        ),
        (said()[:-1] + ', "done": true}', "a field stands there twice"),
        ('{"wrong": "x"}', "it has wrong"),
        (said(done="no"), 'done must be true or false, got "no"'),
        (said(done=0), "done must be true or false, got 0"),
        (said(score="4/10"), 'score must be a number from 0 to 10, got "4/10"'),
        (said(score=True), "score must be a number from 0 to 10, got true"),
        (said(score=10.5), "score must be a number from 0 to 10, got 10.5"),
        (said().replace("4", "NaN"), "NaN is no number"),
        (said(wrong=["x"]), "wrong must be a text"),
        (said(change=None), "change must be a text, got null"),
        (said(change="none"), "done is false, so wrong and change must say"),
        (said(wrong=""), "done is false, so wrong and change must say"),
        (said(done=True), "done is true, but change asks for something"),
    ],
)
def test_anything_else_is_complained_of(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read(text)


def test_the_question_holds_prompt_and_thinking_as_they_are() -> None:
    image = Image.new("RGB", (4, 4))
    text = question(Review('a sign "{prompt}" {0}', image, "Plan: {x}"))
    assert 'Prompt: a sign "{prompt}" {0}\n' in text and "Plan: {x}" in text and '{"wrong": ' in text
    assert "in mind" not in question(Review("a cup", image)) + question(Review("a cup", image, "  "))


@pytest.mark.parametrize(("fields", "told"), [(("", "", False, 0.5), "what to change"), (("", "", True, 5), "0 to 1")])
def test_a_verdict_that_says_nothing_is_none(fields: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Verdict(*fields)
