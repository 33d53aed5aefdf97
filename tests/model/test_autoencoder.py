"""Both autoencoders' shared calls, their shapes, and the rules of uint8 images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from irg.engine.runner import Runner
from irg.model.network.autoencoder import (
    Autoencoder,
    CompactAutoencoder,
    CompactConfig,
    FluxAutoencoder,
    FluxConfig,
    build_autoencoder,
    images_at_once,
)
from irg.model.weights.checkpoint import LoadedModel

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


@torch.no_grad()
def test_attention_takes_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own choice for what the autoencoder hands over; without contiguous channels it would be ``MATH``."""
    chosen, attention = [], F.scaled_dot_product_attention

    def watched(*qkv: torch.Tensor) -> torch.Tensor:
        chosen.append(torch._fused_sdp_choice(*qkv))
        return attention(*qkv)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    autoencoder = FluxAutoencoder(TINY_FLUX).eval()
    autoencoder.decode(autoencoder.encode(torch.randn(2, 3, 64, 64)))
    assert chosen == [SDPBackend.FLASH_ATTENTION.value] * 2


def test_large_images_are_decoded_in_turns(tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [images_at_once(side, side) for side in (128, 512, 1024, 2048)] == [128, 8, 2, 1]
    runner, batches = Runner(tiny_loaded.model, tiny_loaded.autoencoder), list[int]()
    latents = torch.randn(5, tiny_loaded.autoencoder.z_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    together, decode = runner.decode_latents(latents), tiny_loaded.autoencoder.decode

    def counted(z: torch.Tensor) -> torch.Tensor:
        batches.append(len(z))
        return decode(z)

    monkeypatch.setattr(tiny_loaded.autoencoder, "decode", counted)
    monkeypatch.setattr("irg.model.network.autoencoder.PIXELS_AT_ONCE", 2 * 32 * 32)
    assert torch.allclose(runner.decode_latents(latents), together, atol=1e-5) and batches == [2, 2, 1]
