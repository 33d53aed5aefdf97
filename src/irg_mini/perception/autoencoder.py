"""Training of the compact autoencoder on rendered scenes.

No adversary and no perceptual network: the loss is the distance of pixels, of their differences (edges) and of
coarser versions of the image. Decoding noised latents on a share of the samples makes the latent space smooth, so
that the small errors of a generator stay small in the image.

Run: ``python -m irg_mini.perception.autoencoder --out DIR --minutes 12``

Legend: B images; H, W pixels; h, w latent cells; z latent channels; M images in the pool.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from irg.files import write_bytes, write_json
from irg.model.network.autoencoder import Autoencoder, CompactAutoencoder, CompactConfig
from irg_mini.perception.labeled_images import Vocab, random_scene
from irg_mini.perception.training import Training, TrainingConfig, weights_of
from irg_mini.world.render import degrade, render


@dataclass(frozen=True)
class AutoencoderConfig(TrainingConfig):
    """How a compact autoencoder is trained."""

    out: Path = Path("runs/autoencoder")
    model: CompactConfig = field(default_factory=CompactConfig)
    warmup: int = 30
    edge_weight: float = 1.0
    scale_weight: float = 0.5
    noisy_share: float = 0.5
    """Share of the samples whose latents get noise before they are decoded."""
    noise: float = 0.15
    """Largest spread of that noise, in units of a latent channel's own spread."""
    latent_penalty: float = 1e-4
    pool: int = 20000
    held_out: int = 256
    size: int = 96
    vocab: str = "core"
    """The vocabulary of the images: core, geneval or full."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % CompactAutoencoder.downsample:
            raise ValueError(f"size {self.size} must be a multiple of {CompactAutoencoder.downsample}")
        if not 0 <= self.noisy_share <= 1:
            raise ValueError(f"noisy_share is a share between 0 and 1, not {self.noisy_share}")


# ------------------------------------------------------------------------------------------------------------- loss


def reconstruction_loss(y_B3HW: Tensor, x_B3HW: Tensor, edge_weight: float, scale_weight: float) -> dict[str, Tensor]:
    """Pixel, edge and coarse-scale L1 between reconstruction ``y`` and image ``x``, and their weighted total."""
    error_B3HW = y_B3HW - x_B3HW
    # Differences of the error are the error of the differences: one subtraction serves both images.
    edge = error_B3HW.diff(dim=2).abs().mean() + error_B3HW.diff(dim=3).abs().mean()
    coarse = F.avg_pool2d(error_B3HW, 2)
    coarser = F.avg_pool2d(coarse, 2)
    scales = coarse.abs().mean() + coarser.abs().mean()
    pixel = error_B3HW.abs().mean()
    return {
        "pixel": pixel,
        "edge": edge,
        "scales": scales,
        "total": pixel + edge_weight * edge + scale_weight * scales,
    }


def noised(mean_Bzhw: Tensor, config: AutoencoderConfig, generator: torch.Generator) -> Tensor:
    """Raw latents, some with noise in proportion to their channel's spread, so that growing them is no way out."""
    spread_z = mean_Bzhw.detach().std(dim=(0, 2, 3), keepdim=True)
    batch = mean_Bzhw.shape[0]
    chosen_B = torch.rand(batch, generator=generator) < config.noisy_share
    level_B = torch.rand(batch, generator=generator) * config.noise * chosen_B
    return mean_Bzhw + level_B.view(-1, 1, 1, 1) * spread_z * torch.randn(mean_Bzhw.shape, generator=generator)


# ---------------------------------------------------------------------------------------------------------- trainer


class AutoencoderTraining(Training[np.ndarray]):
    """One training run on a pool of images, uint8 [M, H, W, 3]."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, held_MHW3: np.ndarray | None = None) -> None:
        torch.manual_seed(config.seed)
        self.model = CompactAutoencoder(config.model)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.held_MHW3 = held_MHW3
        super().__init__(config, self.model)

    def losses(self, data: np.ndarray, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        x_B3HW = batch_of(data, rng, config.batch)
        mean_Bzhw = self.model.moments(x_B3HW).chunk(2, dim=1)[0]
        y_B3HW = self.model.decoder(noised(mean_Bzhw, config, generator))
        losses = reconstruction_loss(y_B3HW, x_B3HW, config.edge_weight, config.scale_weight)
        return losses | {"total": losses["total"] + config.latent_penalty * mean_Bzhw.square().mean()}

    def validate(self) -> dict[str, Any]:
        return {} if self.held_MHW3 is None else {"psnr": psnr(self.model, self.held_MHW3[:64])}

    def export(self) -> None:
        out = self.config.out
        write_bytes(out / "ae.safetensors", save(weights_of(self.model)))
        settings = asdict(self.config) | {"out": str(out)}
        write_json(out / "config.json", {"kind": "compact", "model": settings.pop("model"), "training": settings})


def batch_of(pool_MHW3: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
    """Random images of the pool, half of them mirrored: float32 [B, 3, H, W] in [-1, 1], channels last in memory."""
    images_BHW3 = pool_MHW3[rng.integers(len(pool_MHW3), size=size)]
    flip_B = rng.random(size) < 0.5
    images_BHW3[flip_B] = images_BHW3[flip_B, :, ::-1]
    return to_batch(images_BHW3)


def to_batch(images_BHW3: np.ndarray) -> Tensor:
    """uint8 images as float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


# ------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def set_latent_statistics(model: CompactAutoencoder, images_MHW3: np.ndarray) -> None:
    """Set the buffers that standardize latents, per channel, from images."""
    means = [model.moments(to_batch(part)).chunk(2, dim=1)[0] for part in _parts(images_MHW3)]
    latents_Mzhw = torch.cat(means)
    model.latent_mean.copy_(latents_Mzhw.mean(dim=(0, 2, 3)))
    model.latent_std.copy_(latents_Mzhw.std(dim=(0, 2, 3)).clamp_min(1e-6))


@torch.no_grad()
def psnr(model: CompactAutoencoder, images_MHW3: np.ndarray, noise: float = 0.0, seed: int = 0) -> float:
    """Mean PSNR in dB over images; ``noise`` (in units of each latent channel's spread) is added to the latents."""
    generator = torch.Generator().manual_seed(seed)
    ratios = []
    for part in _parts(images_MHW3):
        x_B3HW = to_batch(part)
        z_Bzhw = model.moments(x_B3HW).chunk(2, dim=1)[0]
        if noise:
            spread_z = z_Bzhw.std(dim=(0, 2, 3), keepdim=True)
            z_Bzhw = z_Bzhw + noise * spread_z * torch.randn(z_Bzhw.shape, generator=generator)
        y_B3HW = model.decoder(z_Bzhw).clamp(-1, 1)
        squares_B = ((y_B3HW - x_B3HW) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
        ratios.append(-10 * torch.log10(squares_B))
    return round(float(torch.cat(ratios).mean()), 3)


def evaluate(model: CompactAutoencoder, held_MHW3: np.ndarray) -> dict[str, float]:
    """PSNR on held-out images, clean and with noised latents, and the time to decode one image."""
    results = {f"psnr_noise_{level}": psnr(model, held_MHW3, level) for level in (0.0, 0.05, 0.1, 0.2)}
    side = held_MHW3.shape[1] // model.downsample
    z_1zhw = torch.zeros(1, model.z_channels, side, side)
    with torch.no_grad():
        model.decode(z_1zhw)
        start = time.perf_counter()
        for _ in range(20):
            model.decode(z_1zhw)
    return results | {"decode_ms": round((time.perf_counter() - start) / 20 * 1000, 2)}


def _parts(images_MHW3: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [images_MHW3[i : i + size] for i in range(0, len(images_MHW3), size)]


def load_compact(folder: Path | str) -> CompactAutoencoder:
    """The autoencoder that a training run left in a folder; ValueError if there is none."""
    folder = Path(folder)
    try:
        description = json.loads((folder / "config.json").read_text())
        model = CompactAutoencoder(CompactConfig(**description["model"]))
        model.load_state_dict(load_file(folder / "ae.safetensors"))
    except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"no compact autoencoder in {folder}: {error}") from None
    return model.eval()


def reconstruction(
    model: Autoencoder | CompactAutoencoder, noise: float = 0.35, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives images the look of decoded latents: uint8 [B, H, W, 3] in and out.

    Each image's latents get noise of a spread drawn from 0 to ``noise``.
    """
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def reconstruct(images_BHW3: np.ndarray) -> np.ndarray:
        parts = []
        for part_BHW3 in _parts(images_BHW3):
            z_Bzhw = model.encode(to_batch(part_BHW3))
            level_B = torch.rand(len(z_Bzhw), generator=generator) * noise
            z_Bzhw = z_Bzhw + level_B.view(-1, 1, 1, 1) * torch.randn(z_Bzhw.shape, generator=generator)
            parts.append(((model.decode(z_Bzhw).clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(parts).numpy()

    return reconstruct


# ------------------------------------------------------------------------------------------------------------- main


def render_pool(count: int, size: int, seed: int, degraded_share: float = 0.1, vocab: Vocab = "core") -> np.ndarray:
    """Rendered random scenes of the mini world, a share of them degraded: uint8 [count, size, size, 3]."""
    pool_MHW3 = np.empty((count, size, size, 3), dtype=np.uint8)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        pool_MHW3[i] = render(random_scene(rng, vocab), size, rng=rng)
        if rng.random() < degraded_share:
            pool_MHW3[i] = degrade(pool_MHW3[i], rng)
    return pool_MHW3


def train(config: AutoencoderConfig, pool_MHW3: np.ndarray, held_MHW3: np.ndarray) -> CompactAutoencoder:
    """Train, or finish, the run that a configuration describes; its files go to ``config.out``."""
    training = AutoencoderTraining(config, held_MHW3)
    training.run(pool_MHW3)
    set_latent_statistics(training.model, pool_MHW3[:2048])
    training.save()
    training.log(evaluate(training.model, held_MHW3))
    return training.model


def main(config: AutoencoderConfig) -> None:
    """Render the pool, then train."""
    pool_MHW3 = render_pool(config.pool, config.size, seed=config.seed + 1, vocab=config.vocab)
    held_MHW3 = render_pool(config.held_out, config.size, config.seed + 2, degraded_share=0.0, vocab=config.vocab)
    train(config, pool_MHW3, held_MHW3)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(AutoencoderConfig))
