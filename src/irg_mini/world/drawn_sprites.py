"""The 13 of GenEval's classes that the emoji set has no image for, drawn with `kit` in the same soft style."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from irg_mini.world.shapes import Icon, blurred, box, curve, oval, polygon, rounded, stroke, turned

DRAWING_VERSION = 1
"""Raise it when a drawing changes: the sprites that are kept on disk are then made anew."""

METAL = ("#f6f3fb", "#cfc8dc", "#a79fb8")
WHITE = ("#ffffff", "#f1eef7", "#cdc6dc")
DARK = ("#5d5870", "#393548", "#26222f")
WOOD = ("#c98a5e", "#a0643f", "#7c4730")
RED = ("#ff6a63", "#ec2f48", "#b3123c")


def _fire_hydrant() -> Icon:
    icon = Icon()
    for x in (18, 66):  # side outlets
        icon.lay(box(x, 40, x + 16, 56, 3), *RED, bevel=4)
    for x in (14, 79):
        icon.lay(box(x, 37, x + 7, 59, 3), "#ffd066", "#f0a02e", "#bf6f1c", bevel=3)
    icon.lay(box(29, 26, 71, 88, 5), "#ff7a6e", "#ee2f49", "#b7133c", across=1, bevel=6)
    icon.lay(polygon((29, 30), (32, 14), (42, 6), (58, 6), (68, 14), (71, 30), rounding=4), *RED, across=0.7, bevel=7)
    icon.lay(box(25, 24, 75, 33, 4), *RED, across=0.3, bevel=4)
    icon.lay(box(44, 0, 56, 8, 3), "#ffd066", "#f0a02e", "#bf6f1c", bevel=3)
    icon.lay(box(20, 86, 80, 97, 4), "#f2414f", "#a50f36", across=0.4, bevel=4)
    icon.lay(box(25, 78, 75, 86, 3), *RED, across=0.3, bevel=3)
    icon.shade(blurred(oval(36, 38, 64, 66), 2), 0.35)
    icon.lay(oval(36, 36, 64, 64), "#ffd874", "#f2a530", "#b9681b", across=0.3, bevel=5)
    icon.lay(oval(43, 43, 57, 57), "#f7b544", "#c97a1f", across=0.3, bevel=3)
    return icon.gloss(box(34, 14, 38, 80, 2), 0.35, 1.2)


def _parking_meter() -> Icon:
    icon = Icon()
    icon.lay(box(44, 52, 56, 96, 2), "#e3dded", "#8f86a3", across=1, bevel=3)
    icon.lay(box(34, 93, 66, 100, 3), *METAL, bevel=3)
    head = polygon((29, 60), (29, 22), (36, 8), (50, 2), (64, 8), (71, 22), (71, 60), rounding=3)
    icon.lay(head, "#8f8aa6", "#615b78", "#413b55", across=0.4, bevel=6)
    icon.lay(box(36, 55, 64, 64, 3), "#575069", "#3a3449", bevel=3)
    icon.lay(box(34, 12, 66, 32, 6), "#f4f9ff", "#bfe6fb", "#7cc4ee", across=0.3, bevel=2)
    icon.lay(box(36, 22, 64, 25, 1), "#ec2f48")
    icon.lay(stroke((50, 30), (44, 17), width=2.4), "#2b2638")
    icon.lay(box(36, 37, 64, 50, 3), "#2f6fe8", "#1b49bf", bevel=2)
    bowl = box(45, 38.4, 56, 45.6, 3.6) - box(47.4, 40.6, 53.6, 43.4, 1.4)
    icon.lay(np.maximum(bowl, box(45, 38.4, 47.6, 48.8)), "#ffffff")  # the letter P
    icon.lay(box(43, 56, 57, 58.6, 1.2), "#17131f")
    return icon.gloss(box(32, 14, 34.5, 54, 1), 0.35, 1)


def _bench() -> Icon:
    icon = Icon()
    for x in (12, 80):
        icon.lay(stroke((x + 4, 20), (x + 4, 92), width=5), *DARK, bevel=3)
    for y in (18, 32):
        icon.lay(box(3, y, 97, y + 11, 3), *WOOD, bevel=4)
    seat = polygon((8, 52), (92, 52), (98, 66), (2, 66), rounding=1.5)
    icon.lay(polygon((2, 64), (98, 64), (98, 70), (2, 70), rounding=1), "#7b472f", "#5c3122", bevel=2)
    icon.lay(seat, "#d99a6b", "#b67448", bevel=3)
    icon.shade(box(5, 58, 95, 59.6), 0.4, "#5c3122")
    for x in (9, 83):
        icon.lay(box(x, 69, x + 8, 95, 2), *DARK, bevel=3)
        icon.lay(box(x - 3, 92, x + 11, 97, 2), *DARK, bevel=2)
    for x in (4, 90):
        icon.lay(box(x, 42, x + 6, 68, 2), *DARK, bevel=2)
        icon.lay(box(x - 1.5, 40, x + 7.5, 46, 3), "#6b657f", "#3b364a", bevel=2)
    return icon


def _baseball_glove() -> Icon:
    icon = Icon()
    fill = ("#e0975a", "#b9652f", "#8a4220")
    for (x0, y0), (x1, y1) in (((24, 54), (16, 22)), ((38, 48), (35, 11)), ((54, 46), (56, 9)), ((68, 50), (74, 17))):
        icon.lay(stroke((x0, y0), (x1, y1), width=17), *fill, across=0.3, bevel=7, depth=0.6)
    icon.lay(curve((70, 84), (94, 74), (90, 46), 19), *fill, across=0.3, bevel=7, depth=0.6)  # thumb
    palm = polygon((14, 52), (20, 82), (38, 97), (62, 97), (80, 86), (84, 66), (74, 52), (56, 44), (30, 44), rounding=7)
    icon.lay(palm, "#dc9154", "#b5622d", "#86401f", across=0.25, bevel=8)
    icon.shade(blurred(oval(28, 46, 74, 84), 3), 0.5, "#5a2410")
    icon.lay(stroke((76, 52), (84, 40), width=5), "#8a4220", "#6e3218", bevel=2)
    for y in (44, 49):
        icon.lay(stroke((72, y + 6), (86, y - 2), width=1.8), "#f4cf94")
    icon.lay(oval(31, 47, 67, 83), "#ffffff", "#f3eff6", "#c9c0d4", across=0.3, bevel=8, depth=0.35)
    icon.lay(curve((37, 52), (47, 64), (38, 78), 1.6), "#e8354d")
    icon.lay(curve((60, 51), (51, 65), (61, 78), 1.6), "#e8354d")
    return icon.lay(curve((24, 88), (48, 100), (74, 90), 2), "#f4cf94")


def _surfboard() -> Icon:
    icon = Icon()
    y = np.linspace(0, 1, 40)
    half = 17 * np.sin(np.pi * np.clip(0.06 + 0.92 * y**0.82, 0, 1)) ** 0.7
    side = [(50 - h, 1 + 98 * v) for h, v in zip(half, y, strict=True)]
    board = polygon(*side, *[(100 - x, v) for x, v in reversed(side)], rounding=1.5)
    icon.lay(board, "#ffe27a", "#ffc02e", "#ff9a2b", across=0.2, bevel=5)
    for top, colors in ((20, ("#ff6a63", "#e0264a")), (62, ("#3fb6f5", "#1f78dc"))):
        band = polygon((20, top), (80, top - 8), (80, top + 10), (20, top + 18)) * board
        icon.lay(band, *colors, across=1)
    icon.lay(stroke((50, 4), (50, 95), width=1.6), "#fff6d8", alpha=0.9)
    icon.shade(blurred(polygon((52, 0), (80, 0), (80, 100), (60, 100)), 4), 0.22, "#7a2d18")
    return icon.gloss(box(38, 16, 42, 74, 2), 0.55, 1.3)


def _dining_table() -> Icon:
    icon = Icon()
    for x in (20, 73):  # far legs
        icon.lay(polygon((x, 40), (x + 7, 40), (x + 6, 78), (x + 1, 78)), "#7a4630", "#5b3122", bevel=2)
    for x in (5, 86):
        icon.lay(polygon((x, 50), (x + 9, 50), (x + 7.5, 96), (x + 1.5, 96), rounding=1), *WOOD, across=0.6, bevel=3)
    icon.lay(box(4, 48, 96, 58, 2), "#935b3a", "#6d3d2a", bevel=2)
    icon.lay(polygon((16, 26), (84, 26), (99, 46), (1, 46), rounding=2), "#e0a474", "#c17f50", "#b06f44", bevel=3)
    icon.lay(box(0.5, 45, 99.5, 51.5, 3), "#b9774b", "#8b5336", bevel=2)
    icon.shade(blurred(oval(36, 31, 66, 42), 1), 0.3, "#5b3122")
    icon.lay(polygon((40, 27), (62, 27), (66, 46.5), (36, 46.5)), "#fdf9ff", "#dcd4e8")  # a runner
    icon.lay(polygon((36, 46.5), (66, 46.5), (66.5, 58), (51, 63), (35.5, 58)), "#efe9f6", "#c9c0d8", bevel=2)
    icon.lay(oval(43, 28, 59, 38), "#ff6a63", "#c21a40", bevel=4)  # a bowl
    return icon.lay(oval(45, 28.6, 57, 33), "#8f1234", "#d63552")


def _tv_remote() -> Icon:
    icon = Icon()
    icon.lay(box(30, 0, 70, 100, 11), "#5a556b", "#37323f", "#1f1b26", across=0.35, bevel=7)
    icon.lay(oval(43, 5.5, 57, 17), "#ff7a6e", "#d81b3f", bevel=4)
    for row in range(3):
        for col in range(3):
            x, y = 36.0 + 10 * col, 22.5 + 9.5 * row
            icon.lay(box(x, y, x + 8, y + 6.4, 2.6), "#f7f4fb", "#b8b0c6", bevel=2)
    icon.lay(oval(37, 54, 63, 77), "#8d87a0", "#4d475c", bevel=4)
    icon.lay(oval(44, 60, 56, 71), "#e9e5f2", "#a8a0b8", bevel=3)
    for x, colors in ((36.0, ("#ffb347", "#e97b17")), (46.5, ("#6ee07a", "#1fa24a")), (57.0, ("#5cc2ff", "#1d78e0"))):
        icon.lay(box(x, 83, x + 7.5, 91, 3), *colors, bevel=2)
    return icon.gloss(box(33, 10, 34.6, 86, 1), 0.35, 0.8)


def _microwave() -> Icon:
    icon = Icon()
    for x in (10.0, 80.0):
        icon.lay(box(x, 80, x + 10, 86, 2), *DARK)
    icon.lay(box(0, 18, 100, 82, 7), *WHITE, across=0.3, bevel=6)
    icon.lay(box(5, 24, 70, 76, 5), "#6a647c", "#3c374a", across=0.3, bevel=3)
    icon.lay(box(10, 30, 62, 70, 4), "#5b6f96", "#39486d", "#27304d", across=0.4)
    icon.lay(oval(20, 58, 52, 66), "#c9d3ea", "#7d89a8", alpha=0.9)
    icon.lay(oval(27, 48, 45, 62), "#ffb25c", "#dd6d20", bevel=5)  # something warm inside
    icon.gloss(polygon((14, 30), (26, 30), (16, 68), (10, 68)), 0.35, 0.8)
    icon.lay(box(64, 30, 67.5, 70, 1.7), *METAL, bevel=2)
    icon.lay(box(75, 26, 95, 36, 2), "#1d2733", "#2b3a46")
    for x in (78.5, 84.5, 90):
        icon.lay(box(x, 28.6, x + 3, 33.4, 0.8), "#5df0a2")
    for row in range(3):
        for col in range(2):
            icon.lay(oval(76.5 + 10 * col, 41 + 9 * row, 83.5 + 10 * col, 48 + 9 * row), *METAL, bevel=2)
    return icon.lay(box(76, 69.5, 94, 76, 3), "#ff6a63", "#d32348", bevel=2)


def _oven() -> Icon:
    icon = Icon()
    icon.lay(box(10, 92, 90, 100, 2), *DARK)
    icon.lay(box(5, 8, 95, 96, 5), *METAL, across=0.35, bevel=5)
    icon.lay(polygon((10, 2), (90, 2), (97, 11), (3, 11), rounding=1), "#5d5870", "#302b3a", bevel=2)
    for x in (14.0, 56.0):  # rings of the hob
        icon.lay(oval(x + 4, 3.2, x + 26, 9.6), "#ff9d5c", "#d8413c")
        icon.lay(oval(x + 9, 4.6, x + 21, 8.2), "#4a4458")
    icon.lay(box(5, 11, 95, 30, 3), "#8b859d", "#5f5972", across=0.2, bevel=2)
    for x in (12.0, 27.0, 63.0, 78.0):
        icon.lay(oval(x, 15, x + 11, 26), "#ffffff", "#bdb5cb", bevel=3)
        icon.lay(stroke((x + 5.5, 16.8), (x + 5.5, 20), width=1.6), "#ec2f48")
    icon.lay(box(43, 16, 58, 25, 2), "#1d2733")
    for x in (45.5, 49.5, 53.5):
        icon.lay(box(x, 18, x + 2.4, 23, 0.6), "#5df0a2")
    icon.lay(box(11, 34, 89, 88, 5), "#e9e4f1", "#b5adc5", across=0.3, bevel=3)
    icon.lay(box(18, 46, 82, 82, 5), "#4b2b33", "#8a3d2a", "#d9722c")
    icon.lay(blurred(box(22, 74, 78, 81, 3), 2), "#ffb44d", alpha=0.8)
    for y in (58, 68):
        icon.lay(stroke((20, y), (80, y), width=1.2), "#e8c9a0", alpha=0.8)
    icon.lay(oval(36, 52, 64, 67), "#f0b06a", "#c2692b", bevel=5)  # a loaf
    icon.gloss(polygon((24, 46), (36, 46), (26, 82), (18, 82)), 0.3, 0.8)
    return icon.lay(box(20, 37, 80, 42, 2.5), "#ffffff", "#9d95ad", bevel=2)


def _toaster() -> Icon:
    icon = Icon()
    for x in (20, 52):  # slices
        slice_ = polygon((x + 2, 46), (x + 2, 18), (x + 6, 10), (x + 24, 10), (x + 28, 18), (x + 28, 46), rounding=3)
        icon.lay(slice_, "#c98243", "#a0602c", bevel=3)
        icon.lay(rounded(box(x + 5, 14, x + 25, 46, 4), 2), "#ffe2a6", "#f3bd6c", bevel=3)
    for x in (14, 74):
        icon.lay(box(x, 90, x + 12, 97, 3), *DARK)
    icon.lay(box(4, 34, 92, 93, 15), "#ff8b7d", "#ec3a4f", "#b3163f", across=0.35, bevel=9)
    icon.lay(box(16, 34.5, 80, 41, 3), "#7c1230", "#4a0b22")
    icon.lay(box(20, 26, 48, 38.5, 0) * box(22, 10, 48, 38.5), "#f3bd6c", alpha=1)
    icon.lay(box(54, 26, 80, 38.5, 0), "#f3bd6c", alpha=1)
    icon.lay(box(4, 80, 92, 89, 2) * box(4, 34, 92, 93, 15), *METAL, bevel=2)
    icon.lay(box(91, 50, 94, 76, 1.5), "#4a4458")
    icon.lay(box(89, 54, 100, 63, 3), *DARK, bevel=3)
    icon.lay(oval(16, 56, 32, 72), *METAL, bevel=4)
    icon.lay(stroke((24, 58.5), (24, 64), width=2), "#ec2f48")
    return icon.gloss(box(14, 44, 74, 49, 2.5), 0.5, 1.2)


def _sink() -> Icon:
    icon = Icon()
    icon.lay(polygon((42, 66), (58, 66), (61, 98), (39, 98), rounding=1.5), "#f3eff8", "#b9b0c9", across=0.7, bevel=4)
    icon.lay(box(34, 94, 66, 100, 3), *WHITE, bevel=3)
    basin = polygon((4, 40), (96, 40), (90, 58), (74, 72), (26, 72), (10, 58), rounding=4)
    icon.lay(basin, "#ffffff", "#e6e1ef", "#b3aac4", across=0.2, bevel=7)
    icon.lay(oval(2, 30, 98, 50), "#ffffff", "#e4deee", bevel=3)
    icon.lay(oval(10, 33, 90, 47.5), "#a9c6dd", "#d9eef8", "#f2fbff")
    icon.lay(oval(18, 38, 82, 47), "#79d0f7", "#3fa7ea", alpha=0.9)
    icon.lay(curve((50, 30), (50, 2), (66, 6), 7), *METAL, across=0.6, bevel=4)
    icon.lay(curve((62, 5), (72, 6), (72, 18), 7), *METAL, across=0.6, bevel=4)
    icon.lay(box(70, 20, 74, 43, 2), "#b9ecff", "#58b8f4", alpha=0.9)
    icon.lay(oval(64, 41, 80, 46), "#e5f8ff", alpha=0.9)
    icon.lay(box(43, 27, 57, 36, 3), *METAL, across=0.7, bevel=3)
    for x, colors in ((28, ("#ff7a6e", "#d81b3f")), (62, ("#5cc2ff", "#1d78e0"))):
        y = 26 if x < 50 else 27
        icon.lay(box(x + 2, y, x + 8, 35, 2), *METAL, across=0.7, bevel=2)
        icon.lay(oval(x, y - 5, x + 10, y + 3), *colors, bevel=3)
    return icon


def _refrigerator() -> Icon:
    icon = Icon()
    for x in (26, 64):
        icon.lay(box(x, 95, x + 10, 100, 2), *DARK)
    icon.lay(box(21, 0, 79, 97, 7), "#c6f0f2", "#8ed3de", "#5aa9c2", across=0.4, bevel=6)
    icon.lay(box(23.5, 2.5, 76.5, 34, 5), "#ddf8f8", "#a5e0e8", "#7cc6d6", across=0.4, bevel=3)
    icon.lay(box(23.5, 37, 76.5, 94, 5), "#d2f4f5", "#96d8e2", "#64b3c9", across=0.4, bevel=3)
    icon.shade(box(21, 34, 79, 37), 0.5, "#2c6a82")
    icon.lay(box(29, 12, 33.5, 29, 2.2), "#ffffff", "#a79fb8", bevel=2)
    icon.lay(box(29, 43, 33.5, 68, 2.2), "#ffffff", "#a79fb8", bevel=2)
    icon.lay(box(52, 48, 68, 60, 1), "#fff3a8", "#ffd95c", bevel=1)  # a note under a magnet
    icon.lay(oval(57.5, 44.5, 63, 50), "#ff7a6e", "#d81b3f", bevel=2)
    return icon.gloss(box(69, 8, 72, 88, 1.5), 0.5, 1)


def _hair_drier() -> Icon:
    icon = Icon()
    icon.lay(curve((46, 92), (52, 104), (72, 88), 3), *DARK)
    grip = turned(box(37, 48, 53, 95, 6), -8, (45, 50))
    icon.lay(grip, "#ff9ac4", "#e64f92", "#a8256b", across=0.6, bevel=6)
    icon.lay(turned(box(42, 66, 48, 78, 3), -8, (45, 50)), "#ffffff", "#c9c0d8", bevel=2)
    icon.lay(polygon((62, 20), (96, 14), (96, 58), (62, 52), rounding=2), *DARK, bevel=5)
    icon.lay(oval(91, 13, 100, 59), "#7b758e", "#3a3546", across=0.5, bevel=2)
    icon.lay(oval(93.5, 19, 98.5, 53), "#ff9d5c", "#c9352f")
    body = np.maximum(oval(2, 6, 62, 66), polygon((30, 6), (70, 16), (70, 56), (30, 66), rounding=2))
    icon.lay(body, "#ffb0d2", "#ee5c9d", "#b02d74", across=0.15, bevel=11, depth=0.55)
    icon.lay(oval(13, 17, 47, 55), *DARK, bevel=4)
    for x in (20, 26.5, 33, 39.5):
        reach = 14 - abs(x - 29.5) * 0.6
        icon.lay(stroke((x, 36 - reach), (x, 36 + reach), width=2.2), "#9d97b0")
    return icon.gloss(oval(28, 9, 58, 16), 0.6, 1.3)


_DRAWN: dict[str, Callable[[], Icon]] = {
    "fire hydrant": _fire_hydrant,
    "parking meter": _parking_meter,
    "bench": _bench,
    "baseball glove": _baseball_glove,
    "surfboard": _surfboard,
    "dining table": _dining_table,
    "tv remote": _tv_remote,
    "microwave": _microwave,
    "oven": _oven,
    "toaster": _toaster,
    "sink": _sink,
    "refrigerator": _refrigerator,
    "hair drier": _hair_drier,
}


@cache
def draw_sprites(longest: int = 128) -> dict[str, np.ndarray]:
    """Class name -> uint8 RGBA, tight to its alpha box, straight alpha, the longer side `longest` px."""
    return {name: draw().sprite(longest) for name, draw in _DRAWN.items()}
