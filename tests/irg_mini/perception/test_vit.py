"""The ViT's pre-training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from irg.model.network.config import VitConfig
from irg_mini.perception.labeled_images import LabeledImage, Pool, Shift
from irg_mini.perception.vit import (
    CENTER_HEADS,
    NOTHING,
    VitTraining,
    VitTrainingConfig,
    heads,
    targets_of,
    to_patches,
)
from irg_mini.world.classes import COLORS, classes
from irg_mini.world.scene import Thing


def test_targets(example_of: Callable[..., LabeledImage]) -> None:
    thing = Thing("dog", "blue", col=3, row=5, size="medium")  # its center is at (28, 44) px: patch (3, 2) of 12 px
    targets = targets_of([example_of(thing)], Shift(np.ones(1), np.zeros((1, 2))), side=8)
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
    patches = to_patches(x, 2)
    assert patches.shape == (4, 12)
    assert patches[1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]


def test_a_vit_learns(pool: Pool, tmp_path: Path) -> None:
    vit = VitConfig(32, 64, 1, 2, patch_size=12, image_size=96)
    config = VitTrainingConfig(out=tmp_path, vit=vit, batch=8, pool=48, refresh=1, warmup=5)
    run = VitTraining(config)
    losses = [run.train_step(pool)["total"] for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    metrics = run.measure(pool, augmented=True)
    assert set(metrics) >= {"class", "color", "place", "centers_found", "false_centers"}
    run.save()
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "state.safetensors"}
