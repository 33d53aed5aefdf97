"""Shapes for soft, 3D-looking icons, with gradients, rounded edges that catch the light, gloss.

Everything is given in percent of a square canvas, x to the right, y downwards. A shape is its coverage, float32
[CANVAS, CANVAS] in 0..1; an `Icon` lays filled shapes over one another. The light comes from above, a little from the
left, as in the emoji that these icons stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CANVAS = 320
_FINE = 3  # shapes are drawn this much larger, then shrunk: smooth edges

Shape = np.ndarray
Point = tuple[float, float]


def _px(value: float) -> float:
    return value / 100 * CANVAS


def _drawn(draw_shape: Callable[[ImageDraw.ImageDraw], object]) -> Shape:
    """What `draw_shape` draws in white on a finer canvas, at this module's size."""
    image = Image.new("L", (CANVAS * _FINE, CANVAS * _FINE), 0)
    draw_shape(ImageDraw.Draw(image))
    return np.asarray(image.reduce(_FINE), np.float32) / 255


def _fine(*values: float) -> list[float]:
    return [_px(value) * _FINE for value in values]


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0) -> Shape:
    """A rectangle with round corners."""
    return _drawn(lambda draw: draw.rounded_rectangle(_fine(x0, y0, x1, y1), _fine(radius)[0], fill=255))


def oval(x0: float, y0: float, x1: float, y1: float) -> Shape:
    """The ellipse inside a rectangle."""
    return _drawn(lambda draw: draw.ellipse(_fine(x0, y0, x1, y1), fill=255))


def polygon(*points: Point, rounding: float = 0) -> Shape:
    """A polygon; its corners are rounded off by about `rounding`."""
    flat = _fine(*(value for point in points for value in point))
    shape = _drawn(lambda draw: draw.polygon(flat, fill=255))
    return rounded(shape, rounding) if rounding else shape


def stroke(*points: Point, width: float) -> Shape:
    """A line through the points with round ends and joints."""

    def draw_stroke(draw: ImageDraw.ImageDraw) -> None:
        draw.line(_fine(*(value for point in points for value in point)), fill=255, width=round(_fine(width)[0]))
        for x, y in points:
            draw.ellipse(_fine(x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)

    return _drawn(draw_stroke)


def curve(start: Point, control: Point, end: Point, width: float, steps: int = 24) -> Shape:
    """A line along a quadratic Bézier curve."""
    points = []
    for t in np.linspace(0, 1, steps):
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        points.append(tuple(sum(w * p[k] for w, p in zip(weights, (start, control, end), strict=True)) for k in (0, 1)))
    return stroke(*points, width=width)


def blurred(shape: Shape, radius: float) -> Shape:
    """The shape with soft edges."""
    image = Image.fromarray((shape * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(_px(radius)))
    return np.asarray(image, np.float32) / 255


def rounded(shape: Shape, radius: float) -> Shape:
    """The shape with its corners rounded off: blurred, then cut at the middle."""
    return np.clip((blurred(shape, radius) - 0.5) * _px(radius) * 1.6 + 0.5, 0, 1)


def turned(shape: Shape, degrees: float, about: Point = (50, 50)) -> Shape:
    """The shape turned anticlockwise."""
    image = Image.fromarray((shape * 255).astype(np.uint8))
    center = (_px(about[0]), _px(about[1]))
    return np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, center=center), np.float32) / 255


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


class Icon:
    """Shapes over one another: premultiplied color [C, C, 3] in 0..255 and coverage [C, C]."""

    def __init__(self) -> None:
        self.color: np.ndarray = np.zeros((CANVAS, CANVAS, 3), np.float32)
        self.alpha: np.ndarray = np.zeros((CANVAS, CANVAS), np.float32)

    def lay(
        self, shape: Shape, *fill: str, across: float = 0.0, bevel: float = 0.0, depth: float = 0.5, alpha: float = 1.0
    ) -> Icon:
        """Lay a shape over the icon, in one color or in a gradient over it.

        The gradient runs from top to bottom; with `across` 1 from left to right, in between aslant. `bevel` is how far
        in the rounded edge reaches: brighter towards the light, darker away from it, by `depth` (0..1).
        """
        color = _gradient(shape, fill, across)
        if bevel:
            color = _lit(color, shape, bevel, depth)
        cover = shape * alpha
        self.color = self.color * (1 - cover[..., None]) + color * cover[..., None]
        self.alpha = self.alpha * (1 - cover) + cover
        return self

    def shade(self, shape: Shape, strength: float, color: str = "#20102c") -> Icon:
        """Darken (or tint) what is already drawn under a shape; nothing new appears outside it."""
        cover = np.minimum(shape * strength, 1)[..., None]
        self.color = self.color * (1 - cover) + _rgb(color) * cover * self.alpha[..., None]
        return self

    def gloss(self, shape: Shape, strength: float, soft: float = 1.0) -> Icon:
        """A soft light reflection on what is already drawn."""
        return self.shade(blurred(shape, soft), strength, "#ffffff")

    def sprite(self, longest: int) -> np.ndarray:
        """uint8 RGBA with straight alpha, tight to what is drawn, the longer side `longest` px."""
        pixels = np.dstack([self.color, self.alpha * 255]).round().clip(0, 255).astype(np.uint8)
        image = Image.fromarray(pixels, "RGBa")
        solid = Image.fromarray(pixels[..., 3]).point(lambda a: 255 if a >= 16 else 0).getbbox()
        assert solid is not None
        image = image.crop(solid)
        scale = longest / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS).convert("RGBA"))


def _gradient(shape: Shape, fill: Sequence[str], across: float) -> np.ndarray:
    """Colors of the gradient over the shape's own extent, [C, C, 3]."""
    if len(fill) == 1:
        return np.broadcast_to(_rgb(fill[0]), (CANVAS, CANVAS, 3))
    rows, cols = np.nonzero(shape > 0.02)
    v = (np.arange(CANVAS) - rows.min()) / max(1, np.ptp(rows))
    u = (np.arange(CANVAS) - cols.min()) / max(1, np.ptp(cols))
    position = np.clip((1 - across) * v[:, None] + across * u[None, :], 0, 1)
    stops, table = np.linspace(0, 1, len(fill)), np.stack([_rgb(color) for color in fill])
    return np.stack([np.interp(position, stops, table[:, k]) for k in range(3)], -1).astype(np.float32)


def _lit(color: np.ndarray, shape: Shape, bevel: float, depth: float) -> np.ndarray:
    """The colors with the shape's edge rounded: the slope of its blurred coverage, against the light."""
    height = blurred(shape, bevel / 2)
    down, right = np.gradient(height)
    slope = (0.85 * down + 0.5 * right) * _px(bevel)
    light = np.clip(slope * 1.3, -1, 1)[..., None] * depth
    return np.where(light > 0, color + (255 - color) * light, color * (1 + light * 0.8))
