"""Images to tokens and back."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from irg.image_files import to_rgb
from irg.sequence.images import ResizeRule, patchify, resize_bicubic, to_image, to_tensor, unpatchify

VAE, VIT = ResizeRule(1024, 512, 16), ResizeRule(980, 224, 14)


@pytest.mark.parametrize(
    ("rule", "size", "wanted"),
    [
        (VAE, (1024, 1024), (1024, 1024)),
        (VAE, (2048, 1024), (1024, 512)),
        (VAE, (100, 50), (1024, 512)),  # up to the least side
        (VAE, (100, 10), (1024, 96)),  # up to the least side, then down again to the greatest
        (VAE, (520, 520), (512, 512)),  # 32.5 strides: halves to even
        (VAE, (536, 536), (544, 544)),  # 33.5 strides
        (VIT, (980, 980), (980, 980)),
        (VIT, (1000, 30), (980, 28)),
        (ResizeRule(100, 16, 16), (3, 3), (16, 16)),
    ],
)
def test_sizes(rule: ResizeRule, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert rule.size(*size) == wanted


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_any_image_fits(width: int, height: int) -> None:
    for rule in (VAE, VIT):
        w, h = rule.size(width, height)
        assert w % rule.stride == 0 and h % rule.stride == 0 and min(w, h) >= rule.stride
        assert max(w, h) <= rule.max_size + rule.stride
        assert rule.size(height, width) == (h, w)


def test_too_large_an_area_is_scaled_by_the_area_ratio() -> None:
    """Not by its square root: the reference's way."""
    rule = ResizeRule(1000, 10, 10, max_pixels=100 * 100)
    assert rule.size(200, 100) == (100, 50)


def test_resize_and_normalize() -> None:
    image = Image.new("RGB", (64, 32), (255, 0, 127))
    pixels = ResizeRule(32, 16, 16)(image)
    assert pixels.shape == (3, 16, 32) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0], torch.ones(16, 32)) and torch.equal(pixels[1], -torch.ones(16, 32))
    assert pixels[2, 0, 0].item() == pytest.approx(127 / 255 * 2 - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        ((80, 48), "df4e41a76f62add2"),  # only the height shrinks: first the height
        ((60, 20), "14ee32f198177a91"),  # the height loses twice what the width loses: first the width
        ((60, 19), "103b77d97c9fd277"),  # and more than twice: first the height
        ((48, 80), "b699f3ac0915512c"),
    ],
)
def test_every_version_of_pillow_resizes_alike(size: tuple[int, int], digest: str) -> None:
    """The digests are of what Pillow 13.0 does by itself; version 12 gives others for two of these sizes."""
    y, x = np.mgrid[0:50, 0:75]
    levels_HWC = np.stack([x * y * 7 % 256, (x * x + y * 31) % 256, (x * 97 + y * y) % 256], -1)
    resized = resize_bicubic(Image.fromarray(levels_HWC.astype(np.uint8)), size)
    assert sha256(resized.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (10, 10, 10, 255))
    image.putpixel((1, 0), (10, 10, 10, 0))
    rgb = to_rgb(image.convert(mode))
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(10, 10, 10), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "F"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_a_transparent_color_of_a_palette() -> None:
    image = Image.new("P", (1, 1), 0)
    image.putpalette([9, 9, 9])
    image.info["transparency"] = 0
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_patchify_and_back(channels: int, rows: int, columns: int, patch: int) -> None:
    image = torch.arange(channels * rows * columns * patch**2, dtype=torch.float32)
    image = image.view(channels, rows * patch, columns * patch)
    tokens = patchify(image, patch)
    assert tokens.shape == (rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, (rows, columns), patch), image)


def test_the_order_inside_a_patch() -> None:
    """Patches row by row; inside one: row, column, channel."""
    image = torch.tensor([[[0, 1, 2, 3], [4, 5, 6, 7]], [[10, 11, 12, 13], [14, 15, 16, 17]]])
    assert patchify(image, 2).tolist() == [[0, 10, 1, 11, 4, 14, 5, 15], [2, 12, 3, 13, 6, 16, 7, 17]]


def test_pixels_and_back() -> None:
    levels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    pixels = to_tensor(Image.fromarray(levels))
    assert pixels.shape == (3, 2, 4) and pixels[2, 0, 1] == pytest.approx(5 / 127.5 - 1)
    image = to_image(pixels)
    assert image.size == (4, 2)
    assert np.abs(np.asarray(image).astype(int) - levels).max() <= 1


def test_levels_are_truncated() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 6).expand(3, 1, 6)
    assert np.asarray(to_image(x))[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize(
    ("rule", "size", "complaint"),
    [
        (ResizeRule(128, 32, 16), (5000, 20), "5000x20 pixels are too narrow: they would be resized to 128x16"),
        (VAE, (20, 5000), "20x5000 pixels are too narrow: they would be resized to 16x1024"),
        (VAE, (15, 15), "15x15 pixels are too few: a side needs 16 at least"),
        (VIT, (1, 900), "too few"),
    ],
)
def test_images_that_would_lose_their_shape(rule: ResizeRule, size: tuple[int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rule.check(*size)


@given(st.integers(16, 5000), st.floats(1, 40))
def test_usual_images_keep_their_shape(side: int, aspect: float) -> None:
    for rule in (VAE, VIT):
        rule.check(side, round(side * aspect))
