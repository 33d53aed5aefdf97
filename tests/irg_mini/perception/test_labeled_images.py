"""Labeled images of the world and their augmentation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from irg_mini.perception.labeled_images import Augmentation, Pool, color_of, sample_example
from irg_mini.world.classes import COLORS
from irg_mini.world.scene import Thing
from irg_mini.world.sprites import Sprites


def test_examples_repeat_and_what_is_unrecognizable_is_not_labeled(sprites: Sprites) -> None:
    fewer = 0
    for i in range(40):
        example, again = (
            sample_example(np.random.default_rng(i), unrecognizable_share=1.0, sprites=sprites, vocab=sprites.names)
            for _ in "ab"
        )
        assert np.array_equal(example.image, again.image) and example.things == again.things
        assert set(example.things) <= set(example.scene.things)
        fewer += len(example.things) < len(example.scene.things)
    assert 15 < fewer < 40


def test_colors() -> None:
    assert color_of(Thing("apple", None, 1, 1, "small")) == COLORS.index("red")
    assert color_of(Thing("apple", "blue", 1, 1, "small")) == COLORS.index("blue")
    assert color_of(Thing("zebra", None, 1, 1, "small")) == len(COLORS)


def test_augmentation_moves_points_as_it_says() -> None:
    x = torch.zeros(6, 3, 96, 96)
    x[:, :, 30:34, 60:64] = 1.0  # its middle is at (62, 32)
    augmentation = Augmentation(move=0.05, zoom=0.1, wobble=0.0, ghost=0.0, noise=0.0, color=0.0)
    y, shift = augmentation(x.clone(), torch.Generator().manual_seed(0))
    for i in range(6):
        light = y[i, 0].double()
        u = float((light.sum(0) * (torch.arange(96) + 0.5)).sum() / light.sum())
        v = float((light.sum(1) * (torch.arange(96) + 0.5)).sum() / light.sum())
        assert shift(i, (62 / 96, 32 / 96)) == pytest.approx((u / 96, v / 96), abs=0.004)


def test_refreshing_at_once_leaves_the_same_images_as_step_by_step(make_pool: Callable[[], Pool]) -> None:
    slow, fast = make_pool(), make_pool()
    for _ in range(20):
        slow.refresh(3)
    fast.refresh(60)
    assert slow.made == fast.made == 84
    for one, other in zip(slow.examples, fast.examples, strict=True):
        assert np.array_equal(one.image, other.image) and one.things == other.things
