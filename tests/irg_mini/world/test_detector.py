"""The detector's decoding of its maps, its files, and its training targets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irg_mini.world.classes import COLORS
from irg_mini.world.detector import Detector, DetectorConfig, Maps, decode_maps, overlap, without_doubles
from irg_mini.world.rules import Seen

CONFIG = DetectorConfig(
    names=("apple", "dog"), size=32, patch=4, fine_width=4, fine_depth=1, coarse_width=8, coarse_depth=1
)


def empty_maps(config: DetectorConfig = CONFIG) -> Maps:
    grid = config.grid
    return Maps(
        torch.full((1, len(config.names), grid, grid), -8.0),
        torch.zeros(1, len(COLORS) + 1, grid, grid),
        torch.tensor([0.5, 0.5, np.log(0.25), np.log(0.5)]).view(1, 4, 1, 1).repeat(1, 1, grid, grid).float(),
    )


def test_a_planted_peak_is_found() -> None:
    maps = empty_maps()
    maps.heat_BKgg[0, 1, 2, 1] = 3.0
    maps.color_BQgg[0, COLORS.index("green"), 2, 1] = 5.0
    ((seen,),) = decode_maps(maps, CONFIG, threshold=0.2, size=(32, 32))
    assert (seen.name, seen.color) == ("dog", "green")
    # Cell (row 2, col 1) of 8 px has its middle at (12, 20); the box is 8 x 16 px.
    assert seen.box == pytest.approx((8, 12, 16, 28))
    assert seen.score == pytest.approx(1 / (1 + np.exp(-3)))


def test_a_neighboring_lower_cell_is_no_peak() -> None:
    maps = empty_maps()
    maps.heat_BKgg[0, 0, 1, 1], maps.heat_BKgg[0, 0, 1, 2] = 3.0, 2.0
    ((seen,),) = decode_maps(maps, CONFIG, threshold=0.2, size=(32, 32))
    assert seen.name == "apple"


def test_the_last_color_is_none_and_scores_are_calibrated() -> None:
    maps = empty_maps()
    maps.heat_BKgg[0, 0, 0, 0] = 1.0
    maps.color_BQgg[0, len(COLORS), 0, 0] = 5.0
    config = replace(CONFIG, score_slope=2.0, score_shift=-1.0)
    ((seen,),) = decode_maps(maps, config, threshold=0.2, size=(32, 32))
    assert seen.color is None and seen.score == pytest.approx(1 / (1 + np.exp(-1)))


def test_peaks_below_the_threshold_are_dropped() -> None:
    maps = empty_maps()
    maps.heat_BKgg[0, 0, 0, 0] = -1.0
    assert decode_maps(maps, CONFIG, threshold=0.5, size=(32, 32)) == [[]]


def test_doubles() -> None:
    sure = Seen("dog", None, (0, 0, 10, 10), 0.9)
    same = Seen("dog", None, (1, 1, 11, 11), 0.8)  # IoU .68
    other = Seen("apple", None, (1, 1, 11, 11), 0.7)
    beside = Seen("dog", None, (8, 0, 18, 10), 0.6)  # IoU .11
    assert overlap(sure.box, same.box) == pytest.approx(81 / 119)
    assert without_doubles([sure, same, other, beside]) == [sure, beside]


def test_detect_takes_any_size_and_is_deterministic() -> None:
    torch.manual_seed(0)
    detector = Detector(replace(CONFIG, score_shift=6.0)).train()
    images = np.random.default_rng(0).integers(256, size=(3, 48, 64, 3), dtype=np.uint8)
    first, second = detector.detect(images), detector.detect(images, batch=2)
    assert detector.training and any(first)
    assert [[s.name for s in seen] for seen in first] == [[s.name for s in seen] for seen in second]
    assert max(s.box[2] for seen in first for s in seen) > 48  # boxes are in the given images' pixels
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(images.astype(np.float32))


def test_save_and_load(tmp_path: Path) -> None:
    detector = Detector(replace(CONFIG, score_slope=1.5)).eval()
    detector.save(tmp_path)
    again = Detector.load(tmp_path)
    assert again.config == detector.config
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert again.detect(images, threshold=0.0) == detector.detect(images, threshold=0.0)
    (tmp_path / "config.json").write_text('{"names": ["apple"], "colour": 1}')
    with pytest.raises(ValueError, match="unknown fields colour"):
        Detector.load(tmp_path)
    with pytest.raises(ValueError, match="no detector in"):
        Detector.load(tmp_path / "nowhere")


@pytest.mark.parametrize(("old", "new"), [("mini-judge", "label-detector"), ("mini-referee", "eval-detector")])
def test_bundled_detectors_are_found_by_name_also_by_their_earlier_ones(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"detector {old} is now called {new}"):
        config = Detector.load(old).config
    assert config == Detector.load(new).config and len(config.names) == 80


def test_configurations_of_earlier_versions_are_read(tmp_path: Path) -> None:
    Detector(CONFIG).save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fine_heads": False}))
    assert Detector.load(tmp_path).config == CONFIG


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        DetectorConfig(names=())
    with pytest.raises(ValueError, match="multiple of twice the patch"):
        DetectorConfig(names=("apple",), size=90)
