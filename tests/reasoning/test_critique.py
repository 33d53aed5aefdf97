"""A pipeline's critics, and what a program learns from asking one."""

from concurrent.futures import Future
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from PIL import Image

from irg import registry
from irg.critics import CriticError, CriticOptions, Review, Verdict
from irg.engine.ops import Wait
from irg.reasoning.critique import Critics, Critique, ask_critic, failures, verdicts
from irg.results.trajectory import Trajectory, Turn

REVIEW = Review("a red cup", Image.new("RGB", (4, 4)), "plan", 2)
VERDICT = Verdict("blue", "make it red", False, 0.4, cost=0.5, cached=True)


class Fake:
    """Answers with what it is given."""

    name = "fake"

    def __init__(self, answer: Verdict | Exception = VERDICT) -> None:
        self.answer, self.closed, self.seen = answer, 0, [REVIEW][:0]

    def review(self, review: Review) -> Future[Verdict]:
        self.seen.append(review)
        future: Future[Verdict] = Future()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        else:
            future.set_result(self.answer)
        return future

    def close(self) -> None:
        self.closed += 1


def asked(critic: Fake | None, fallback: Any = "self") -> Critique:
    """Drive the part of a program as the engine does."""
    part = ask_critic(critic, REVIEW, fallback)
    try:
        op = next(part)
        assert isinstance(op, Wait)
        error = op.future.exception()
        part.throw(error) if error is not None else part.send(op.future.result())
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it asks once")


def test_without_a_critic_nobody_is_waited_for() -> None:
    critique = asked(None)
    assert critique == Critique() and critique.stop == "" and critique.to_dict() is None


def test_a_verdict_is_recorded() -> None:
    critic = Fake()
    critique = asked(critic)
    assert critic.seen == [REVIEW] and critique.verdict == VERDICT and critique.stop == ""
    assert critique.to_dict() == {
        "name": "fake",
        "wrong": "blue",
        "change": "make it red",
        "done": False,
        "score": 0.4,
        "cost": 0.5,
        "cached": True,
    }
    assert asked(Fake(Verdict("", "", True, 1.0))).stop == "done"


@pytest.mark.parametrize(("fallback", "stop"), [("self", ""), ("keep", "critic failed")])
def test_a_failure_leads_to_what_was_chosen(fallback: str, stop: str) -> None:
    critique = asked(Fake(CriticError("outage", "HTTP 500")), fallback)
    assert (critique.verdict, critique.stop) == (None, stop)
    record = critique.to_dict()
    assert record == {"name": "fake", "failed": "outage", "error": "HTTP 500", "fallback": fallback}
    turns = [Turn("t", REVIEW.image), Turn("r", REVIEW.image, critic=record)]
    (told,) = failures(Trajectory("p", "irg", 0, "m", {}, turns))
    what = "the model reflected itself" if fallback == "self" else "the image stays as it is"
    assert told == f"the critic fake failed (outage: HTTP 500); {what}"


def test_other_errors_are_no_verdicts() -> None:
    with pytest.raises(ZeroDivisionError):
        asked(Fake(ZeroDivisionError()))


def test_critics_are_made_once_with_their_options_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, CriticOptions, Fake]] = []

    class Point(EntryPoint):
        def load(self) -> Any:
            def make(rest: str, options: CriticOptions) -> Fake:
                made.append((rest, options, Fake()))
                return made[-1][2]

            return make

    monkeypatch.setattr(registry, "_found", lambda group: {"fake": Point("fake", "x:y", registry.CRITICS)})
    options = CriticOptions(max_tokens=7)
    critics = Critics(options)
    assert critics.get("self") is None and not made
    assert critics.get("fake:a") is critics.get("fake:a") is made[0][2] and made[0][:2] == ("a", options)
    mine = Fake()
    critics.add("mine", mine)
    assert critics.get("mine") is mine
    with pytest.raises(ValueError, match="no critic 'yours'; there are self, fake"):
        critics.get("yours")
    critics.close()
    critics.close()
    assert made[0][2].closed == mine.closed == 1


def test_verdicts_are_told_with_their_image() -> None:
    image = Image.new("RGB", (4, 4))
    wrong = Critique("fake", VERDICT).to_dict()
    done = Critique("fake", Verdict("", "", True, 1.0)).to_dict()
    failed = Critique("fake", None, CriticError("outage", "gone"), "self").to_dict()
    turns = [
        Turn("plan", image),
        Turn("a", image, critic=wrong),
        Turn("b", image, critic=failed),
        Turn("c", None, critic=done),
    ]
    assert verdicts(Trajectory("p", "irg", 0, "m", {}, turns)) == [
        "The critic fake on image 1: blue",
        "The critic fake on image 3: nothing is wrong",
    ]
