"""Between irg's images and latents and ComfyUI's.

Legend: B images; H, W pixels; C latent channels; h, w latent cells.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_batch(images: Sequence[Image.Image]) -> Tensor:
    """An IMAGE: float32 [B, H, W, 3] from 0 to 1, of images of one size."""
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images]
    return torch.from_numpy(np.stack(arrays))


def to_pillow(image_BHWC: Tensor) -> Image.Image:
    """The one image of an IMAGE.

    Raises:
        ValueError: there are several.
    """
    if len(image_BHWC) != 1:
        raise ValueError(f"one image is needed, got a batch of {len(image_BHWC)}: pick one of them first")
    levels_HWC = (image_BHWC[0, :, :, :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels_HWC.cpu().numpy())


def to_latent(latents_Chw: Tensor, pipe: Any) -> dict[str, Tensor]:
    """A LATENT as ComfyUI's own nodes have it: the autoencoder's raw latents (of BAGEL: FLUX's), float32."""
    raw_BChw = pipe.engine.runner.autoencoder.restore(latents_Chw[None])
    return {"samples": raw_BChw.detach().float().cpu()}


class Autoencoder:
    """A model's autoencoder as ComfyUI's nodes VAE Decode and VAE Encode use one."""

    def __init__(self, pipe: Any) -> None:
        self._runner = pipe.engine.runner

    def decode(self, samples_BChw: Tensor) -> Tensor:
        """The IMAGE of a LATENT's samples."""
        scaled_BChw = self._runner.autoencoder.standardize(samples_BChw)
        pixels_B3HW = self._runner.decode_latents(scaled_BChw)
        return (pixels_B3HW.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()

    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """A LATENT's samples of an IMAGE."""
        pixels_B3HW = pixels_BHWC[..., :3].permute(0, 3, 1, 2) * 2 - 1
        scaled_BChw = self._runner.read_latents(pixels_B3HW)
        return self._runner.autoencoder.restore(scaled_BChw).float().cpu()
