"""A critic that reads what the model writes, and images that are drawn again from a new thinking: on a tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from irg.critics import CriticError, Review, TextCritic, Verdict
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.events import TextDone
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import check_options, of_later_images, with_options
from irg.results.trajectory import Trajectory

WRONG, DONE = Verdict("the cup is blue", "make the cup red", False, 0.4), Verdict("", "", True, 0.9)
SMALL = {"size": "32", "num_timesteps": 3, "improve_num_timesteps": 3, "max_think_tokens": 4, "critic": "reads"}


class Reads(TextCritic):
    """Finds the first so many images wrong, and takes the thinking of a given number."""

    def __init__(self, wrong: int = 0, accepted: int = 1, broken: bool = False) -> None:
        super().__init__("reads")
        self.wrong, self.accepted, self.broken = wrong, accepted, broken
        self.read: list[Review] = []
        self.checked: list[str] = []

    def accepts(self, prompt: str, thinking: str) -> bool:
        assert prompt == "a red cup"
        self.checked.append(thinking)
        return len(self.checked) >= self.accepted

    def judge(self, review: Review) -> Verdict:
        self.read.append(review)
        if self.broken:
            raise CriticError("bad_answer", "no list")
        return WRONG if review.turn <= self.wrong else DONE


@pytest.fixture(scope="module")
def pipe(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> IRGPipeline:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return IRGPipeline.from_pretrained(folder, "cpu", protocol="irg")


@pytest.fixture
def run(pipe: IRGPipeline) -> Callable[..., Trajectory]:
    def call(critic: TextCritic, **options: Any) -> Trajectory:
        pipe.critics.add("reads", critic)
        return pipe("a red cup", seed=0, **(SMALL | options)).trajectory

    return call


def test_it_reads_what_the_model_wrote(run: Callable[..., Trajectory], pipe: IRGPipeline) -> None:
    critic = Reads(wrong=0)
    found = run(critic, rounds=3)
    first, last = found.turns
    assert found.stop_reason == "done"
    (review,) = critic.read
    assert (review.reflection, review.thinking, review.image) == (last.thinking, first.thinking, first.image)
    alone = pipe("a red cup", seed=0, **(SMALL | {"critic": "self", "rounds": 1})).trajectory
    assert alone.turns[1].thinking == review.reflection  # the model's own words, in the same place
    assert alone.turns[0].image == first.image


def test_its_words_take_the_place_of_the_models(run: Callable[..., Trajectory]) -> None:
    critic = Reads(wrong=1)
    _, second, last = run(critic, rounds=2).turns
    assert "make the cup red" in (second.thinking or "")
    assert [review.turn for review in critic.read] == [1, 2]
    assert last.image is None


def test_where_it_fails_the_models_own_words_stand(run: Callable[..., Trajectory]) -> None:
    critic = Reads(broken=True)
    _, second = run(critic, rounds=1).turns
    assert second.thinking == critic.read[0].reflection
    assert second.critic is not None and second.critic["failed"] == "bad_answer"


def test_a_new_thinking(run: Callable[..., Trajectory], tmp_path: Path) -> None:
    """It follows the prompt alone, and its image is drawn as first images are."""
    critic = Reads(wrong=2)
    found = run(critic, rounds=2, revise="thinking", temperature=0.0, improve_num_timesteps=5)
    first, second, third = found.turns
    assert second.thinking == first.thinking and third.thinking == first.thinking  # greedy: the same context, so again
    assert second.image != first.image  # other noise
    assert [turn.reflection for turn in found.turns[1:]] == [one.reflection for one in critic.read]
    assert [turn.settings["num_timesteps"] for turn in found.turns] == [3, 3, 3]  # 5: by a reflection
    assert found.reflection == third.reflection and third.texts == [third.reflection, third.thinking]
    assert third.seconds.keys() == {"reflecting", "thinking", "critic", "drawing"} and third.tokens > first.tokens
    read = Trajectory.load(found.save(tmp_path / "saved"))
    assert [turn.reflection for turn in read.turns] == [turn.reflection for turn in found.turns]
    page = (tmp_path / "saved" / "report.html").read_text("utf-8")
    assert page.count("the cup is blue") == 2  # the critic's reason, which no text of the model's has
    assert page.count("<h3>Reflection</h3>") == 2 and page.count("<h3>Thinking</h3>") == 3
    assert [one.thinking for one in critic.read] == [first.thinking, second.thinking]


def test_thinkings_are_written_until_one_is_accepted(run: Callable[..., Trajectory]) -> None:
    critic = Reads(accepted=3)
    (first, _) = run(critic, thinking_tries=8, temperature=0.0).turns
    assert first.details["tries"] == 3
    assert len(critic.checked) == 3 and critic.checked[-1] == first.thinking
    assert len(set(critic.checked)) > 1  # sampled after the first try
    never = Reads(accepted=99)
    (first, _) = run(never, thinking_tries=3).turns
    assert first.details["tries"] == 3 and len(never.checked) == 2  # the last one stands, so nobody asks
    assert "tries" not in run(Reads(), thinking_tries=1).turns[0].details


def test_the_model_alone_can_begin_anew(pipe: IRGPipeline) -> None:
    found = pipe("a red cup", seed=0, **(SMALL | {"critic": "self", "revise": "thinking", "rounds": 1})).trajectory
    assert found.turns[1].reflection
    assert found.turns[1].image is not None


def test_settings_of_a_given_image_hold_for_new_thinkings(pipe: IRGPipeline) -> None:
    """Their images are drawn as first ones are, and there is no other first one."""
    options = {"size": "32", "max_think_tokens": 4, "revise": "thinking", "stop_when_done": False}
    for name in ("num_timesteps", "improve_num_timesteps"):
        given = Image.new("RGB", (32, 32))
        found = pipe.improve(given, "a red cup", seed=0, **options, **{name: 3}).trajectory
        assert found.turns[1].settings["num_timesteps"] == 3
    assert of_later_images({"eta": 1, "improve_num_timesteps": 3}) == {
        "eta": 1,
        "num_timesteps": 3,
        "improve_num_timesteps": 3,
    }
    with pytest.raises(ValueError, match="num_timesteps and improve_num_timesteps are the same"):
        of_later_images({"improve_num_timesteps": 3, "num_timesteps": 4})


def test_events_say_what_a_text_is(pipe: IRGPipeline) -> None:
    options = SMALL | {"critic": "self", "revise": "thinking", "rounds": 1, "stop_when_done": False}
    events = [e for e in pipe.stream("a red cup", [0], with_options(pipe.defaults, options)) if isinstance(e, TextDone)]
    assert [(e.turn, e.kind) for e in events] == [(0, "thinking"), (1, "reflection"), (1, "thinking")]


def test_settings(pipe: IRGPipeline) -> None:
    with pytest.raises(ValueError, match="revise must be one of reflection, thinking"):
        pipe("a red cup", **(SMALL | {"revise": "all"}))
    with pytest.raises(ValueError, match="thinking_tries"):
        pipe("a red cup", **(SMALL | {"thinking_tries": 0}))
    with pytest.raises(ValueError, match="revise has no meaning in mode 'think'"):
        check_options({"mode": "think", "revise": "thinking"})
