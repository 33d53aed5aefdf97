"""What the terminal shows."""

from types import SimpleNamespace
from typing import Any

import pytest

from irg.cli.display import Display
from irg.critics import Verdict
from irg.reasoning.events import CandidateDone, TextDelta, TextDone, WaitDone


def test_a_candidate_that_is_done_does_not_cut_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Its line waits until the text that is being written ends."""
    drawn: Any = SimpleNamespace(images=[None])
    with Display(["a cat"], concurrent=1) as display:
        display.show(TextDelta(0, 0, "one "))
        display.show(CandidateDone(0, 1, drawn))
        display.show(TextDelta(0, 0, "text"))
        display.show(TextDone(0, 0, "one text", 2, 0.1))
        display.show(CandidateDone(0, 2, drawn))
    assert capsys.readouterr().out.splitlines() == [
        "a cat",
        "Thinking: one text",
        "candidate 2 is drawn (1 image)",
        "candidate 3 is drawn (1 image)",
    ]


def test_a_line_that_waited_is_printed_when_the_display_ends(capsys: pytest.CaptureFixture[str]) -> None:
    drawn: Any = SimpleNamespace(images=[None])
    with Display(["a cat"], concurrent=1) as display:
        display.show(TextDelta(0, 0, "one "))
        display.show(CandidateDone(0, 1, drawn))
    assert capsys.readouterr().out.splitlines()[-1] == "candidate 2 is drawn (1 image)"


@pytest.mark.parametrize("concurrent", [1, 2])
def test_texts_of_a_turn_are_numbered(concurrent: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(["a cat"], concurrent) as display:
        for turn, text in ((0, "one"), (0, "two"), (1, "three")):
            display.show(TextDelta(0, turn, text))
            display.show(TextDone(0, turn, text, 1, 0.1))
        display.show(TextDone(0, 1, "wrong", 1, 0.1, kind="reflection"))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == ["Thinking: one", "Thinking (2): two", "Thinking: three", "Reflection: wrong"]


@pytest.mark.parametrize("prompts", [["a cat"], ["a cat", "a dog"]])
def test_a_verdict_is_shown_when_it_is_given(prompts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Display(prompts, concurrent=len(prompts)) as display:
        display.show(TextDone(0, 1, "it is a dog", 3, 0.1, kind="reflection"))
        display.show(WaitDone(0, 1, Verdict("it is\x1b a dog", "draw a cat", False, 0.2)))
        display.show(WaitDone(0, 1, "something else that was waited for"))
        display.show(WaitDone(0, 2, Verdict("", "", True, 1.0)))
    number = "[1/2] " if len(prompts) == 2 else ""
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{number}Reflection: it is a dog",
        f"{number}The critic on image 1: it is\ufffd a dog",
        f"{number}The critic on image 2: nothing is wrong",
    ]
