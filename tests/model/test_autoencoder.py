"""Both autoencoders' shared calls, their shapes, and the rules of uint8 images."""

import numpy as np
import pytest
import torch

from irg.model.network.autoencoder import (
    Autoencoder,
    CompactAutoencoder,
    CompactConfig,
    FluxAutoencoder,
    FluxConfig,
    build_autoencoder,
)

TINY_FLUX = FluxConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)
TINY_COMPACT = CompactConfig(
    z_channels=4, encoder_widths=(8, 16), encoder_depths=(1, 1), decoder_widths=(8, 8, 16), decoder_depths=(1, 1, 1)
)


@pytest.fixture(params=[TINY_FLUX, TINY_COMPACT], ids=["flux", "compact"])
def autoencoder(request: pytest.FixtureRequest) -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(request.param).eval()


@torch.no_grad()
def test_shapes(autoencoder: Autoencoder) -> None:
    x = torch.randn(2, 3, 24, 40)
    assert (autoencoder.downsample, autoencoder.z_channels) == (8, 4)
    assert autoencoder.moments(x).shape == (2, 8, 3, 5)
    z = autoencoder.encode(x)
    assert z.shape == (2, 4, 3, 5)
    assert autoencoder.decode(z).shape == x.shape


@torch.no_grad()
def test_encode_samples_the_posterior(autoencoder: Autoencoder) -> None:
    x, eps = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    mean, logvar = autoencoder.moments(x).chunk(2, dim=1)
    assert torch.allclose(autoencoder.restore(autoencoder.encode(x)), mean, atol=1e-5)
    sampled = autoencoder.restore(autoencoder.encode(x, eps))
    assert torch.allclose(sampled, mean + torch.exp(0.5 * logvar) * eps, atol=1e-5)


def test_wrong_sizes_are_refused(autoencoder: Autoencoder) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        autoencoder.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match="latents must be"):
        autoencoder.decode(torch.zeros(1, 5, 2, 2))


def test_flux_scale_and_shift() -> None:
    autoencoder = FluxAutoencoder(TINY_FLUX)
    z = torch.full((1, 4, 1, 1), 2.1159)
    assert autoencoder.standardize(z)[0, 0, 0, 0].item() == pytest.approx(0.7222, abs=1e-6)


def test_the_published_flux_layout() -> None:
    with torch.device("meta"):
        state = FluxAutoencoder(FluxConfig()).state_dict()
    assert len(state) == 244
    assert round(sum(v.numel() for v in state.values()) / 1e6, 1) == 83.8
    assert state["decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    assert state["encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)


def test_flux_levels_must_fit_the_downsampling() -> None:
    with pytest.raises(ValueError, match="downsample 16"):
        FluxConfig(downsample=16)


def test_compact_latents_are_standardized() -> None:
    autoencoder = CompactAutoencoder(TINY_COMPACT)
    autoencoder.latent_mean.fill_(1.0)
    autoencoder.latent_std.fill_(4.0)
    assert torch.equal(autoencoder.standardize(torch.full((1, 4, 1, 1), 3.0)), torch.full((1, 4, 1, 1), 0.5))
    logvar = autoencoder.moments(torch.zeros(1, 3, 8, 8))[0, 4, 0, 0]
    assert logvar.item() == pytest.approx(2 * np.log(0.03 * 4.0), abs=1e-5)


def test_compact_size() -> None:
    assert sum(p.numel() for p in CompactAutoencoder(CompactConfig()).parameters()) == 1_911_944
