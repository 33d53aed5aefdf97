"""Where each benchmark's official scripts look for images, and reading and writing images there."""

import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from irg import files
from irg.image_files import open_image
from irg.promptsets import BenchPrompt

JPEG_QUALITY = 95
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_TILES = 4  # of a OneIG grid, two by two
_MAX_SAMPLES = 10_000  # of a layout that numbers them with four digits


@dataclass(frozen=True)
class ImageFile:
    """An image on disk; ``tile`` is its place in a grid of four, None when the file is the image."""

    path: Path
    tile: int | None = None

    def pixels(self) -> Image.Image:
        """RGB, upright.

        Raises:
            ValueError: the file can't be read as an image.
        """
        if self.tile is None:
            return open_image(self.path)
        return _crop(_read_grid(self.path, self.path.stat().st_mtime_ns), self.tile)

    @property
    def data(self) -> bytes:
        """The file as it is, or a tile as PNG."""
        if self.tile is None:
            return self.path.read_bytes()
        buffer = io.BytesIO()
        self.pixels().save(buffer, format="PNG")
        return buffer.getvalue()

    @cached_property
    def sha256(self) -> str:
        """Of :attr:`data`."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class ImageFolderLayout:
    """A benchmark's folder of images.

    Attributes:
        samples: images per prompt of the official protocol.
        place: (prompt, sample, model) -> path of the file in the folder.
        numbered: the file's name is the sample's number; official scripts read it with any number of leading zeros.
        grid: one file contains all samples of a prompt, two by two; a black tile is a missing one.
    """

    samples: int
    place: Callable[[BenchPrompt, int, str], str]
    numbered: bool = False
    grid: bool = False

    @property
    def names_model(self) -> bool:
        """Whether the model's name is part of the path."""
        prompt = BenchPrompt("0", "", "", {"length": "", "line": 0, "number": ""})
        return self.place(prompt, 0, "a") != self.place(prompt, 0, "b")

    @property
    def max_samples(self) -> int:
        """How many images a prompt there is a place for."""
        return 1 if self.samples == 1 else _TILES if self.grid else _MAX_SAMPLES

    def find(
        self, folder: Path, prompt: BenchPrompt, sample: int, model: str, samples: int | None = None
    ) -> ImageFile | None:
        """The image, or None if it is missing.

        Args:
            samples: how many images a prompt there are. Where it is one, a file that is no grid with three black tiles
                is that image, as other generators write it.

        Images of other generators may have another extension or, where files are numbered, other leading zeros.

        Raises:
            ValueError: a grid can't be read.
        """
        official = folder / self.place(prompt, sample, model)
        stems = [f"{sample:0{digits}d}" for digits in range(1, 7)] if self.numbered else [official.stem]
        names = (official.with_name(stem + suffix) for suffix in _SUFFIXES for stem in stems)
        path = next((path for path in (official, *names) if path.is_file()), None)
        if path is None:
            return None
        if not self.grid:
            return ImageFile(path)
        if samples == 1 and any(np.asarray(ImageFile(path, tile).pixels()).any() for tile in range(1, _TILES)):
            return ImageFile(path)
        image = ImageFile(path, sample)
        return image if np.asarray(image.pixels()).any() else None

    def write(self, folder: Path, prompt: BenchPrompt, sample: int, model: str, image: Image.Image) -> Path:
        """Put an image in its place; a grid keeps its other tiles."""
        path = folder / self.place(prompt, sample, model)
        image = image.convert("RGB")
        if self.grid:
            image = _paste(path, sample, image)
        with files.written(path) as temporary:
            _save(image, temporary)
        if path.parent.name == "samples":  # GenEval's scripts read the prompt's metadata beside its images
            metadata = path.parent.parent / "metadata.jsonl"
            if not metadata.is_file():
                files.write_text(metadata, json.dumps(dict(prompt.metadata)) + "\n")
        return path


@lru_cache(maxsize=4)
def _read_grid(path: Path, _changed: int) -> Image.Image:
    return open_image(path)  # cached, since its four tiles are read one after the other


def _save(image: Image.Image, path: Path) -> None:
    if path.suffix == ".jpeg":
        image.save(path, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    elif path.suffix == ".webp":
        image.save(path, format="WEBP", lossless=True, quality=0, method=0)  # quality is the effort here
    else:
        image.save(path, format="PNG")


def _crop(grid: Image.Image, tile: int) -> Image.Image:
    width, height = grid.width // 2, grid.height // 2
    x, y = tile % 2 * width, tile // 2 * height
    return grid.crop((x, y, x + width, y + height))


def _paste(path: Path, tile: int, image: Image.Image) -> Image.Image:
    size = (2 * image.width, 2 * image.height)
    grid = open_image(path) if path.is_file() else Image.new("RGB", size)
    if grid.size != size:
        raise ValueError(f"{path}: contains images of {grid.width // 2}x{grid.height // 2}, not {image.size}")
    grid.paste(image, (tile % 2 * image.width, tile // 2 * image.height))
    return grid


LAYOUTS: dict[str, ImageFolderLayout] = {
    "geneval": ImageFolderLayout(4, lambda prompt, sample, _: f"{prompt.id}/samples/{sample:04d}.png", numbered=True),
    "wise": ImageFolderLayout(1, lambda prompt, *_: f"{prompt.id}.png"),
    "tiif": ImageFolderLayout(
        1,
        lambda prompt, _, model: (
            f"{prompt.tag}/{model}/{prompt.metadata['length']}_description/{prompt.metadata['line']}.png"
        ),
    ),
    "genai_bench": ImageFolderLayout(1, lambda prompt, *_: f"{prompt.id}.jpeg"),
    "oneig": ImageFolderLayout(
        _TILES, lambda prompt, _, model: f"{prompt.tag}/{model}/{prompt.metadata['number']}.webp", grid=True
    ),
}


def slug(text: str) -> str:
    """The last part of a path or hub id as a file name: letters, digits, dots, underscores and dashes."""
    return re.sub(r"[^\w.]+", "-", text.strip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
