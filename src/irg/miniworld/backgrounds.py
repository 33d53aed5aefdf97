"""Named backgrounds: gradients, a horizon, a little soft texture. Each is a pure function of the picture's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Background:
    """`light` is where the light comes from (-1 left, +1 right); things of the colours in `clash` are hard to see."""

    name: str
    phrase: str
    light: float
    clash: frozenset[str]
    paint: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _ramp(position: np.ndarray, top: RGB, bottom: RGB) -> np.ndarray:
    """[H, W, 3] colours from `top` at 0 to `bottom` at 1."""
    position = np.clip(position, 0, 1)[..., None]
    return np.asarray(top, np.float32) * (1 - position) + np.asarray(bottom, np.float32) * position


def _over(under: np.ndarray, upper: np.ndarray | RGB, mask: np.ndarray) -> np.ndarray:
    mask = np.clip(mask, 0, 1)[..., None].astype(np.float32)
    return under * (1 - mask) + np.asarray(upper, np.float32) * mask


def _below(v: np.ndarray, line: np.ndarray | float, soft: float = 0.012) -> np.ndarray:
    """1 below the line, 0 above it, with an edge about `soft` wide."""
    return np.clip((v - line) / soft + 0.5, 0, 1)


def _blob(u: np.ndarray, v: np.ndarray, x: float, y: float, rx: float, ry: float, soft: float = 0.5) -> np.ndarray:
    distance = np.sqrt(((u - x) / rx) ** 2 + ((v - y) / ry) ** 2)
    return np.clip((1 - distance) / soft, 0, 1)


def _meadow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (150, 205, 245), (214, 236, 250))
    image = _over(image, (250, 253, 255), 0.8 * _blob(u, v, 0.24, 0.15, 0.16, 0.05))
    image = _over(image, (250, 253, 255), 0.7 * _blob(u, v, 0.72, 0.24, 0.14, 0.04))
    hill = 0.47 + 0.035 * np.sin(5.0 * u + 0.6)
    image = _over(image, _ramp((v - 0.45) / 0.55, (162, 205, 128), (104, 165, 84)), _below(v, hill))
    return image + 3 * (np.sin(24 * (v + 0.2) ** 2 + 3 * np.sin(4 * u)) * (v > hill))[..., None]


def _desert(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (166, 205, 228), (246, 232, 205))
    far = 0.45 + 0.04 * np.sin(6.5 * u + 2.0)
    near = 0.64 + 0.06 * np.sin(4.2 * u - 0.4)
    image = _over(image, _ramp((v - 0.4) / 0.4, (233, 203, 152), (222, 184, 128)), _below(v, far))
    return _over(image, _ramp((v - 0.6) / 0.4, (240, 212, 164), (214, 174, 118)), _below(v, near))


def _sea(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.42, (176, 216, 240), (232, 244, 248))
    water = _ramp((v - 0.42) / 0.58, (96, 172, 204), (38, 112, 160))
    water = water + 7 * (np.sin(60 * (v + 0.1) ** 2 + 2 * np.sin(7 * u)) * np.clip((v - 0.42) * 3, 0, 1))[..., None]
    return _over(image, water, _below(v, 0.42))


def _snow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (122, 160, 205), (190, 212, 235))
    peaks = 0.40 - 0.13 * np.abs(np.sin(5.2 * u + 0.5)) + 0.02 * np.sin(23 * u)
    image = _over(image, _ramp((v - 0.25) / 0.3, (160, 180, 210), (186, 204, 228)), _below(v, peaks))
    ground = 0.53 + 0.03 * np.sin(4.0 * u + 1.0)
    return _over(image, _ramp((v - 0.5) / 0.5, (222, 232, 244), (192, 208, 230)), _below(v, ground))


def _night(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.62, (34, 42, 92), (84, 92, 150))
    image = _over(image, (250, 240, 200), _blob(u, v, 0.82, 0.14, 0.075, 0.075, 0.15))
    for x, y in ((0.1, 0.1), (0.27, 0.24), (0.4, 0.07), (0.55, 0.19), (0.66, 0.06), (0.92, 0.33), (0.06, 0.36)):
        image = _over(image, (240, 240, 255), 0.9 * _blob(u, v, x, y, 0.013, 0.013, 0.8))
    ground = 0.62 + 0.02 * np.sin(6 * u)
    return _over(image, _ramp((v - 0.6) / 0.4, (66, 84, 116), (44, 58, 90)), _below(v, ground))


def _room(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wall = _ramp(v / 0.62, (226, 216, 200), (208, 196, 178))
    wall = wall - 5 * (np.sin(2 * np.pi * 8 * u) > 0.0)[..., None]
    planks = _ramp((v - 0.62) / 0.38, (188, 146, 106), (158, 116, 80))
    planks = planks - 10 * (np.mod((v - 0.62) * 9, 1) < 0.12)[..., None]
    image = _over(wall, planks, _below(v, 0.62))
    return _over(image, (240, 234, 224), _below(v, 0.595) * (1 - _below(v, 0.62)))


def _street(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (188, 208, 226), (226, 230, 232))
    for index, (top, shade) in enumerate(((0.2, 186), (0.3, 168), (0.14, 178), (0.26, 160), (0.19, 182), (0.32, 170))):
        inside = np.clip(_below(u, index / 6) - _below(u, (index + 1) / 6), 0, 1)
        image = _over(image, (shade, shade - 6, shade - 10), inside * _below(v, top))
    image = _over(image, (202, 198, 190), _below(v, 0.54))
    image = _over(image, _ramp((v - 0.6) / 0.4, (128, 130, 136), (104, 106, 112)), _below(v, 0.6))
    stripe = _below(v, 0.8) * (1 - _below(v, 0.83)) * (np.mod(u * 5, 1) < 0.55)
    return _over(image, (232, 232, 226), stripe)


def _studio(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    glow = _blob(u, v, 0.5, 0.42, 0.95, 0.85, 1.0)
    return _ramp(1 - glow, (224, 228, 232), (168, 174, 182)) - 10 * _below(v, 0.66, 0.25)[..., None]


def _sunset(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _over(_ramp(v / 0.35, (112, 104, 170), (228, 150, 160)), (252, 208, 140), np.clip((v - 0.3) / 0.3, 0, 1))
    image = _over(image, (255, 240, 190), _blob(u, v, 0.3, 0.52, 0.12, 0.12, 0.2))
    ground = 0.6 + 0.03 * np.sin(5 * u + 2)
    return _over(image, _ramp((v - 0.58) / 0.42, (134, 98, 122), (92, 70, 100)), _below(v, ground))


def _forest(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.7, (196, 218, 190), (150, 184, 146))
    for x, width in ((0.08, 0.035), (0.3, 0.025), (0.47, 0.03), (0.69, 0.025), (0.9, 0.04)):
        image = _over(image, (134, 124, 104), np.clip((width - np.abs(u - x)) / 0.01, 0, 1))
    crown = 0.13 + 0.03 * np.sin(17 * u) + 0.02 * np.sin(31 * u + 1)
    image = _over(image, (98, 146, 100), 1 - _below(v, crown, 0.03))
    return _over(
        image, _ramp((v - 0.66) / 0.34, (140, 156, 100), (104, 122, 74)), _below(v, 0.66 + 0.012 * np.sin(9 * u))
    )


def _kitchen(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    tiles = _ramp(v, (196, 222, 218), (176, 206, 204))
    lines = (np.mod(u * 8, 1) < 0.07) | (np.mod(v * 8, 1) < 0.07)
    tiles = _over(tiles, (222, 238, 236), lines.astype(np.float32))
    image = _over(tiles, _ramp((v - 0.66) / 0.34, (216, 206, 194), (188, 176, 164)), _below(v, 0.66))
    return _over(image, (150, 138, 128), 0.6 * _below(v, 0.66) * (1 - _below(v, 0.685)))


def _stage(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.7, (120, 60, 84), (146, 76, 98)) + 13 * np.sin(2 * np.pi * 7 * u)[..., None]
    image = _over(image, (236, 204, 190), 0.5 * _blob(u, v, 0.5, 0.5, 0.52, 0.6, 1.0))
    return _over(image, _ramp((v - 0.7) / 0.3, (196, 158, 120), (164, 124, 92)), _below(v, 0.7))


def _table() -> dict[str, Background]:
    rows = (
        ("meadow", "on a meadow", -1.0, "green", _meadow),
        ("desert", "in a desert", 1.0, "yellow", _desert),
        ("sea", "by the sea", 1.0, "blue", _sea),
        ("snow", "in the snow", -1.0, "white", _snow),
        ("night", "at night", 1.0, "black blue", _night),
        ("room", "in a room", -1.0, "brown", _room),
        ("street", "on a street", 1.0, "", _street),
        ("studio", "in a studio", -1.0, "white", _studio),
        ("sunset", "at sunset", -1.0, "", _sunset),
        ("forest", "in a forest", 1.0, "green", _forest),
        ("kitchen", "in a kitchen", -1.0, "white", _kitchen),
        ("stage", "on a stage", 1.0, "brown red", _stage),
    )
    return {n: Background(n, phrase, light, frozenset(clash.split()), paint) for n, phrase, light, clash, paint in rows}


BACKGROUNDS: dict[str, Background] = _table()


def background(name: str) -> Background:
    """The background called `name`; ValueError if there is none."""
    try:
        return BACKGROUNDS[name]
    except KeyError:
        raise ValueError(f"unknown background {name!r}; choose from {', '.join(BACKGROUNDS)}") from None


@lru_cache(maxsize=64)
def background_pixels(name: str, size: int) -> np.ndarray:
    """float32 [size, size, 3] in 0..255. Shared: copy before painting on it."""
    steps = (np.arange(size, dtype=np.float32) + 0.5) / size
    u, v = np.meshgrid(steps, steps)
    pixels = np.clip(background(name).paint(u, v), 0, 255).astype(np.float32)
    pixels.setflags(write=False)
    return pixels
