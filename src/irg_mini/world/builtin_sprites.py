"""A handful of procedural sprites, drawn with PIL, so that tests and first steps need no download."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from irg_mini.world.classes import object_class

_CANVAS = 256  # everything is drawn in percent on this square, then squeezed to the class's aspect
_PX = 96


class _Canvas:
    """A canvas whose coordinates are percent."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (_CANVAS, _CANVAS), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def _scale(self, *values: float) -> list[float]:
        return [value / 100 * (_CANVAS - 1) for value in values]

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: str) -> None:
        self.draw.ellipse(self._scale(x0, y0, x1, y1), fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: str, radius: float = 0) -> None:
        self.draw.rounded_rectangle(self._scale(x0, y0, x1, y1), self._scale(radius)[0], fill=fill)

    def shape(self, *points: float, fill: str) -> None:
        self.draw.polygon(self._scale(*points), fill=fill)

    def line(self, *points: float, fill: str, width: float = 4) -> None:
        self.draw.line(self._scale(*points), fill=fill, width=round(self._scale(width)[0]), joint="curve")


def _ball(e: _Canvas) -> None:
    e.oval(0, 0, 100, 100, "#f2f2f2")
    e.shape(50, 32, 68, 45, 61, 66, 39, 66, 32, 45, fill="#2b4a8c")
    for points in ((40, 0, 60, 0, 50, 14), (0, 40, 12, 52, 2, 66), (100, 40, 88, 52, 98, 66), (22, 90, 34, 84, 40, 98)):
        e.shape(*points, fill="#2b4a8c")


def _apple(e: _Canvas) -> None:
    e.oval(0, 20, 62, 100, "#d8232f")
    e.oval(38, 20, 100, 100, "#d8232f")
    e.line(50, 26, 54, 2, fill="#6b4020", width=6)
    e.oval(54, 2, 84, 18, "#4c9c3f")


def _banana(e: _Canvas) -> None:
    e.oval(0, -60, 100, 100, "#f6cf3a")
    e.draw.ellipse(e._scale(8, -75, 100, 62), fill=(0, 0, 0, 0))
    e.draw.rectangle(e._scale(0, -80, 100, 12), fill=(0, 0, 0, 0))
    e.box(0, 0, 12, 16, "#6b5a20", 3)
    e.box(90, 4, 100, 16, "#6b5a20", 3)


def _suitcase(e: _Canvas) -> None:
    e.box(30, 0, 70, 30, "#555c66", 6)
    e.draw.rectangle(e._scale(38, 8, 62, 30), fill=(0, 0, 0, 0))
    e.box(0, 20, 100, 100, "#3d78c9", 10)
    for x in (22, 50, 78):
        e.box(x - 3, 28, x + 3, 92, "#2a5896", 2)


def _clock(e: _Canvas) -> None:
    e.oval(0, 0, 40, 36, "#e8b33a")
    e.oval(60, 0, 100, 36, "#e8b33a")
    e.oval(4, 10, 96, 100, "#d84a4a")
    e.oval(16, 22, 84, 88, "#fbfbf5")
    e.line(50, 55, 50, 32, fill="#222222", width=6)
    e.line(50, 55, 68, 62, fill="#222222", width=6)


def _cup(e: _Canvas) -> None:
    e.oval(62, 25, 100, 75, "#c9ced6")
    e.draw.ellipse(e._scale(72, 36, 91, 64), fill=(0, 0, 0, 0))
    e.shape(0, 8, 80, 8, 70, 100, 10, 100, fill="#dfe3e9")
    e.oval(0, 0, 80, 18, "#6b4226")


def _book(e: _Canvas) -> None:
    e.box(0, 0, 100, 100, "#b5293a", 5)
    e.box(8, 84, 100, 95, "#f4efe2")
    e.box(0, 0, 12, 100, "#8c1c2b", 3)
    e.box(30, 18, 82, 36, "#f0d9a0", 2)


def _bottle(e: _Canvas) -> None:
    e.box(38, 0, 62, 40, "#2f7d43", 4)
    e.box(38, 0, 62, 10, "#e0b640", 3)
    e.box(14, 32, 86, 100, "#2f7d43", 14)
    e.box(14, 52, 86, 82, "#f3e7c4")


def _stop_sign(e: _Canvas) -> None:
    for inset, fill in ((0, "#e9e9ec"), (6, "#d3202f")):
        a, b, c = inset, 29 + inset * 0.4, 100 - inset
        e.shape(b, a, 100 - b, a, c, b, c, 100 - b, 100 - b, c, b, c, a, 100 - b, a, b, fill=fill)
    e.box(18, 44, 82, 56, "#ffffff")


def _traffic_light(e: _Canvas) -> None:
    e.box(0, 0, 100, 100, "#2a2c33", 14)
    for y, fill in ((4, "#e2303c"), (36, "#f3bb2e"), (68, "#31a750")):
        e.oval(16, y, 84, y + 28, fill)


def _kite(e: _Canvas) -> None:
    e.shape(40, 0, 80, 36, 40, 76, 4, 36, fill="#e9413b")
    e.shape(40, 0, 80, 36, 40, 36, fill="#f4c52f")
    e.shape(4, 36, 40, 36, 40, 76, fill="#3a7fe0")
    e.line(40, 76, 60, 84, 52, 92, 100, 100, fill="#704a2a", width=3)


def _donut(e: _Canvas) -> None:
    e.oval(0, 0, 100, 100, "#d9a264")
    e.oval(6, 4, 94, 92, "#7a4526")
    for x, y, fill in ((22, 24, "#ff6fa8"), (70, 18, "#58c4ff"), (80, 56, "#ffe14a"), (24, 66, "#8cff6a")):
        e.oval(x, y, x + 9, y + 9, fill)
    e.draw.ellipse(e._scale(34, 33, 66, 65), fill=(0, 0, 0, 0))


def _pizza(e: _Canvas) -> None:
    e.shape(0, 6, 100, 22, 24, 100, fill="#f6c64b")
    e.shape(0, 0, 100, 18, 97, 32, 2, 14, fill="#b87333")
    for x, y in ((26, 28), (54, 38), (26, 58)):
        e.oval(x, y, x + 18, y + 18, "#cf3327")


def _umbrella(e: _Canvas) -> None:
    e.draw.pieslice(e._scale(0, 4, 100, 104), 180, 360, fill="#6a43b5")
    e.line(50, 0, 50, 90, fill="#4a3324", width=5)
    e.line(50, 90, 56, 97, 66, 97, 70, 88, fill="#4a3324", width=5)


def _carrot(e: _Canvas) -> None:
    e.shape(26, 26, 72, 20, 10, 100, 0, 94, fill="#f0812a")
    for x, y in ((58, 0), (76, 12), (66, 22)):
        e.oval(x - 12, y, x + 24, y + 22, "#4ba53f")


def _tv(e: _Canvas) -> None:
    e.line(30, 0, 50, 22, fill="#555b66", width=4)
    e.line(72, 0, 50, 22, fill="#555b66", width=4)
    e.box(0, 20, 100, 92, "#6d5548", 8)
    e.box(10, 30, 74, 82, "#7fd0ee", 6)
    e.oval(80, 34, 94, 48, "#e8b33a")
    e.box(16, 90, 26, 100, "#4a3a31")
    e.box(74, 90, 84, 100, "#4a3a31")


_DRAWN: dict[str, Callable[[_Canvas], None]] = {
    "sports ball": _ball,
    "apple": _apple,
    "banana": _banana,
    "suitcase": _suitcase,
    "clock": _clock,
    "cup": _cup,
    "book": _book,
    "bottle": _bottle,
    "stop sign": _stop_sign,
    "traffic light": _traffic_light,
    "kite": _kite,
    "donut": _donut,
    "pizza": _pizza,
    "umbrella": _umbrella,
    "carrot": _carrot,
    "tv": _tv,
}


def draw_builtin_sprites() -> dict[str, np.ndarray]:
    """Class name -> uint8 RGBA, tight to its alpha box, with the class's aspect."""
    return {name: _finish(name, draw) for name, draw in _DRAWN.items()}


def _finish(name: str, draw: Callable[[_Canvas], None]) -> np.ndarray:
    canvas = _Canvas()
    draw(canvas)
    image = canvas.image.crop(canvas.image.getbbox())
    aspect = object_class(name).aspect
    width, height = (_PX, round(_PX / aspect)) if aspect > 1 else (round(_PX * aspect), _PX)
    rgba = np.array(image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA"))
    # A little light from above gives flat shapes the shading that tints are meant to keep.
    shade = np.linspace(1.1, 0.8, height, dtype=np.float32)[:, None, None]
    rgba[..., :3] = (rgba[..., :3] * shade).clip(0, 255)
    return rgba
