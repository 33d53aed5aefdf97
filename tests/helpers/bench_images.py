"""Images of one gray each, laid out for a benchmark, and a detector's answers about them."""

import io
from pathlib import Path

from PIL import Image
from rich.console import Console

from irg.evaluation.image_folders import LAYOUTS

QUIET = Console(file=io.StringIO())
CAT = {"boxes": {"cat": [[0, 0, 9, 9, 0.9]]}, "colors": {}}
EVERYTHING = {
    "boxes": {
        "cat": [[0, 0, 9, 9, 0.95]],
        "dog": [[0, 0, 4, 4, 0.95], [5, 5, 9, 9, 0.95]],
        "bus": [[0, 0, 9, 9, 0.95]],
    },
    "colors": {"bus": ["red"]},
}
NOTHING = {"boxes": {}, "colors": {}}


def flat(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


def images(folder: Path, prompts, layout="geneval", samples=4, first=10) -> Path:
    for index, prompt in enumerate(prompts):
        for sample in range(samples):
            LAYOUTS[layout].write(folder, prompt, sample, "m", flat(first + 20 * index + sample))
    return folder


def grey(job) -> int:
    return job.image.pixels().getpixel((0, 0))[0]
