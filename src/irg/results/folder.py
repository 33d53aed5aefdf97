"""A result's folder: which files it holds, when it may be written, and how its images are written and read.

``trajectory.json``, ``report.html`` (the same to look at) and the images: ``initial.png`` of turn 0, then
``improved.png``, ``improved-2.png``, ``improved-3.png`` ... of the turns after it. Several given images are
``given-1.png``, ``given-2.png``, ... in the place of ``initial.png``; ``candidate-1.png``, ... are the candidates that
were not chosen.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from irg.files import written_folder
from irg.results.metadata import png_info

JSON_NAME, REPORT_NAME = "trajectory.json", "report.html"
_MODES = ("RGB", "RGBA", "L", "LA")


def image_name(turn: int, given: int = 0) -> str:
    """The file of a turn's image: initial.png, improved.png, improved-2.png, ...

    Args:
        given: how many of the first turns' images were given.
    """
    if given > 1:
        if turn < given:
            return f"given-{turn + 1}.png"
        turn -= given - 1
    if turn == 0:
        return "initial.png"
    return "improved.png" if turn == 1 else f"improved-{turn}.png"


def check_free(folder: Path, overwrite: bool = False) -> None:
    """Check that a result may be written to ``folder``: it is new, empty, or (``overwrite``) holds an earlier result.

    A folder with any other file in it is always refused, so nothing else is ever deleted.

    Raises:
        FileExistsError: it may not.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, a folder is needed")
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if not _is_ours(name)]
    if foreign:
        raise FileExistsError(f"{folder}: holds other files ({foreign[0]}); choose a new folder")
    if names and not overwrite:
        raise FileExistsError(f"{folder}: holds an earlier result; choose a new folder or ask to overwrite it")


def write_folder(folder: Path, files: Mapping[str, bytes], overwrite: bool = False) -> Path:
    """Write a result's files, all or none; returns the folder's absolute path.

    Raises:
        FileExistsError: see :func:`check_free`.
        OSError: writing failed; then ``folder`` is as it was before.
    """
    folder = folder.expanduser().resolve()
    check_free(folder, overwrite)
    with written_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return folder


def encode_png(image: Image.Image, details: Mapping[str, Any]) -> bytes:
    """An image as a PNG file with ``details`` (:func:`irg.results.metadata.png_info`) in it.

    Raises:
        ValueError: pixels of its mode can't be kept unchanged.
    """
    if image.mode not in _MODES:
        raise ValueError(f"an image of mode {image.mode} can't be saved unchanged")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=png_info(dict(details)))
    return buffer.getvalue()


def read_image(folder: Path, name: str) -> Image.Image:
    """The pixels of an image in ``folder``.

    Raises:
        ValueError: the name leads out of the folder, or the file is missing or damaged.
    """
    plain = name == Path(name).name and not set(name) & set("/\\:\0") and name.endswith(".png")
    path = folder / name
    if not plain or path.resolve().parent != folder.resolve():
        raise ValueError(f"image {name!r} is not the plain name of a PNG file in this folder")
    try:
        with Image.open(path, formats=["PNG"]) as file:  # not open_image: the mode stays as it was saved
            file.load()
            image = file.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name}: {getattr(error, 'strerror', None) or error}") from error
    image.info.clear()
    return image


def _is_ours(name: str) -> bool:
    numbered = re.fullmatch(r"(improved|given|candidate)-[0-9]+\.png", name) is not None
    return numbered or name in (JSON_NAME, REPORT_NAME, image_name(0), image_name(1))
