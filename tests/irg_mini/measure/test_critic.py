"""The ground truth of the world as a critic."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from irg.critics import CriticError, CriticOptions, Review, Verdict
from irg.results.reflection import is_done
from irg_mini import world
from irg_mini.measure.critic import MiniCritic, make

PROMPT = "a photo of a red cup and a bus"
BLANK = Image.new("RGB", (128, 128))


@pytest.fixture(scope="module")
def critic() -> MiniCritic:
    return make("", CriticOptions())


def scene(*things: world.Thing) -> world.Scene:
    return world.Scene("studio", things)


CUP, BUS = world.Thing("cup", "red", 4, 8, "medium"), world.Thing("bus", None, 8, 3, "medium")


def verdict(monkeypatch: pytest.MonkeyPatch, critic: MiniCritic, shown: world.Scene, thinking: str | None) -> Verdict:
    """Of an image that shows a scene."""
    eyes = SimpleNamespace(config=critic._detector.config, detect=lambda *_, **__: [world.see(shown, 128)])
    monkeypatch.setattr(critic, "_detector", eyes)
    return critic.review(Review(PROMPT, BLANK, thinking)).result()


def test_a_right_image_is_done(critic: MiniCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict(monkeypatch, critic, scene(CUP, BUS), None)
    assert (found.wrong, found.change, found.done, found.score) == ("", "", True, 1.0)
    assert found.text is not None and is_done(found.text) and "medium red cup at (4,8)" in found.text


def test_a_wrong_color_is_named_and_recolored_in_its_place(critic: MiniCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = scene(replace(CUP, color="blue"), BUS)
    found = verdict(monkeypatch, critic, shown, None)
    assert found.wrong == "the cup at (4,8) is blue, not red." and found.change == "recolor the cup at (4,8) to red."
    assert not found.done and found.score == 0.5
    corrected = world.parse_layout(world.parse_reflection(found.text).final_prompt)
    assert CUP in corrected.things and [thing.name for thing in corrected.things] == ["cup", "bus"]
    assert verdict(monkeypatch, critic, shown, None) == found


def test_what_is_missing_goes_where_the_plan_has_it(critic: MiniCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict(monkeypatch, critic, scene(CUP), world.write_layout(scene(CUP, BUS)))
    assert found.wrong == "one bus is missing." and found.change == "add a medium bus at (8,3)."


def test_the_bundled_detector_sees_nothing_in_a_blank_image(critic: MiniCritic) -> None:
    found = critic.review(Review(PROMPT, BLANK)).result()
    assert not found.done and found.score == pytest.approx(1 / 3)
    assert "cup is missing" in found.wrong and "bus is missing" in found.wrong


@pytest.mark.parametrize("prompt", ["the sound of one hand clapping", "a photo of a red dragon"])
def test_what_the_world_does_not_know_is_refused(critic: MiniCritic, prompt: str) -> None:
    with pytest.raises(CriticError, match="does not know") as caught:
        critic.review(Review(prompt, BLANK)).result()
    assert caught.value.kind == "refused"


def test_another_detector_is_a_folder() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        make("nowhere", CriticOptions())
