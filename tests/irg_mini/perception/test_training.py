"""The training loop and its schedule."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from irg.model.network.config import VitConfig
from irg_mini.perception import training
from irg_mini.perception.detector import DetectorTraining, DetectorTrainingConfig
from irg_mini.perception.labeled_images import Pool
from irg_mini.perception.schedule import Schedule
from irg_mini.perception.training import Training
from irg_mini.perception.vit import VitTraining, VitTrainingConfig
from irg_mini.world.sprites import Sprites

SMALL: dict[str, Any] = {"steps": 8, "batch": 8, "pool": 24, "refresh": 3, "warmup": 2, "save_every": 3}


def trainings(out: Path, sprites: Sprites) -> list[Training[Pool]]:
    detector = DetectorTrainingConfig(out=out / "detector", width=16, vocab=tuple(sprites.names), **SMALL)
    vit = VitConfig(32, 64, 1, 2, patch_size=12, image_size=96)
    return [DetectorTraining(detector), VitTraining(VitTrainingConfig(out=out / "vit", vit=vit, **SMALL))]


@pytest.mark.parametrize("kind", [0, 1], ids=["detector", "vit"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: int, make_pool: Callable[[], Pool], sprites: Sprites, tmp_path: Path
) -> None:
    whole, first, second = (trainings(tmp_path / name, sprites)[kind] for name in ("whole", "part", "part"))
    whole.run(make_pool())
    pool = make_pool()
    for _ in range(5):
        first.train_step(pool)
    first.save()
    second.run(make_pool())
    assert second.step == whole.step == 8
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_a_run_that_diverges_is_stopped(make_pool: Callable[[], Pool], sprites: Sprites, tmp_path: Path) -> None:
    training = trainings(tmp_path, sprites)[0]
    with torch.no_grad():
        next(training.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged at step 1"):
        training.run(make_pool())


def test_the_log_is_continued_or_begun_anew(
    make_pool: Callable[[], Pool], sprites: Sprites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    pool, config = make_pool(), replace(trainings(tmp_path, sprites)[1].config, batch=2)
    for steps, resume, logged in ((4, True, [2, 4]), (6, True, [2, 4, 6]), (2, False, [2])):
        VitTraining(replace(config, steps=steps, resume=resume)).run(pool)
        log = [json.loads(line) for line in (tmp_path / "vit" / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == logged


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="a pool of 4 images cannot fill a batch of 32"):
        DetectorTrainingConfig(pool=4)
    with pytest.raises(ValueError, match="unknown variant 'referee'; choose from label, eval"):
        DetectorTrainingConfig(variant="referee")
    with pytest.raises(ValueError, match="cooldown is a share"):
        VitTrainingConfig(cooldown=2.0)


def test_schedule() -> None:
    schedule = Schedule(steps=100, warmup=10, cooldown=0.5)
    schedule.start(0)
    assert [schedule.factor(step) for step in (0, 9, 50, 75, 100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    assert not schedule.done(99) and schedule.done(100)
    timed = Schedule(steps=1, minutes=0.0)
    timed.start(0)
    assert not timed.done(19) and not timed.done(20) and timed.steps == 21 and timed.done(21)
    with pytest.raises(ValueError, match="cooldown"):
        Schedule(steps=1, cooldown=2.0)
