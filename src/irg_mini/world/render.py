"""From a scene to pixels: tinted, shaded sprites with soft shadows, drawn from far to near; and degraded images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from irg_mini.world.backgrounds import background, background_pixels
from irg_mini.world.scene import Scene, drawing_order, pixel_box
from irg_mini.world.sprites import Sprites, load_sprites

# Darkest, dark, middle, light, lightest: what a sprite's own brightness is mapped to.
_TINTS: dict[str, tuple[str, str, str, str, str]] = {
    "red": ("#3a0206", "#a00d18", "#df1f2b", "#f5524f", "#ffb3a8"),
    "orange": ("#5a2300", "#c95a00", "#ff8410", "#ffa53c", "#ffdca6"),
    "yellow": ("#5c4600", "#cf9f00", "#fbd512", "#ffe64f", "#fff8b8"),
    "green": ("#03300c", "#0f7a26", "#27ad3d", "#5ccb62", "#bdf0b4"),
    "blue": ("#050f4d", "#1238ad", "#2360ea", "#528cfa", "#b3d2ff"),
    "purple": ("#240447", "#5b1899", "#8a35cf", "#ad66e3", "#dfbcf7"),
    "pink": ("#6b1140", "#e0559b", "#ff86be", "#ffaad2", "#ffe0ee"),
    "brown": ("#1e0e05", "#54300f", "#7d4c20", "#a06c39", "#d2a877"),
    "black": ("#000000", "#131317", "#26262b", "#45454c", "#85858f"),
    "white": ("#6f747d", "#c3c7ce", "#eceef1", "#fafbfc", "#ffffff"),
}
_TINT_STOPS = (0.0, 0.25, 0.55, 0.8, 1.0)
_FAINT = 60.0
_SHADOW_COLOR = np.array([24, 26, 48], np.float32)

Patch = tuple[np.ndarray, np.ndarray, int, int]
"""(premultiplied color float32 [h, w, 3] in 0..255, what shines through float32 [h, w, 1], dx, dy from the box)."""


@lru_cache(maxsize=16)
def _tint_table(color: str) -> np.ndarray:
    """uint8 [256, 3]: brightness -> tinted color."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _TINTS[color]], float)
    levels = np.linspace(0, 1, 256)
    return np.stack([np.interp(levels, _TINT_STOPS, stops[:, k]) for k in range(3)], -1).round().astype(np.uint8)


def tint(rgba: np.ndarray, color: str | None) -> np.ndarray:
    """The sprite in a color, its shading kept: its brightness, stretched to its range, runs along a color ramp."""
    return rgba if color is None else np.dstack([_tint_table(color)[_levels(rgba)], rgba[..., 3]])


def _levels(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: where each pixel of a sprite lies on a color ramp."""
    rgb, alpha = rgba[..., :3].astype(np.float32), rgba[..., 3]
    brightness = rgb @ np.array([0.35, 0.45, 0.2], np.float32)
    solid = brightness[alpha > 127]
    low, middle, high = np.percentile(solid, [3, 50, 97]) if solid.size else (0.0, 128.0, 255.0)
    # A sprite's typical brightness lands on the ramp's middle, so that a dark thing turns as colorful as a light one;
    # the reach keeps faint shading faint where nearly all of the sprite is equally bright.
    darker, lighter = max(middle - low, _FAINT), max(high - middle, _FAINT)
    level = np.interp(brightness, [middle - darker, middle, middle + lighter], [0.12, 0.55, 0.95])
    return (level * 255).astype(np.uint8)


@lru_cache(maxsize=1024)
def _natural(sprites: Sprites, name: str) -> Image.Image:
    """A sprite as it is, premultiplied."""
    return Image.fromarray(sprites.image(name)).convert("RGBa")


@lru_cache(maxsize=1024)
def _shading(sprites: Sprites, name: str) -> Image.Image:
    """A sprite's place on the color ramps and its alpha, premultiplied: what all its tints have in common."""
    rgba = sprites.image(name)
    return Image.fromarray(np.dstack([_levels(rgba), rgba[..., 3]]), "LA").convert("La")


def _scaled(sprites: Sprites, name: str, color: str | None, width: int, height: int) -> np.ndarray:
    """A sprite in a color at its final size: premultiplied float32 [height, width, 4] in 0..255."""
    source = _natural(sprites, name) if color is None else _shading(sprites, name)
    filter_ = Image.Resampling.BOX if source.width > 2 * width else Image.Resampling.LANCZOS
    small = source.resize((width, height), filter_)
    if color is None:
        return np.asarray(small, np.float32)
    level, alpha = np.moveaxis(np.asarray(small.convert("LA")), -1, 0)
    cover = alpha[..., None].astype(np.float32)
    return np.concatenate([_tint_table(color)[level] * (cover / 255), cover], axis=-1)


def _patch(sprites: Sprites, name: str, color: str | None, width: int, height: int, light: float) -> Patch:
    """A sprite at its final size with its shadow, ready to be laid over an image."""
    reach = max(2, round(0.12 * (width + height) / 2))
    canvas = np.zeros((height + 2 * reach, width + 2 * reach, 4), np.float32)
    canvas[reach:-reach, reach:-reach] = _scaled(sprites, name, color, width, height)
    alpha = canvas[..., 3:] / 255
    shadow = _shadow(alpha[..., 0], reach, width, height, light)[..., None]
    through = (1 - alpha) * (1 - shadow)
    return canvas[..., :3] + (1 - alpha) * shadow * _SHADOW_COLOR, through, -reach, -reach


# Patches of large images are large: fewer of them are kept, so that either cache ends at about 150 MB.
_small_patch, _large_patch = lru_cache(maxsize=4096)(_patch), lru_cache(maxsize=1024)(_patch)


def _shadow(alpha: np.ndarray, reach: int, width: int, height: int, light: float) -> np.ndarray:
    """Opacity [h, w] of a soft shadow cast away from the light, and of a darker one on the ground below the thing."""
    shift = max(1, round(reach * 0.45))
    aside = -shift if light > 0 else shift
    cast = np.zeros(alpha.shape, np.uint8)
    # The thing has `reach` empty pixels around it, so nothing of it is shifted out.
    cast[shift : shift + height + reach, reach + aside : reach + aside + width] = (
        255 * alpha[: height + reach, reach : reach + width]
    )
    rows, cols = np.ogrid[: alpha.shape[0], : alpha.shape[1]]
    across = (cols - alpha.shape[1] / 2 + 0.5 + light * shift * 0.5) / (0.48 * width)
    down = (rows - (reach + height - 0.04 * height)) / (0.5 * reach + 0.06 * height)
    ground = np.clip(1.2 - np.sqrt((across**2).astype(np.float32) + (down**2).astype(np.float32)), 0, 1)
    blurred = np.asarray(Image.fromarray(cast).filter(ImageFilter.GaussianBlur(reach * 0.4)), np.float32)
    return np.minimum(blurred * (0.26 / 255) + 0.34 * ground, 0.5)


def render(
    scene: Scene, size: int = 96, sprites: Sprites | None = None, rng: np.random.Generator | None = None
) -> np.ndarray:
    """uint8 [size, size, 3]. The same scene gives the same image; an `rng` varies the background's brightness."""
    if size < 16:
        raise ValueError(f"an image must be at least 16 px, not {size}")
    sprites = load_sprites() if sprites is None else sprites
    image = background_pixels(scene.background, size).copy()
    if rng is not None:
        gain, lift = rng.uniform(0.92, 1.05), rng.uniform(-6, 6, 3)
        np.clip(image * np.float32(gain) + lift.astype(np.float32), 0, 255, out=image)
    light = background(scene.background).light
    patch = _small_patch if size <= 128 else _large_patch
    for thing in drawing_order(scene.things):
        x0, y0, x1, y1 = pixel_box(thing, size)
        _lay(image, patch(sprites, thing.name, thing.color, x1 - x0, y1 - y0, light), x0, y0)
    return (image + 0.5).clip(0, 255).astype(np.uint8)


def _lay(image: np.ndarray, patch: Patch, x: int, y: int) -> None:
    """Lay a patch over the image in place, clipped to the frame."""
    color, through, dx, dy = patch
    x, y = x + dx, y + dy
    size = image.shape[0]
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(color.shape[1], size - x), min(color.shape[0], size - y)
    if left >= right or top >= bottom:
        return
    target = image[y + top : y + bottom, x + left : x + right]
    target *= through[top:bottom, left:right]
    target += color[top:bottom, left:right]


DEGRADATIONS = ("blurred", "noisy", "ghosted")
"""The ways in which an image is of poor quality."""


def degrade(image: np.ndarray, rng: np.random.Generator, how: str | None = None) -> np.ndarray:
    """A degraded copy of a uint8 [H, W, 3] image; `how` is one of DEGRADATIONS, or chosen by the rng."""
    how = DEGRADATIONS[int(rng.integers(len(DEGRADATIONS)))] if how is None else how
    side = max(image.shape[:2])
    if how == "blurred":
        radius = side / 96 * rng.uniform(1.3, 2.6)
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if how == "noisy":
        coarse = rng.normal(0, 1, (2, *image.shape)).astype(np.float32)
        soft = (coarse[1] + np.roll(coarse[1], 1, 0) + np.roll(coarse[1], 1, 1)) / 1.7
        noisy = image + rng.uniform(12, 26) * (0.7 * coarse[0] + 0.7 * soft)
        return noisy.clip(0, 255).astype(np.uint8)
    if how == "ghosted":
        reach, angle = side / 96 * rng.uniform(3, 7), rng.uniform(0, 2 * np.pi)
        pad = int(reach) + 1
        top, left = pad + round(reach * np.sin(angle)), pad + round(reach * np.cos(angle))
        wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        shifted = wide[top : top + image.shape[0], left : left + image.shape[1]]
        ghost = np.asarray(Image.fromarray(shifted).filter(ImageFilter.GaussianBlur(side / 96)))
        weight = rng.uniform(0.35, 0.5)
        return ((1 - weight) * image + weight * ghost).clip(0, 255).astype(np.uint8)
    raise ValueError(f"unknown degradation {how!r}; choose from {', '.join(DEGRADATIONS)}")


def contact_sheet(images: Sequence[np.ndarray], columns: int = 8, gap: int = 4) -> Image.Image:
    """Many equally large images side by side, for looking at."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(Image.fromarray(image), (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
