"""The reward of images, on renderings whose truth is known."""

import numpy as np
import pytest
from PIL import Image

from irg.learning.rl.prompts import Prompt
from irg.results.trajectory import Trajectory, Turn
from irg_mini import world
from irg_mini.measure.image_rewards import ImageReward

REQUEST = world.make_request([world.Include("clock"), world.Include("apple", color="red", position=("left of", 0))])
RIGHT = "Scene: meadow. Things: medium red apple at (2,6); medium clock at (8,6)."


def drawn(layout: str, size: int = 128) -> Trajectory:
    pixels = world.render(world.parse_layout(layout), size, world.load_sprites("builtin"))
    return Trajectory("p", "think", 0, "mini", {}, [Turn("plan", Image.fromarray(np.asarray(pixels)))])


def test_the_detector_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    from irg_mini.measure import image_rewards

    class Seeing:
        def detect(self, images: np.ndarray, threshold: float) -> list[list[world.Seen]]:
            return [world.see(world.parse_layout(RIGHT), 128) if image.mean() > 9 else [] for image in images]

    monkeypatch.setattr(image_rewards, "detector_named", lambda name: Seeing())
    black = Trajectory("p", "think", 0, "mini", {}, [Turn("plan", Image.new("RGB", (64, 64)))])
    prompt = Prompt("a red apple left of a clock", REQUEST.to_json())
    found = ImageReward().scores([prompt] * 3, [drawn(RIGHT), black, drawn(RIGHT)])
    assert [score.value for score in found] == [1.0, 0.0, 1.0] and "red apple" in found[0].reasons
    with pytest.raises(ValueError, match="no image to look at"):
        ImageReward()(prompt, Trajectory("p", "think", 0, "mini", {}, [Turn("plan", None)]))
