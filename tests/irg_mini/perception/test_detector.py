"""The detectors' training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from irg_mini.perception.detector import DetectorTraining, DetectorTrainingConfig, agreement, calibrated, targets_of
from irg_mini.perception.labeled_images import LabeledImage, Pool, Shift
from irg_mini.world.classes import COLORS
from irg_mini.world.detector import Detector
from irg_mini.world.scene import Thing
from irg_mini.world.sprites import Sprites


def test_targets(example_of: Callable[..., LabeledImage]) -> None:
    config = DetectorTrainingConfig(vocab=("apple", "dog")).detector
    thing = Thing("dog", "blue", col=3, row=5, size="medium")
    targets = targets_of([example_of(), example_of(thing)], Shift(np.ones(2), np.zeros((2, 2))), config)
    assert targets.cell_T3.tolist() == [[1, 5, 3]] and targets.color_T.tolist() == [COLORS.index("blue")]
    assert targets.heat_BKgg[1, 1, 5, 3] == 1.0 and targets.heat_BKgg[1, 1].argmax() == 5 * 12 + 3
    assert targets.heat_BKgg[0].sum() == 0.0 and targets.heat_BKgg[1, 0].sum() == 0.0
    x, y, log_width, log_height = targets.box_T4[0].tolist()
    assert (x, y) == pytest.approx((0.5, 0.5), abs=0.07)  # whole pixels
    assert np.exp(log_width + log_height) == pytest.approx(0.28**2, rel=0.1)


def test_a_detector_learns(pool: Pool, sprites: Sprites, tmp_path: Path) -> None:
    vocab = tuple(sprites.names)
    config = DetectorTrainingConfig(out=tmp_path, batch=8, refresh=1, warmup=5, width=32, pool=48, vocab=vocab)
    run = DetectorTraining(config)
    losses = [run.train_step(pool)["total"] for _ in range(50)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    found = agreement(run.detector, 12, seed=3, sprites=sprites)
    assert 0 <= found["agreement"] <= 1 and found["images"] == 12
    detector = Detector(calibrated(run.detector, pool.examples))
    assert detector.config.score_slope > 0
