"""Presets of drawing settings: multiples of the model's own, those of its folder, and what is given beside them."""

from typing import Any

import pytest

from irg.engine.settings import DrawSettings
from irg.model.weights.folders import model_folder
from irg.model.weights.profile import read_profile
from irg.reasoning.effort import OF_QUALITY, UPDATES
from irg.reasoning.settings import Settings, check_options, with_options


def points(options: dict[str, Any], presets: Any = None) -> tuple[int, int]:
    chosen = with_options(Settings(), options, presets=presets or {})
    return chosen.initial.num_timesteps, chosen.improving.num_timesteps


def test_without_presets_updates_are_multiples_of_the_models_own() -> None:
    assert points({"effort": "draft"}) == (16, 25)  # of 49 updates 0.3 and 0.5
    assert points({"effort": "best"}) == (99, 99)
    assert with_options(Settings(), {"effort": "balanced"}) == Settings()
    few = Settings(initial=DrawSettings(num_timesteps=2))
    assert with_options(few, {"effort": "draft"}).initial.num_timesteps == 2  # one update at least
    assert set(OF_QUALITY.values()) == set(UPDATES)


def test_a_preset_fills_in_only_what_is_not_given() -> None:
    assert points({"effort": "draft", "num_timesteps": 30}) == (30, 25)
    assert points({"improve_num_timesteps": 30, "effort": "draft"}) == (16, 30)


def test_a_models_own_preset_takes_the_place_of_multiples() -> None:
    presets = {"draft": {"initial": {"num_timesteps": 3, "cfg_text_scale": 1.0}}}
    chosen = with_options(Settings(), {"effort": "draft", "cfg_text_scale": 2}, presets=presets)
    assert (chosen.initial.num_timesteps, chosen.initial.cfg_text_scale) == (3, 2.0)
    assert chosen.improving == Settings().improving
    assert points({"effort": "best"}, presets) == (99, 99)


@pytest.mark.parametrize(
    ("effort", "preset", "said"),
    [
        ("drafts", {}, r"effort must be one of draft, balanced, best, got 'drafts' .did you mean 'draft'"),
        (2, {}, "effort must be one of draft, balanced, best, got 2"),
        ("draft", {"initial": {"num_timesteps": 1}}, r"irg.json: efforts.draft: num_timesteps must be a whole number"),
        ("draft", {"first": {}}, "irg.json: efforts.draft: there are initial and improving, got first"),
        ("draft", {"improving": {"steps": 3}}, r"irg.json: efforts.draft: .*'steps'"),
    ],
)
def test_mistakes_are_named(effort: object, preset: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        points({"effort": effort}, {"draft": preset})


def test_irg_minis_presets_are_acceptable_and_its_best_is_its_own_settings() -> None:
    profile = read_profile(model_folder("mini"))
    assert profile is not None
    own = Settings.from_dict(profile.settings)
    chosen = {name: with_options(own, {"effort": name}, presets=profile.efforts) for name in UPDATES}
    assert chosen["draft"].initial.num_timesteps == 5 and chosen["draft"].improving == own.improving
    assert chosen["balanced"] == chosen["best"] == own


def test_recipes_are_checked_without_a_model() -> None:
    check_options({"effort": "best", "mode": "think"})
    with pytest.raises(ValueError, match="effort must be one of"):
        check_options({"effort": "fast"})
