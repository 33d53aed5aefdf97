"""Images to tokens and back: resizing rules, ViT patches, latent tokens.

Legend: H, W pixels; h, w tokens on a side; p patch size; C channels; N = h * w tokens; D values per token.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from irg.image_files import to_rgb


@dataclass(frozen=True)
class ResizeRule:
    """How an image is brought to a size that the network takes (``golden/README.md``, "Image resizing")."""

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) an image of ``width`` x ``height`` pixels is resized to.

        Both sides share one factor, then each is rounded to whole pixels and to the nearest multiple of the stride
        (halves to even). Too large an area is scaled by the *area* ratio, as the reference does.
        """
        factor = min(1.0, self.max_size / max(width, height))
        factor = max(factor, self.min_size / min(width, height))
        width, height = self._scaled(width, height, factor)
        if width * height > self.max_pixels:
            width, height = self._scaled(width, height, self.max_pixels / (width * height))
        if max(width, height) > self.max_size:
            width, height = self._scaled(width, height, self.max_size / max(width, height))
        return width, height

    def _scaled(self, width: int, height: int, factor: float) -> tuple[int, int]:
        def snap(pixels: float) -> int:
            return max(self.stride, round(round(pixels) / self.stride) * self.stride)

        return snap(width * factor), snap(height * factor)

    def check(self, width: int, height: int) -> None:
        """Check that an image keeps about its shape when it is resized.

        Raises:
            ValueError: a side has less than one stride, or one side would be stretched to twice the other or more.
        """
        if min(width, height) < self.stride:
            raise ValueError(f"{width}x{height} pixels are too few: a side needs {self.stride} at least")
        new_width, new_height = self.size(width, height)
        if not 0.5 < new_width * height / (width * new_height) < 2:
            raise ValueError(
                f"{width}x{height} pixels are too narrow: they would be resized to {new_width}x{new_height}"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize (bicubic) and normalize an image: float [3, H, W] in [-1, 1]."""
        return to_tensor(self.resized(image))

    def resized(self, image: Image.Image) -> Image.Image:
        """Any image as RGB, in the size of the rule (bicubic)."""
        image = to_rgb(image)
        return resize_bicubic(image, self.size(*image.size))


def resize_bicubic(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to (width, height), bicubic, with the same levels whatever the version of Pillow.

    Pillow resizes one axis after the other and rounds to 8 bits in between, so the order shows, by up to some ten
    levels. Up to version 12 the width is first; version 13 has the height first where it loses more than twice the
    pixels that the width loses. Here the order is version 13's, which the golden numbers were made with.
    """
    height_first = image.height > size[1] and image.height - size[1] > 2 * (image.width - size[0])
    between = (image.width, size[1]) if height_first else (size[0], image.height)
    for step in (between, size):
        if step != image.size:
            image = image.resize(step, Image.Resampling.BICUBIC)
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> float [3, H, W] in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels_HWC = pixels.view(image.height, image.width, 3)
    return ((pixels_HWC.permute(2, 0, 1).to(torch.float32) / 255) - 0.5) / 0.5


def to_image(pixels_CHW: Tensor, rounded: bool = False) -> Image.Image:
    """Float [3, H, W] in about [-1, 1] -> RGB image: clamped and truncated, as BAGEL does, or ``rounded``."""
    levels_CHW = (pixels_CHW.detach().float() / 2 + 0.5).clamp(0, 1) * 255
    if rounded:
        levels_CHW = levels_CHW.round()
    return Image.fromarray(levels_CHW.permute(1, 2, 0).to(torch.uint8).cpu().numpy())


def patchify(image_CHW: Tensor, patch: int) -> Tensor:
    """[C, H, W] -> [N, p * p * C], patches row by row, values inside ordered (row, column, channel).

    Serves both the ViT (pixels) and the latents (patch 2 of 16 channels).
    """
    channels, height, width = image_CHW.shape
    tiles = image_CHW.reshape(channels, height // patch, patch, width // patch, patch)
    return tiles.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def unpatchify(tokens_ND: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of :func:`patchify`: [N, p * p * C] -> [C, h * p, w * p]."""
    rows, columns = grid
    channels = tokens_ND.shape[-1] // (patch * patch)
    tiles = tokens_ND.reshape(rows, columns, patch, patch, channels)
    return tiles.permute(4, 0, 2, 1, 3).reshape(channels, rows * patch, columns * patch)
