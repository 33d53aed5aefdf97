"""A critic that a model brings: ``irg.json`` names it, and it is the model's own in the loop."""

from pathlib import Path
from typing import Any

import pytest

from irg.critics import CriticError, Review, TextCritic, Verdict
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.config_files import read_config
from irg.model.weights.folders import BUNDLED
from irg.model.weights.initialize import write_folder
from irg.model.weights.profile import Profile, read_profile
from irg.reasoning.critique import Critics
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import find
from irg.reasoning.protocols.selection import usual_settings
from irg.reasoning.settings import Settings, with_options
from irg.reasoning.stepwise import run, start

SMALL = {"size": "32", "num_timesteps": 3, "improve_num_timesteps": 3, "max_think_tokens": 4}
ITS_OWN = {"critic": "mini-compare", "revise": "thinking", "thinking_tries": 2}


class Reads(TextCritic):
    """Accepts no thinking, and finds the first image wrong."""

    def __init__(self) -> None:
        super().__init__("mini-compare")
        self.checked = 0

    def accepts(self, prompt: str, thinking: str) -> bool:
        self.checked += 1
        return False

    def judge(self, review: Review) -> Verdict:
        if review.reflection is None:
            raise CriticError("bad_answer", "nothing to read")
        return Verdict("it is blue", "make it red", False, 0.2) if review.turn == 1 else Verdict("", "", True, 1.0)


@pytest.fixture
def pipe(tiny_loaded: LoadedModel, tmp_path: Path) -> IRGPipeline:
    write_folder(tmp_path, tiny_loaded.config)
    Profile("tiny", settings=dict(ITS_OWN)).save(tmp_path)
    critics = Critics()
    critics.add("mini-compare", Reads())
    return IRGPipeline.from_pretrained(tmp_path, "cpu", critics=critics)


def usual(profile: Profile, protocol: str = "irg", parallel: bool = False) -> Settings:
    return usual_settings(read_config(BUNDLED / "mini"), profile, find(protocol), parallel)


def chosen(settings: Settings) -> tuple[str, str, int]:
    return settings.critic, settings.revise, settings.thinking_tries


def test_irg_minis_own() -> None:
    profile = read_profile(BUNDLED / "mini")
    assert profile is not None
    assert chosen(usual(profile)) == ("mini-compare", "thinking", 8)
    alone = ("self", "reflection", 1)
    assert chosen(usual(profile, "umm-reflection")) == alone  # it reads what the protocol irg makes it write
    assert chosen(usual(profile, parallel=True)) == alone
    assert chosen(with_options(usual(profile), {"critic": "self"})) == alone
    given = with_options(usual(profile), {"critic": "endpoint:x", "revise": "thinking"})
    assert chosen(given) == ("endpoint:x", "thinking", 1)
    assert chosen(with_options(Settings(revise="thinking"), {"critic": "endpoint:x"})) == ("endpoint:x", "thinking", 1)


@pytest.mark.parametrize(
    ("critic", "complaint"),
    [
        ("endpoint:gpt-x", "a model's own critic must be a name alone, got 'endpoint:gpt-x'"),
        ("gone", "no critic 'gone'"),
    ],
)
def test_what_a_model_may_not_bring(critic: str, complaint: str) -> None:
    """A downloaded folder would send images and money to an endpoint that nobody asked for."""
    with pytest.raises(ValueError, match=complaint):
        usual(Profile("other", settings={"critic": critic}))


def test_in_the_loop_and_nowhere_else(pipe: IRGPipeline) -> None:
    critic = pipe.critics.get("mini-compare")
    assert isinstance(critic, Reads)
    turns = pipe("a red cup", seed=0, rounds=2, **SMALL).trajectory.turns
    assert [turn.critic and turn.critic["wrong"] for turn in turns] == [None, "it is blue", ""]
    assert [turn.details.get("tries") for turn in turns] == [2, 2, None] and critic.checked == 2
    assert turns[1].reflection and turns[2].image is None
    (turn,) = pipe("a red cup", seed=0, mode="think", **SMALL).trajectory.turns
    assert (turn.critic, turn.details, critic.checked) == (None, {}, 2)
    alone = pipe("a red cup", seed=0, critic="self", **SMALL).trajectory
    assert [turn.critic for turn in alone.turns] == [None, None] and critic.checked == 2


def test_in_single_steps(pipe: IRGPipeline) -> None:
    options: dict[str, Any] = SMALL | {"temperature": 1.0}
    whole = pipe("a red cup", seed=7, rounds=2, **options).trajectory
    paused = start(pipe, "a red cup", 7, **options)
    for _ in range(2):
        paused = run(run(paused.write()).draw())
    paused = run(paused.write())
    assert (paused.ended, paused.stop) == (True, "done")
    written = [done.result.text for done in paused.record if hasattr(done.result, "ids")]
    turns = whole.turns
    assert written[1] == turns[0].thinking and written[2] == turns[1].reflection
    assert written[-1] == turns[2].thinking
