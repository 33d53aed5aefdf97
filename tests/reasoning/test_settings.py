"""Settings: the paper's numbers as defaults, strict checks, plain JSON there and back."""

import json
import math

import pytest

from irg.engine.settings import IMPROVING, DrawSettings
from irg.reasoning.settings import (
    MAX_PROMPT_BYTES,
    MAX_SEED,
    Settings,
    check_options,
    check_prompt,
    check_seed,
    with_options,
)


def test_defaults_are_the_papers() -> None:
    settings = Settings()
    assert settings.initial == DrawSettings(50, 3.0, 4.0, 1.0, (0.4, 1.0), "global", 0.0)
    assert settings.improving == IMPROVING == DrawSettings(50, 3.0, 4.0, 2.0, (0.0, 1.0), "text_channel", 0.0)
    assert (settings.mode, settings.rounds, settings.temperature, settings.max_think_tokens) == ("irg", 1, 0.3, 4096)
    assert settings.draw(0) is settings.initial and settings.draw(1) is settings.draw(5) is settings.improving


def test_json_there_and_back() -> None:
    settings = Settings(mode="think", height=64, width=96, initial=DrawSettings(num_timesteps=9, cfg_interval=(0, 1)))
    data = json.loads(json.dumps(settings.to_dict()))
    assert data == settings.to_dict() and Settings.from_dict(data) == settings
    assert Settings.from_dict({}) == Settings()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_timesteps": 1}, "num_timesteps must be a whole number from 2"),
        ({"num_timesteps": 10.0}, "num_timesteps must be a whole number"),
        ({"num_timesteps": True}, "num_timesteps must be a whole number"),
        ({"timestep_shift": 0}, "timestep_shift must be a number"),
        ({"timestep_shift": math.nan}, "timestep_shift must be a number"),
        ({"cfg_text_scale": -1}, "cfg_text_scale must be a number from 0"),
        ({"cfg_text_scale": math.inf}, "cfg_text_scale must be a number from 0"),
        ({"cfg_img_scale": "2"}, "cfg_img_scale must be a number from 0"),
        ({"cfg_renorm_min": 1.5}, "cfg_renorm_min must be a number from 0 to 1"),
        ({"cfg_interval": (0.5, 0.4)}, "cfg_interval must be two numbers"),
        ({"cfg_interval": (0.5,)}, "cfg_interval must be two numbers"),
        ({"cfg_interval": 0.5}, "cfg_interval must be two numbers"),
        ({"cfg_interval": (math.nan, 1.0)}, "cfg_interval must be two numbers"),
        ({"cfg_renorm_type": "chanel"}, "got 'chanel' (did you mean 'channel'?)"),
    ],
)
def test_bad_drawing_settings_are_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        DrawSettings(**changes)  # type: ignore[arg-type]
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mode": "draw"}, "mode must be one of direct, think, irg, got 'draw'"),
        ({"rounds": 0}, "rounds must be a whole number from 1 to 100"),
        ({"height": 64}, "height and width must be given together"),
        ({"height": 0, "width": 64}, "height must be a whole number"),
        ({"temperature": -0.1}, "temperature must be a number"),
        ({"max_think_tokens": 0}, "max_think_tokens must be a whole number"),
        ({"stop_when_done": 1}, "stop_when_done must be true or false"),
        ({"initial": {"num_timesteps": 5}}, "initial must be a DrawSettings"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        Settings(**changes)  # type: ignore[arg-type]
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"roundz": 2}, "roundz: unknown field (did you mean 'rounds'?)"),
        ({"initial": {"steps": 2}}, "initial.steps: unknown field"),
        ({"initial": {"num_timesteps": "2"}}, "initial.num_timesteps: expected a whole number"),
        ({"improving": {"cfg_interval": [1, 0]}}, "improving: cfg_interval must be two numbers"),
    ],
)
def test_reading_names_the_whole_path(data: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        Settings.from_dict(data)
    assert told in str(caught.value)


def test_single_options_by_name() -> None:
    changed = with_options(Settings(), {"rounds": 2, "num_timesteps": 9, "improve_cfg_text_scale": 2})
    assert changed.rounds == 2
    assert changed.initial == DrawSettings(num_timesteps=9)
    assert changed.improving.cfg_text_scale == 2.0 and changed.improving.num_timesteps == 50
    with pytest.raises(ValueError, match="unknown setting 'improve_steps'"):
        with_options(Settings(), {"improve_steps": 2})
    with pytest.raises(ValueError, match="improve_num_timesteps must be"):
        with_options(Settings(), {"improve_num_timesteps": 0})


def test_prompts_and_seeds() -> None:
    assert check_prompt("a red apple") == "a red apple"
    assert check_prompt("x" * MAX_PROMPT_BYTES)
    for bad, told in [
        ("", "empty"),
        (" \n", "empty"),
        ("é" * (MAX_PROMPT_BYTES // 2 + 1), "at most 100,000"),
        ("a\ud800", "not valid Unicode"),
        (5, "must be text, got int"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_prompt(bad)  # type: ignore[arg-type]
    assert check_seed(0) == 0 and check_seed(MAX_SEED) == MAX_SEED
    for seed in (-1, MAX_SEED + 1, True, 1.0, "1", None):
        with pytest.raises(ValueError, match="a seed must be a whole number"):
            check_seed(seed)  # type: ignore[arg-type]


def test_options_are_checked_before_there_is_a_model() -> None:
    check_options({"mode": "think", "cfg_text_scale": 4})
    for options, told in (
        ({"look": "both eyes"}, "look must be one of"),
        ({"colour": 3}, "unknown setting 'colour'"),
        ({"mode": "think", "rounds": 2}, "rounds has no meaning in mode 'think'"),
    ):
        with pytest.raises(ValueError, match=told):
            check_options(options)


def test_the_old_name_of_the_reflection_context_works() -> None:
    wanted = Settings(reflection_context="prompt")
    with pytest.warns(DeprecationWarning, match="recall is now called reflection_context"):
        assert Settings(recall="prompt") == wanted  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning):
        assert Settings.from_dict({"recall": "prompt"}) == wanted
    with pytest.warns(DeprecationWarning):
        assert with_options(Settings(), {"recall": "prompt"}) == wanted
    with pytest.warns(DeprecationWarning):
        assert wanted.recall == "prompt"  # type: ignore[attr-defined]
    assert "recall" not in wanted.to_dict()
