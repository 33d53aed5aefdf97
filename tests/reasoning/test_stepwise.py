"""Requests in single steps: in a row they are the whole request, and any step can be repeated from where it began."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from irg.critics import CriticError, Review, Verdict
from irg.engine.events import DenoiseStep, TextDone
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.stepwise import PausedRequest, run, start

SMALL = {
    "height": 32,
    "width": 32,
    "num_timesteps": 3,
    "improve_num_timesteps": 3,
    "max_think_tokens": 4,
    "temperature": 1.0,
}


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> IRGPipeline:
    return IRGPipeline.from_pretrained(folder, "cpu")


class ScriptedCritic:
    """Says what it was told to say, and counts how often it is asked."""

    name = "scripted"

    def __init__(self, *answers: Verdict | CriticError) -> None:
        self.answers, self.asked = answers, 0

    def review(self, review: Review) -> "Future[Verdict]":
        future: Future[Verdict] = Future()
        answer = self.answers[self.asked]
        self.asked += 1
        if isinstance(answer, Verdict):
            future.set_result(answer)
        else:
            future.set_exception(answer)
        return future

    def close(self) -> None: ...


def pixels(image: Image.Image | None) -> Any:
    assert image is not None
    return np.asarray(image, dtype=float)


def stepped(paused: PausedRequest, rounds: int) -> PausedRequest:
    for _ in range(rounds + 1):
        paused = run(paused.write())
        paused = run(paused.draw())
    return paused


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reflection_context": "prompt"},
        {"negative_prompt": "red", "improve_cfg_img_scale": 2.0},
        {"sde_noise_level": 0.8, "sde_window_start": 0, "top_k": 5},
    ],
    ids=lambda options: next(iter(options), "usual"),
)
def test_steps_in_a_row_are_the_whole_request(pipe: IRGPipeline, options: dict[str, Any]) -> None:
    whole = pipe("a cat", seed=7, rounds=2, **SMALL, **options).trajectory
    paused = stepped(start(pipe, "a cat", 7, **SMALL, **options), rounds=2)
    assert list(paused.texts) == [turn.thinking for turn in whole.turns]
    assert len(set(paused.texts)) == 3
    for drawn, image in zip(paused.drawn, whole.images, strict=True):
        assert np.abs(pixels(drawn.image) - pixels(image)).mean() < 0.5


def test_steps_improve_a_given_image(pipe: IRGPipeline) -> None:
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    options = {"num_timesteps": 3, "max_think_tokens": 4, "temperature": 1.0}
    whole = pipe.improve(image, "a cat", seed=3, **options)
    begun = start(pipe, "a cat", 3, image=image, **options)
    assert begun.turn == 1 and begun.image is not None
    done = run(begun.draw())  # writes first
    assert done.text == whole.reflection and done.turn == 2
    assert np.abs(pixels(done.image) - pixels(whole.image)).mean() < 0.5


def test_a_step_does_its_own_work_only(pipe: IRGPipeline) -> None:
    paused = run(start(pipe, "a cat", 7, **SMALL).draw())
    events = list(paused.write())
    assert {type(event) for event in events} & {TextDone, DenoiseStep} == {TextDone}
    again = run(paused.write())
    steps = list(again.draw(num_timesteps=6))
    assert [event.step for event in steps if isinstance(event, DenoiseStep)] == [1, 2, 3, 4, 5]
    assert not any(isinstance(event, TextDone) for event in steps)
    assert {event.turn for event in (*events, *steps)} == {1}


def test_several_steps_go_on_from_one_request(pipe: IRGPipeline) -> None:
    thought = run(start(pipe, "a cat", 7, **SMALL).write())
    a, b, c = (run(thought.draw(seed=seed)) for seed in (1, 2, 1))
    assert np.array_equal(pixels(a.image), pixels(c.image))
    assert not np.array_equal(pixels(a.image), pixels(b.image))
    assert a.texts == b.texts == thought.texts and not thought.drawn
    # what stands in the place of the model's reflection counts
    own, other = (run(run(a.write(text=text)).draw(seed=5)) for text in ("make it red", "a blue dog"))
    assert own.text == "make it red"
    assert not np.array_equal(pixels(own.image), pixels(other.image))


def test_settings_of_a_step(pipe: IRGPipeline) -> None:
    begun = start(pipe, "a cat", 7, **SMALL)
    short = run(begun.write(max_tokens=2, temperature=0.0))
    first = run(short.draw())
    later = run(first.write(max_tokens=1))
    written = [done.result for done in later.record if hasattr(done.result, "ids")]
    assert [len(one.ids) for one in written] == [2, 1]
    assert short.job.settings.temperature == 0.0 and begun.job.settings.temperature == 1.0


def test_a_critic_is_asked_once_a_round(folder: Path) -> None:
    pipe = IRGPipeline.from_pretrained(folder, "cpu", protocol="bagel")
    critic = ScriptedCritic(Verdict("", "make it red", False, 0.3), Verdict("", "", True, 1.0))
    pipe.critics.add("scripted", critic)
    small = {name: value for name, value in SMALL.items() if name != "temperature"}
    paused = stepped(start(pipe, "a cat", 7, critic="scripted", **small), rounds=1)
    assert paused.texts == ("", "make it red")
    done = run(paused.write())
    assert (done.ended, done.stop, critic.asked) == (True, "done", 2)
    assert run(done.draw()).image is paused.image


def test_a_critic_that_fails_stays_failed(pipe: IRGPipeline) -> None:
    critic = ScriptedCritic(CriticError("outage", "gone"), CriticError("outage", "gone"))
    pipe.critics.add("failing", critic)
    paused = stepped(start(pipe, "a cat", 7, critic="failing", **SMALL), rounds=2)
    assert critic.asked == 2 and all(paused.texts)  # the model reflects itself


def test_mistakes(pipe: IRGPipeline) -> None:
    with pytest.raises(ValueError, match="candidates has no meaning for a request in single steps"):
        start(pipe, "a cat", 7, candidates=2)
    with pytest.raises(ValueError, match="the prompt is empty"):
        start(pipe, " ", 7)
    thought = run(start(pipe, "a cat", 7, **SMALL).write())
    with pytest.raises(ValueError, match="draw it first"):
        thought.write()
    with pytest.raises(ValueError, match="rounds is no setting of one image"):
        thought.draw(rounds=2)
    with pytest.raises(ValueError, match="num_timesteps must be a whole number from 2"):
        thought.draw(num_timesteps=1)
    direct = start(pipe, "a cat", 7, mode="direct", height=32, width=32, num_timesteps=3)
    with pytest.raises(RuntimeError, match="the model writes none in this step"):
        run(direct.write(text="mine"))


def test_the_end_of_a_way_without_rounds(pipe: IRGPipeline) -> None:
    paused = run(start(pipe, "a cat", 7, mode="think", **SMALL).draw())
    assert not paused.ended and paused.text
    ended = run(paused.write())
    assert (ended.ended, ended.stop, ended.texts) == (True, "", paused.texts)
    assert run(ended.draw()).image is paused.image
