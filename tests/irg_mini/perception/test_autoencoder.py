"""The compact autoencoder's training: it learns, resumes exactly, and leaves standardized latents."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irg.model.network.autoencoder import CompactConfig
from irg_mini.perception.autoencoder import (
    AutoencoderConfig,
    AutoencoderTraining,
    load_compact,
    reconstruction,
    reconstruction_loss,
    train,
)
from irg_mini.perception.optim import MuonAdamW

TINY = CompactConfig(
    z_channels=4, encoder_widths=(8, 16), encoder_depths=(1, 1), decoder_widths=(8, 8, 16), decoder_depths=(1, 1, 1)
)


def images(count: int, size: int = 32) -> np.ndarray:
    """Squares on plain grounds, uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(0)
    pool = np.empty((count, size, size, 3), dtype=np.uint8)
    for image in pool:
        image[:] = rng.integers(256, size=3)
        top, left = rng.integers(size // 2, size=2)
        image[top : top + size // 2, left : left + size // 2] = rng.integers(256, size=3)
    return pool


@pytest.fixture
def config(tmp_path: Path) -> AutoencoderConfig:
    return AutoencoderConfig(out=tmp_path / "ae", model=TINY, steps=40, batch=8, pool=64, size=32, warmup=5)


def test_the_loss_falls(config: AutoencoderConfig) -> None:
    run, pool = AutoencoderTraining(replace(config, steps=1000)), images(64)
    losses = [run.train_step(pool)["total"] for _ in range(120)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_a_resumed_run_equals_an_uninterrupted_one(config: AutoencoderConfig, tmp_path: Path) -> None:
    pool = images(64)
    whole = AutoencoderTraining(config)
    first = AutoencoderTraining(replace(config, out=tmp_path / "part"))
    for _ in range(4):
        whole.train_step(pool)
        first.train_step(pool)
    first.save()
    second = AutoencoderTraining(first.config)
    assert second.load() and second.step == 4
    for _ in range(3):
        assert whole.train_step(pool) == second.train_step(pool)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_the_end_of_a_run(config: AutoencoderConfig) -> None:
    pool = images(64)
    model = train(replace(config, steps=6), pool, pool[:16])
    z = model.encode(torch.from_numpy(pool).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    names = {path.name for path in config.out.iterdir()}
    again = load_compact(config.out)
    assert torch.equal(again.latent_std, model.latent_std)
    reconstructed = reconstruction(again)(pool[:3])
    assert reconstructed.shape == (3, 32, 32, 3) and reconstructed.dtype == np.uint8
    assert names == {"ae.safetensors", "config.json", "state.safetensors", "log.jsonl"}


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no compact autoencoder in"):
        load_compact(tmp_path)


def test_loss_terms() -> None:
    x = torch.zeros(1, 3, 8, 8)
    flat = reconstruction_loss(x + 0.5, x, edge_weight=1.0, scale_weight=0.5)
    assert flat["pixel"] == 0.5 and flat["edge"] == 0.0 and flat["scales"] == 1.0 and flat["total"] == 1.0


def test_convolutions_get_equal_singular_values() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    MuonAdamW([weight], muon_lr=1.0).step()
    singular = torch.linalg.svdvals(weight.detach().flatten(1))
    assert 0.5 < singular.min() and singular.max() < 1.8


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        AutoencoderConfig(size=50)
    with pytest.raises(ValueError, match="cannot fill a batch"):
        AutoencoderConfig(pool=4, batch=16)
