"""Contact sheets of the mini world, for looking at: ``python -m irg_mini.world.sheets docs/images``.

Whoever adds a noun, a drawing or a background should look at it here, large and small.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from irg_mini.world.backgrounds import BACKGROUNDS, background_pixels
from irg_mini.world.captions import caption
from irg_mini.world.classes import classes
from irg_mini.world.corrupt import corrupt
from irg_mini.world.placement import sample_pair
from irg_mini.world.reflections import parse_reflection, reflect
from irg_mini.world.render import contact_sheet, degrade, render
from irg_mini.world.repair import correct
from irg_mini.world.rules import see
from irg_mini.world.sprites import Sprites, load_sprites

_PAPER = (206, 214, 220)
_INK = (40, 44, 52)


def noun_sheet(names: Sequence[str], sprites: Sprites, px: int = 52, columns: int = 18) -> Image.Image:
    """The sprites of some classes with their names."""
    wide, high = px + 12, px + 16
    sheet = Image.new("RGB", (columns * wide, -(-len(names) // columns) * high), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(names):
        x, y = index % columns * wide, index // columns * high
        _paste(sheet, sprites.image(name), x + 6, y + 2, px)
        draw.text((x + wide / 2, y + px + 3), name[:12], fill=_INK, font_size=9, anchor="ma")
    return sheet


def drawn_sheet(sprites: Sprites) -> Image.Image:
    """What we draw ourselves, with a few emoji among it, at 128 and 40 px."""
    names = [name for name, kind in classes("geneval").items() if kind.emoji is None]
    names = [*names, "couch", "tv", "toilet", "chair", "suitcase", "clock", "bottle", "cup"]
    sheet = Image.new("RGB", (7 * 140, 3 * 190), _PAPER)
    for index, name in enumerate(names):
        x, y = index % 7 * 140, index // 7 * 190
        _paste(sheet, sprites.image(name), x + 6, y + 6, 128)
        _paste(sheet, sprites.image(name), x + 50, y + 142, 40)
    return sheet


def _paste(sheet: Image.Image, rgba: np.ndarray, x: int, y: int, px: int) -> None:
    image = Image.fromarray(rgba).convert("RGBa")
    scale = px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    sheet.paste(small, (x + (px - size[0]) // 2, y + (px - size[1]) // 2), small)


def background_sheet(size: int = 220) -> Image.Image:
    """Every background, empty."""
    return contact_sheet([background_pixels(name, size).astype(np.uint8) for name in BACKGROUNDS], columns=4)


def scene_sheet(
    sprites: Sprites, weights: dict[str, float], seed: int, size: int = 128, count: int = 21
) -> Image.Image:
    """Right images for random requests of the full world."""
    rng = np.random.default_rng(seed)
    images = [render(sample_pair(rng, weights, "full")[1], size, sprites) for _ in range(count)]
    return contact_sheet(images, columns=7)


def repair_sheet(sprites: Sprites, seed: int, size: int = 150, count: int = 4) -> Image.Image:
    """Flawed images on the left, the ground-truth reflection, corrected ones on the right."""
    rng = np.random.default_rng(seed)
    sheet = Image.new("RGB", (2 * size + 520, count * (size + 6)), "white")
    draw = ImageDraw.Draw(sheet)
    row = 0
    while row < count:
        request, scene = sample_pair(rng, {"compound": 1.0, "stacking": 1.0}, "full")
        flawed, flaws = corrupt(request, scene, rng, vocab="full")
        if not flaws:
            continue
        seen = see(flawed)
        corrected = correct(request, seen, scene, rng)
        pixels = render(flawed, size, sprites)
        for how in (flaw.detail for flaw in flaws if flaw.kind == "poor_quality"):
            pixels = degrade(pixels, rng, how)
        reflection = parse_reflection(reflect(request, flaws, corrected, seen))
        y = row * (size + 6)
        sheet.paste(Image.fromarray(pixels), (0, y))
        sheet.paste(Image.fromarray(render(corrected, size, sprites)), (size + 520, y))
        lines = [f"Prompt: {caption(request)}", f"Analysis: {reflection.analysis}"]
        lines.append(f"Improvements: {reflection.improvements}")
        text = "\n\n".join(_wrapped(line, 74) for line in lines)
        draw.text((size + 14, y + 6), text, fill=_INK, font_size=13)
        row += 1
    return sheet


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(line.rstrip() for line in lines)


def write_sheets(folder: Path, sprites: Sprites) -> list[Path]:
    """Write all sheets as PNG files, small enough for a repository; returns their paths."""
    names = list(classes("full"))
    mixed = {"compound": 2.0, "counting": 1.0, "color_attr": 1.0, "stacking": 1.0, "position": 1.0}
    sheets: dict[str, Callable[[], Image.Image]] = {
        "nouns-1": lambda: noun_sheet(names[:144], sprites),
        "nouns-2": lambda: noun_sheet(names[144:288], sprites),
        "nouns-3": lambda: noun_sheet(names[288:], sprites),
        "drawn": lambda: drawn_sheet(sprites),
        "backgrounds": background_sheet,
        "scenes": lambda: scene_sheet(sprites, mixed, seed=8),
        "stacking": lambda: scene_sheet(sprites, {"stacking": 1.0}, seed=1, count=14),
        "repairs": lambda: repair_sheet(sprites, seed=12),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, make in sheets.items():
        path = folder / f"miniworld-{name}.png"
        path.write_bytes(_png(make()))
        paths.append(path)
    return paths


def _png(image: Image.Image, most: int = 290_000) -> bytes:
    """The image as PNG; with a palette of 256 colors if it would be larger than `most` bytes."""
    palette = image.quantize(256, Image.Quantize.MEDIANCUT)
    for version in (image, image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)):
        buffer = io.BytesIO()
        version.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


if __name__ == "__main__":
    import tyro

    for written in write_sheets(tyro.cli(Path), load_sprites()):
        print(written)
