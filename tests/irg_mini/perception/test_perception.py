"""What looks at images learns to: detectors and image readers, on the built-in sprites."""

from pathlib import Path

import numpy as np
import pytest
import torch

from irg.model.network.config import VitConfig
from irg_mini.perception import detector as detection
from irg_mini.perception import vit as vit_pretraining
from irg_mini.perception.detector import Detection, DetectionConfig, agreement, calibrated
from irg_mini.perception.labeled_images import Pool, Shift, Sight, Softening, color_of, sample_sight
from irg_mini.perception.schedule import Pace
from irg_mini.perception.vit import CENTER_HEADS, NOTHING, VitPretraining, VitPretrainingConfig, heads
from irg_mini.world.classes import COLORS, classes
from irg_mini.world.detector import Detector
from irg_mini.world.scene import Scene, Thing
from irg_mini.world.sprites import Sprites, load_sprites


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return load_sprites("builtin")


@pytest.fixture(scope="module")
def pool(sprites: Sprites) -> Pool:
    return Pool(48, seed=1, spoiled_share=0.2, sprites=sprites, vocab=sprites.names)


def sight_of(*things: Thing) -> Sight:
    return Sight(np.zeros((96, 96, 3), np.uint8), things, Scene("meadow", things))


def still(count: int) -> Shift:
    return Shift(np.ones(count), np.zeros((count, 2)))


def test_sights_repeat_and_mush_is_not_labeled(sprites: Sprites) -> None:
    fewer = 0
    for i in range(40):
        sight, again = (
            sample_sight(np.random.default_rng(i), mush_share=1.0, sprites=sprites, vocab=sprites.names) for _ in "ab"
        )
        assert np.array_equal(sight.image, again.image) and sight.things == again.things
        assert set(sight.things) <= set(sight.scene.things)
        fewer += len(sight.things) < len(sight.scene.things)
    assert 15 < fewer < 40


def test_colors() -> None:
    assert color_of(Thing("apple", None, 1, 1, "small")) == COLORS.index("red")
    assert color_of(Thing("apple", "blue", 1, 1, "small")) == COLORS.index("blue")
    assert color_of(Thing("zebra", None, 1, 1, "small")) == len(COLORS)


def test_softening_moves_points_as_it_says() -> None:
    x = torch.zeros(6, 3, 96, 96)
    x[:, :, 30:34, 60:64] = 1.0  # its middle is at (62, 32)
    softening = Softening(move=0.05, zoom=0.1, wobble=0.0, ghost=0.0, noise=0.0, color=0.0)
    y, shift = softening(x.clone(), torch.Generator().manual_seed(0))
    for i in range(6):
        light = y[i, 0].double()
        u = float((light.sum(0) * (torch.arange(96) + 0.5)).sum() / light.sum())
        v = float((light.sum(1) * (torch.arange(96) + 0.5)).sum() / light.sum())
        assert shift(i, (62 / 96, 32 / 96)) == pytest.approx((u / 96, v / 96), abs=0.004)


def test_detection_targets() -> None:
    config = DetectionConfig(vocab=("apple", "dog")).detector
    thing = Thing("dog", "blue", col=3, row=5, size="medium")
    targets = detection.targets_of([sight_of(), sight_of(thing)], still(2), config)
    assert targets.cell_T3.tolist() == [[1, 5, 3]] and targets.color_T.tolist() == [COLORS.index("blue")]
    assert targets.heat_BKgg[1, 1, 5, 3] == 1.0 and targets.heat_BKgg[1, 1].argmax() == 5 * 12 + 3
    assert targets.heat_BKgg[0].sum() == 0.0 and targets.heat_BKgg[1, 0].sum() == 0.0
    x, y, log_width, log_height = targets.box_T4[0].tolist()
    assert (x, y) == pytest.approx((0.5, 0.5), abs=0.07)  # whole pixels
    assert np.exp(log_width + log_height) == pytest.approx(0.28**2, rel=0.1)


def test_a_detector_learns(pool: Pool, sprites: Sprites, tmp_path: Path) -> None:
    vocab = tuple(sprites.names)
    config = DetectionConfig(out=tmp_path, batch=8, refresh=1, warmup=5, width=32, pool=48, vocab=vocab)
    run = Detection(config)
    losses = [run.train_step(pool)["total"] for _ in range(50)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    found = agreement(run.detector, 12, seed=3, sprites=sprites)
    assert 0 <= found["agreement"] <= 1 and found["images"] == 12
    detector = Detector(calibrated(run.detector, pool.sights))
    assert detector.config.score_slope > 0


def test_reader_targets() -> None:
    thing = Thing("dog", "blue", col=3, row=5, size="medium")  # its center is at (28, 44) px: patch (3, 2) of 12 px
    targets = vit_pretraining.targets_of([sight_of(thing)], still(1), side=8)
    patch = 3 * 8 + 2
    asked = {head: targets[head][patch].item() for head in CENTER_HEADS}
    dog = list(classes()).index("dog")
    assert asked == {"class": dog, "color": COLORS.index("blue"), "size": 1, "col": 3, "row": 5}
    assert (targets["class"] != heads()["class"] - 1).sum() == 1
    assert (targets["color"] != NOTHING).sum() == 1
    assert 4 <= (targets["cover"] == dog).sum() <= 9
    assert targets["quality"].unique().tolist() == [3]


def test_patches_are_ordered_row_column_rgb() -> None:
    x = torch.arange(3 * 4 * 4).float().reshape(1, 3, 4, 4)
    patches = vit_pretraining.to_patches(x, 2)
    assert patches.shape == (4, 12)
    assert patches[1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]


def test_a_reader_learns(pool: Pool, tmp_path: Path) -> None:
    vit = VitConfig(32, 64, 1, 2, patch_size=12, image_size=96)
    config = VitPretrainingConfig(out=tmp_path, vit=vit, batch=8, pool=48, refresh=1, warmup=5)
    run = VitPretraining(config)
    losses = [run.train_step(pool)["total"] for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    metrics = run.measure(pool, softened=True)
    assert set(metrics) >= {"class", "color", "place", "centres_found", "false_centres"}
    run.save(metrics)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "metrics.json"}


def test_pace() -> None:
    pace = Pace(steps=100, warmup=10, cooldown=0.5)
    pace.start(0)
    assert [pace.factor(step) for step in (0, 9, 50, 75, 100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    assert not pace.done(99) and pace.done(100)
    timed = Pace(steps=1, minutes=0.0)
    timed.start(0)
    assert not timed.done(19) and not timed.done(20) and timed.steps == 21 and timed.done(21)
    with pytest.raises(ValueError, match="cooldown"):
        Pace(steps=1, cooldown=2.0)
