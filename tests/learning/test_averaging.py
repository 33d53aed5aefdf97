"""The mean of two models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from irg.learning.averaging import Averaging, average
from irg.model.network.autoencoder import build_autoencoder
from irg.model.network.config import tiny
from irg.model.weights.checkpoint import load_model, save_model
from irg.model.weights.initialize import random_model
from irg.model.weights.profile import read_profile
from irg_mini.start.base_model import PROFILE


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    config = tiny()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        save_model(folder, config, random_model(config, seed), build_autoencoder(config.autoencoder))
        replace(PROFILE, name=str(seed)).save(folder)
    return str(tmp_path / "0"), str(tmp_path / "1")


def test_weights_lie_between(two: tuple[str, str], tmp_path: Path) -> None:
    average(Averaging(two, str(tmp_path / "mean"), 0.25))
    first, second, mean = (load_model(folder).model.state_dict() for folder in (*two, tmp_path / "mean"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, weight in mean.items():
        torch.testing.assert_close(weight, 0.75 * first[name] + 0.25 * second[name])
    profile = read_profile(tmp_path / "mean")
    assert profile is not None and profile.name == "0"


def test_nothing_is_overwritten_and_unlike_models_are_refused(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        average(Averaging(two, two[1]))
    config = replace(tiny(), decoder=replace(tiny().decoder, num_hidden_layers=tiny().decoder.num_hidden_layers + 1))
    save_model(tmp_path / "2", config, random_model(config, 0), build_autoencoder(config.autoencoder))
    with pytest.raises(ValueError, match="not of one configuration"):
        average(Averaging((two[0], str(tmp_path / "2")), str(tmp_path / "mean")))
    assert not (tmp_path / "mean").exists()
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5"):
        Averaging(two, "x", 1.5)
