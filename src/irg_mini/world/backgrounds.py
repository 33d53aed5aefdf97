"""Named backgrounds: gradients, a horizon, a little soft texture. Each is a pure function of the image's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Background:
    """`light` is where the light comes from (-1 left, +1 right); things of the colors in `clash` are hard to see."""

    name: str
    phrase: str
    light: float
    clash: frozenset[str]
    draw: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _ramp(position: np.ndarray, top: RGB, bottom: RGB) -> np.ndarray:
    """[H, W, 3] colors from `top` at 0 to `bottom` at 1."""
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


def _cloud(image: np.ndarray, u: np.ndarray, v: np.ndarray, x: float, y: float, size: float) -> np.ndarray:
    """A puffy cloud: a few overlapping blobs, a little darker below."""
    puffs = ((-0.9, 0.12, 0.55), (-0.35, -0.16, 0.75), (0.3, -0.24, 0.85), (0.85, 0.08, 0.6), (0.0, 0.16, 1.0))
    cover = np.zeros_like(u)
    for dx, dy, r in puffs:
        cover = np.maximum(cover, _blob(u, v, x + dx * size, y + dy * size, r * size * 0.8, r * size * 0.5, 0.45))
    shade = _ramp((v - y + 0.35 * size) / (0.8 * size), (255, 255, 255), (222, 234, 246))
    return _over(image, shade, 0.9 * cover)


def _meadow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (138, 198, 244), (218, 239, 251))
    image = _over(image, (255, 250, 226), 0.6 * _blob(u, v, 0.0, 0.0, 0.75, 0.55, 1.0))
    image = _cloud(image, u, v, 0.26, 0.15, 0.1)
    image = _cloud(image, u, v, 0.76, 0.24, 0.075)
    image = _over(image, (150, 194, 158), _below(v, 0.435 + 0.03 * np.sin(7.5 * u + 2.4)))
    hill = 0.48 + 0.035 * np.sin(5.0 * u + 0.6)
    grass = _ramp((v - 0.45) / 0.55, (168, 210, 126), (98, 162, 80))
    grass = grass + 9 * np.cos(5.0 * u + 0.6)[..., None] * np.clip(1 - (v - hill) * 4, 0, 1)[..., None]
    image = _over(image, grass, _below(v, hill))
    return image + 3 * (np.sin(24 * (v + 0.2) ** 2 + 3 * np.sin(4 * u)) * (v > hill))[..., None]


def _desert(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (160, 203, 229), (248, 234, 206))
    image = _over(image, (255, 252, 236), 0.9 * _blob(u, v, 0.84, 0.15, 0.3, 0.3, 1.0))
    image = _over(image, (255, 250, 220), _blob(u, v, 0.84, 0.15, 0.06, 0.06, 0.2))
    for line, crest, top, bottom in (
        (0.45 + 0.04 * np.sin(6.5 * u + 2.0), np.cos(6.5 * u + 2.0), (236, 205, 156), (214, 176, 122)),
        (0.56 + 0.05 * np.sin(5.1 * u + 4.4), np.cos(5.1 * u + 4.4), (238, 207, 158), (208, 166, 112)),
        (0.68 + 0.06 * np.sin(4.2 * u - 0.4), np.cos(4.2 * u - 0.4), (244, 217, 170), (212, 170, 114)),
    ):
        # The side that falls off towards the sun is brighter, the other one lies in the shade.
        sand = _ramp((v - line) / 0.34, top, bottom) + 13 * (crest * np.clip(1 - (v - line) * 5, 0, 1))[..., None]
        image = _over(image, sand, _below(v, line))
    return image + 2 * (np.sin(70 * (v + 0.25 * u) + 4 * np.sin(5 * u)) * np.clip((v - 0.72) * 4, 0, 1))[..., None]


def _sea(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.42, (168, 213, 241), (236, 246, 248))
    image = _over(image, (255, 253, 238), 0.8 * _blob(u, v, 0.74, 0.2, 0.4, 0.36, 1.0))
    image = _cloud(image, u, v, 0.22, 0.2, 0.08)
    waves = np.sin(60 * (v + 0.1) ** 2 + 2 * np.sin(7 * u)) * np.clip((v - 0.42) * 3, 0, 1)
    water = _ramp((v - 0.42) / 0.58, (104, 180, 208), (34, 106, 156)) + 7 * waves[..., None]
    path = np.clip(1 - np.abs(u - 0.74) / (0.05 + 0.22 * (v - 0.42)), 0, 1) * np.clip(1.25 - v, 0, 1)
    water = _over(water, (226, 244, 246), 0.42 * path * (0.55 + 0.45 * waves))
    return _over(image, water, _below(v, 0.42))


def _snow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (116, 158, 208), (198, 218, 238))
    wave = np.sin(5.2 * u + 0.5)
    peaks = 0.40 - 0.15 * np.abs(wave) + 0.018 * np.sin(23 * u) + 0.008 * np.sin(51 * u)
    lit = np.sign(wave * np.cos(5.2 * u + 0.5)) * -9
    rock = _ramp((v - 0.22) / 0.3, (150, 170, 204), (184, 203, 228)) + lit[..., None]
    image = _over(image, rock, _below(v, peaks))
    caps = _below(v, peaks) * (1 - _below(v, peaks + 0.045 + 0.016 * np.sin(40 * u), 0.02))
    image = _over(image, np.clip((232 + lit)[..., None] + np.array([2, 8, 16], np.float32), 0, 250), caps)
    near = 0.49 + 0.025 * np.sin(6.3 * u + 3.0)
    image = _over(image, _ramp((v - 0.47) / 0.2, (212, 224, 240), (196, 212, 234)), _below(v, near))
    ground = 0.57 + 0.03 * np.sin(4.0 * u + 1.0)
    hills = np.cos(4.0 * u + 1.0) * np.clip(1 - (v - ground) * 5, 0, 1)
    snow = _ramp((v - 0.55) / 0.45, (228, 237, 247), (192, 208, 231)) + 5 * hills[..., None]
    return _over(image, snow, _below(v, ground))


def _night(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.62, (30, 38, 88), (86, 94, 154))
    image = _over(image, (150, 156, 206), 0.55 * _blob(u, v, 0.82, 0.14, 0.34, 0.34, 1.0))
    image = _over(image, (250, 240, 200), _blob(u, v, 0.82, 0.14, 0.075, 0.075, 0.15))
    for x, y, r in ((0.8, 0.125, 0.016), (0.845, 0.16, 0.011), (0.815, 0.175, 0.008)):
        image = _over(image, (228, 214, 172), 0.8 * _blob(u, v, x, y, r, r, 0.5))
    stars = ((0.1, 0.1), (0.27, 0.24), (0.4, 0.07), (0.55, 0.19), (0.66, 0.06), (0.92, 0.33), (0.06, 0.36))
    for index, (x, y) in enumerate((*stars, (0.18, 0.05), (0.34, 0.4), (0.5, 0.33), (0.7, 0.42))):
        r = 0.014 if index % 3 else 0.019
        image = _over(image, (240, 240, 255), 0.9 * _blob(u, v, x, y, r, r, 0.9))
    image = _over(image, (62, 74, 124), _below(v, 0.55 + 0.03 * np.sin(8 * u + 1.3)))
    ground = 0.63 + 0.02 * np.sin(6 * u)
    land = _ramp((v - 0.6) / 0.4, (70, 88, 122), (42, 56, 88))
    land = _over(land, (108, 124, 164), 0.5 * _blob(u, v, 0.82, 0.66, 0.5, 0.12, 1.0))
    return _over(image, land, _below(v, ground))


def _room(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wall = _ramp(v / 0.62, (228, 218, 202), (208, 196, 178))
    wall = wall - 4 * (np.sin(2 * np.pi * 8 * u) > 0.0)[..., None]
    # Light falls in through a window on the left.
    slant = u - 0.35 * v
    pane = np.clip(np.minimum(slant - 0.06, 0.44 - slant) / 0.012, 0, 1)
    pane = pane * np.clip(np.minimum(v - 0.08, 0.5 - v) / 0.012, 0, 1)
    bars = (np.abs(slant - 0.25) > 0.012) & (np.abs(v - 0.29) > 0.012)
    wall = _over(wall, (255, 246, 222), 0.5 * pane * bars)
    wall = wall - 16 * np.clip((u - 0.7) * 2, 0, 1)[..., None]
    planks = _ramp((v - 0.62) / 0.38, (192, 150, 108), (156, 114, 78))
    row = np.floor((v - 0.62) * 9)
    planks = planks - 12 * (np.mod((v - 0.62) * 9, 1) < 0.1)[..., None]
    planks = planks - 9 * (np.mod(u * 2.5 + 0.37 * row, 1) < 0.014)[..., None] + 4 * (np.mod(row, 2) == 0)[..., None]
    image = _over(wall, planks, _below(v, 0.62))
    image = _over(image, (242, 237, 228), _below(v, 0.59) * (1 - _below(v, 0.62)))
    return _over(image, (90, 64, 44), 0.3 * _below(v, 0.62) * np.clip(1 - (v - 0.62) / 0.03, 0, 1))


def _street(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.5, (180, 206, 230), (230, 234, 234))
    image = _over(
        image, (204, 212, 220), _below(v, 0.3 + 0.05 * np.sign(np.sin(23 * u)) + 0.03 * np.sign(np.sin(41 * u)))
    )
    for index, (top, shade) in enumerate(((0.2, 188), (0.3, 168), (0.14, 180), (0.26, 160), (0.19, 184), (0.32, 170))):
        left = index / 6
        inside = np.clip(_below(u, left) - _below(u, left + 1 / 6), 0, 1) * _below(v, top)
        wall = np.array([shade, shade - 6, shade - 10], np.float32) + 12 * ((u - left) * 6 - 0.5)[..., None]
        image = _over(image, wall, inside)
        across, down = np.mod((u - left) * 18, 1), np.mod((v - top) * 17, 1)
        panes = (np.abs(across - 0.5) < 0.24) & (np.abs(down - 0.55) < 0.28) & (v > top + 0.02) & (v < 0.5)
        panes = panes & (u > left + 0.01) & (u < left + 1 / 6 - 0.01)
        image = _over(image, (206, 218, 228) if index % 2 else (150, 158, 170), 0.55 * panes)
    image = _over(image, _ramp((v - 0.54) / 0.06, (214, 210, 202), (196, 192, 184)), _below(v, 0.54))
    image = _over(image, (150, 148, 146), _below(v, 0.592) * (1 - _below(v, 0.605)))
    image = _over(image, _ramp((v - 0.6) / 0.4, (128, 130, 136), (100, 102, 108)), _below(v, 0.605))
    stripe = _below(v, 0.8) * (1 - _below(v, 0.83)) * (np.mod(u * 5, 1) < 0.55)
    return _over(image, (232, 232, 226), stripe)


def _studio(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    glow = _blob(u, v, 0.42, 0.36, 1.0, 0.85, 1.0)
    image = _ramp(1 - glow, (230, 233, 237), (166, 172, 181))
    # The backdrop rolls out into the floor: a soft bend, then light again.
    bend = np.exp(-(((v - 0.68) / 0.07) ** 2))
    floor = np.clip((v - 0.7) / 0.3, 0, 1) * _blob(u, v, 0.5, 0.9, 0.9, 0.4, 1.0)
    return image - 11 * bend[..., None] + 10 * floor[..., None] - 6 * _below(v, 0.68, 0.2)[..., None]


def _sunset(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _over(_ramp(v / 0.35, (104, 98, 168), (228, 150, 160)), (252, 208, 140), np.clip((v - 0.3) / 0.3, 0, 1))
    image = _over(image, (255, 226, 160), 0.7 * _blob(u, v, 0.3, 0.52, 0.42, 0.36, 1.0))
    image = _over(image, (255, 240, 190), _blob(u, v, 0.3, 0.52, 0.12, 0.12, 0.2))
    for x, y, w in ((0.7, 0.2, 0.3), (0.2, 0.13, 0.22), (0.86, 0.36, 0.24)):
        image = _over(image, (246, 176, 168), 0.55 * _blob(u, v, x, y, w, 0.022, 0.9))
    image = _over(image, (170, 112, 140), _below(v, 0.56 + 0.025 * np.sin(9 * u + 0.4)))
    ground = 0.62 + 0.03 * np.sin(5 * u + 2)
    land = _ramp((v - 0.58) / 0.42, (136, 98, 122), (90, 68, 98))
    land = _over(land, (226, 160, 140), 0.35 * _blob(u, v, 0.3, 0.62, 0.4, 0.14, 1.0))
    return _over(image, land, _below(v, ground))


def _forest(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _ramp(v / 0.7, (206, 224, 192), (150, 184, 146))
    image = _over(image, (246, 246, 208), 0.55 * _blob(u, v, 0.85, 0.1, 0.8, 0.7, 1.0))
    for x, width in ((0.2, 0.014), (0.39, 0.012), (0.58, 0.015), (0.79, 0.013)):
        image = _over(image, (160, 178, 146), np.clip((width - np.abs(u - x)) / 0.01, 0, 1))
    for x, width in ((0.08, 0.035), (0.3, 0.025), (0.47, 0.03), (0.69, 0.025), (0.9, 0.04)):
        across = np.clip((u - x) / width, -1, 1)
        bark = np.array([138, 124, 102], np.float32) + (20 * across - 10 * across**2)[..., None]
        bark = bark - 5 * (np.sin(38 * v + 60 * u) > 0.6)[..., None]
        image = _over(image, bark, np.clip((width - np.abs(u - x)) / 0.01, 0, 1))
    for line, color in (
        (0.17 + 0.025 * np.sin(13 * u + 2) + 0.015 * np.sin(37 * u), (126, 172, 118)),
        (0.11 + 0.03 * np.sin(17 * u) + 0.02 * np.sin(31 * u + 1), (92, 142, 96)),
    ):
        image = _over(image, color, 1 - _below(v, line, 0.02))
    rays = np.clip(np.sin(14 * (u + 0.55 * v)) - 0.35, 0, 1) * np.clip(0.75 - v, 0, 1) * np.clip(v * 4, 0, 1)
    image = _over(image, (252, 250, 214), 0.4 * rays)
    ground = _ramp((v - 0.66) / 0.34, (148, 164, 104), (102, 120, 72))
    patches = np.sin(9 * u + 14 * v) * np.sin(23 * u - 11 * v)
    return _over(image, ground + 5 * patches[..., None], _below(v, 0.66 + 0.012 * np.sin(9 * u)))


def _kitchen(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    tiles = _ramp(v, (200, 226, 222), (172, 204, 202))
    x, y = np.mod(u * 8, 1), np.mod(v * 8, 1)
    tiles = tiles + 5 * ((1 - x) * (1 - y) - 0.25)[..., None]  # each tile catches the light
    tiles = _over(tiles, (226, 240, 238), ((x < 0.07) | (y < 0.07)).astype(np.float32))
    tiles = _over(tiles, (255, 252, 236), 0.4 * _blob(u, v, 0.1, 0.05, 0.8, 0.6, 1.0))
    counter = _ramp((v - 0.66) / 0.2, (226, 217, 206), (204, 193, 181))
    image = _over(tiles, counter, _below(v, 0.66))
    image = _over(image, (96, 108, 106), 0.28 * (1 - _below(v, 0.66)) * np.clip(1 - (0.66 - v) / 0.05, 0, 1))
    front = _ramp((v - 0.88) / 0.12, (182, 170, 158), (164, 152, 140))
    image = _over(image, front, _below(v, 0.88))
    return _over(image, (140, 128, 118), 0.6 * _below(v, 0.875) * (1 - _below(v, 0.89)))


def _stage(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    folds = np.sin(2 * np.pi * 7 * u + 0.6 * np.sin(2 * np.pi * 2 * u))
    image = _ramp(v / 0.7, (112, 54, 80), (146, 76, 98)) + (13 * folds + 4 * folds**2)[..., None]
    beam = np.clip(1 - np.abs(u - 0.5 - 0.35 * (0.72 - v)) / (0.1 + 0.32 * v), 0, 1) * _below(v, 0.02)
    image = _over(image, (240, 208, 192), 0.32 * beam + 0.28 * _blob(u, v, 0.5, 0.5, 0.52, 0.6, 1.0))
    image = _over(image, (44, 18, 34), 0.35 * np.clip(1 - v / 0.1, 0, 1))
    floor = _ramp((v - 0.7) / 0.3, (196, 158, 120), (160, 120, 88))
    floor = floor - 7 * (np.mod((u - 0.5) / (0.35 + v) * 9, 1) < 0.06)[..., None]
    floor = _over(floor, (250, 228, 190), 0.5 * _blob(u, v, 0.5, 0.84, 0.42, 0.12, 0.8))
    image = _over(image, floor, _below(v, 0.7))
    return _over(image, (40, 20, 24), 0.4 * _below(v, 0.7) * np.clip(1 - (v - 0.7) / 0.03, 0, 1))


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
    return {n: Background(n, phrase, light, frozenset(clash.split()), draw) for n, phrase, light, clash, draw in rows}


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
    pixels = np.clip(background(name).draw(u, v), 0, 255).astype(np.float32)
    pixels.setflags(write=False)
    return pixels
