"""The loop of every protocol with a critic: on a tiny model, through the pipeline."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from irg.critics import CriticError, Review, Verdict, WorkerCritic
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.events import Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import find
from irg.reasoning.protocols.irg import in_template
from irg.reasoning.settings import with_options
from irg.results.reflection import Reflection, is_done
from irg.results.trajectory import Trajectory

SMALL = {"size": "32", "num_timesteps": 3, "improve_num_timesteps": 3, "max_think_tokens": 4, "critic": "fake"}
WRONG = Verdict("the cup is blue", "make the cup red", False, 0.4, cost=0.5)
DONE = Verdict("", "", True, 0.9)


class Fake:
    """Answers by rule, at once."""

    name = "fake"

    def __init__(self, rule: Callable[[Review], Verdict]) -> None:
        self.rule, self.seen = rule, list[Review]()

    def review(self, review: Review) -> Future[Verdict]:
        self.seen.append(review)
        future: Future[Verdict] = Future()
        try:
            future.set_result(self.rule(review))
        except CriticError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


def wrong_until(turn: int) -> Callable[[Review], Verdict]:
    return lambda review: WRONG if review.turn < turn else DONE


def broken(review: Review) -> Verdict:
    raise CriticError("outage", "HTTP 500")


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> IRGPipeline:
    return IRGPipeline.from_pretrained(folder, "cpu", protocol="irg")


def run(pipe: IRGPipeline, asked: Any, **options: Any) -> Trajectory:
    pipe.critics.add("fake", asked)
    return pipe("a red cup", seed=0, **(SMALL | options)).trajectory


def test_the_critics_words_take_the_place_of_the_reflection(pipe: IRGPipeline) -> None:
    critic = Fake(wrong_until(3))
    found = run(pipe, critic, rounds=5)
    first, second, third, last = found.turns
    assert [review.turn for review in critic.seen] == [1, 2, 3]
    assert [review.thinking for review in critic.seen] == [first.thinking] * 3
    assert [review.image for review in critic.seen] == [first.image, second.image, third.image]
    assert Reflection.parse(second.thinking or "").improvements == "make the cup red."
    assert second.thinking == third.thinking == in_template("a red cup", WRONG) and is_done(last.thinking or "")
    assert last.image is None and (found.stopped, found.stop_reason) == (True, "done")
    assert [turn.critic and turn.critic["score"] for turn in found.turns] == [None, 0.4, 0.4, 0.9]
    assert found.cost == 1.0 and second.tokens == 0 and second.seconds.keys() == {"critic", "drawing"}


def test_a_text_in_the_models_own_form_is_taken_as_it_is(pipe: IRGPipeline) -> None:
    own = Verdict("x", "y", False, 0.1, text="<think> in my own words </think>")
    assert run(pipe, Fake(lambda _: own), rounds=1).turns[1].thinking == own.text


def test_different_words_lead_to_different_images(pipe: IRGPipeline) -> None:
    other = Verdict("the cup is small", "make the cup large", False, 0.4)
    one, two = (run(pipe, Fake(lambda _, said=said: said), rounds=1) for said in (WRONG, other))
    assert one.turns[0].image == two.turns[0].image and one.turns[1].image != two.turns[1].image


def test_where_the_critic_fails_the_model_reflects_itself(pipe: IRGPipeline) -> None:
    found, own = run(pipe, Fake(broken), rounds=2), run(pipe, None, rounds=2, critic="self")
    assert [turn.thinking for turn in found.turns] == [turn.thinking for turn in own.turns]
    assert [turn.image for turn in found.turns] == [turn.image for turn in own.turns]
    failure = {"name": "fake", "failed": "outage", "error": "HTTP 500", "fallback": "self"}
    assert [turn.critic for turn in found.turns] == [None, failure, failure]


def test_or_the_image_is_kept(pipe: IRGPipeline) -> None:
    def second_time(review: Review) -> Verdict:
        return WRONG if review.turn == 1 else broken(review)

    found = run(pipe, Fake(second_time), rounds=5, critic_fallback="keep")
    assert [turn.image is not None for turn in found.turns] == [True, True, False]
    assert (found.image, found.stop_reason) == (found.turns[1].image, "critic failed")
    assert found.turns[2].critic == {"name": "fake", "failed": "outage", "error": "HTTP 500", "fallback": "keep"}


class Blocking(WorkerCritic):
    """Keeps the first prompt's review until it may go on."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.go = threading.Event()

    def review(self, review: Review) -> Future[Verdict]:
        return Fake(wrong_until(1)).review(review) if review.prompt == "fast" else super().review(review)

    def judge(self, review: Review) -> Verdict:
        assert self.go.wait(60)
        return DONE


def test_while_one_waits_for_its_critic_others_finish_and_then_no_turn_is_taken(
    pipe: IRGPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic, turn = Blocking(), pipe.engine.scheduler.turn
    finished, idle_turns = [], []

    def counted() -> None:
        if finished and not critic.go.is_set():
            idle_turns.append(1)
        turn()

    monkeypatch.setattr(pipe.engine.scheduler, "turn", counted)
    pipe.critics.add("fake", critic)
    settings = with_options(pipe.defaults, {**SMALL, "rounds": 2}, pipe.sizes)
    timers = []
    for event in pipe.stream(["slow", "fast"], [0, 0], settings):
        if isinstance(event, Finished):
            finished.append(event.request)
            if event.request == 1:
                timers.append(threading.Timer(0.2, critic.go.set))
                timers[-1].start()
    assert finished == [1, 0] and idle_turns == []
    critic.close()


ALL = ("bagel", "irg", "r3", "rvr", "umm-reflection", "unicot", "unicot-v0.2", "unireason", "unireason-suggest")


@pytest.mark.parametrize("name", ALL)
def test_every_protocols_loop_is_told_by_a_critic(folder: Path, name: str) -> None:
    protocol = find(name)
    pipe = IRGPipeline.from_pretrained(folder, "cpu", protocol=name, texts={text: text for text in protocol.texts})
    rounds = protocol.max_rounds or 3
    critic = Fake(wrong_until(rounds if rounds > 1 else 2))
    own = {"max_reflect_tokens": 4, "rounds": rounds}  # a critic means mode irg, also where the model draws at once
    found = run(pipe, critic, **own)
    images = [turn.image for turn in found.turns if turn.image is not None]
    assert len(images) == (rounds if rounds > 1 else 2) and all(
        a != b for a, b in zip(images, images[1:], strict=False)
    )
    assert found.turns[1].critic == {
        "name": "fake",
        "wrong": "the cup is blue",
        "change": "make the cup red",
        "done": False,
        "score": 0.4,
        "cost": 0.5,
        "cached": False,
    }
    takes_words = name not in ("rvr", "unireason")
    assert ("make the cup red" in (found.turns[1].thinking or "")) is takes_words
    assert found.stop_reason == ("done" if rounds > 1 else "")
    done = run(pipe, Fake(wrong_until(1)), **own)
    assert len(done.turns) == 2 and done.turns[1].image is None and done.stop_reason == "done"
    failed = run(pipe, Fake(broken), critic_fallback="self", **own)
    assert failed.turns[1].critic is not None
    assert failed.turns[1].critic["fallback"] == ("self" if protocol.reflects else "keep")


def test_what_makes_no_sense_is_told_before_anything_is_drawn(pipe: IRGPipeline, folder: Path) -> None:
    pipe.critics.add("fake", Fake(wrong_until(1)))
    with pytest.raises(ValueError, match="critic has no meaning in mode 'think'"):
        pipe("a cup", **(SMALL | {"mode": "think"}))
    with pytest.raises(ValueError, match="no critic 'nobody'"):
        pipe("a cup", **(SMALL | {"critic": "nobody"}))
    bagel = IRGPipeline.from_pretrained(folder, "cpu", protocol="bagel")
    with pytest.raises(ValueError, match="does not reflect by itself; its loop needs a critic"):
        bagel("a cup", mode="irg", size="32")
    with pytest.raises(ValueError, match="does not reflect by itself"):
        IRGPipeline.from_pretrained(folder, "cpu", protocol="bagel", options={"mode": "irg", "size": "32"})
    morph = find("thinkmorph")
    solver = IRGPipeline.from_pretrained(folder, "cpu", protocol="thinkmorph", texts={one: one for one in morph.texts})
    solver.critics.add("fake", Fake(wrong_until(1)))
    with pytest.raises(ValueError, match="critic has no meaning in protocol 'thinkmorph'"):
        solver("a cup", **SMALL)
