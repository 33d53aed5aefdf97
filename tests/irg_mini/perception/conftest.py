"""Rendered images that several tests here share."""

from collections.abc import Callable

import numpy as np
import pytest

from irg_mini.perception.labeled_images import LabeledImage, Pool
from irg_mini.world.scene import Scene
from irg_mini.world.sprites import Sprites, load_sprites


@pytest.fixture(scope="package")
def sprites() -> Sprites:
    return load_sprites("builtin")


@pytest.fixture
def make_pool(sprites: Sprites) -> Callable[[], Pool]:
    return lambda: Pool(24, seed=1, degraded_share=0.2, sprites=sprites, vocab=sprites.names)


@pytest.fixture(scope="package")
def pool(sprites: Sprites) -> Pool:
    return Pool(48, seed=1, degraded_share=0.2, sprites=sprites, vocab=sprites.names)


@pytest.fixture
def example_of() -> Callable[..., LabeledImage]:
    """A black image that is said to hold these things."""
    return lambda *things: LabeledImage(np.zeros((96, 96, 3), np.uint8), things, Scene("meadow", things))
