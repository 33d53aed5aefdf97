"""A finished request: all thoughts, all images, how they were made; saved to a folder and loaded back unchanged.

A folder holds ``trajectory.json``, ``report.html`` (the same to look at) and the images: ``initial.png`` of turn 0,
then ``improved.png``, ``improved-2.png``, ``improved-3.png`` ... of the turns after it. A turn in which the model saw
nothing left to improve has a thought and no image.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from irg.results.metadata import png_info
from irg.results.report import render
from irg.version import __version__

SCHEMA_VERSION = 1
JSON_NAME, REPORT_NAME = "trajectory.json", "report.html"
_MODES = ("RGB", "RGBA", "L", "LA")


@dataclass
class Turn:
    """One round of the loop: a thought (none in mode ``direct``), then an image (none when nothing was left to do).

    Attributes:
        settings: how the image was drawn, as plain JSON values.
        seconds: time per stage, such as ``{"thinking": 0.4, "drawing": 2.1}``.
        tokens: length of the thought.
    """

    thinking: str | None
    image: Image.Image | None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0


@dataclass
class Trajectory:
    """All turns of a request. ``stopped`` says that the model saw nothing left to improve."""

    prompt: str
    mode: str
    seed: int
    model: str
    settings: dict[str, Any]
    turns: list[Turn]
    stopped: bool = False
    version: str = __version__

    @property
    def image(self) -> Image.Image | None:
        """The last image."""
        return next((turn.image for turn in reversed(self.turns) if turn.image is not None), None)

    @property
    def initial_image(self) -> Image.Image | None:
        """The first turn's image."""
        return self.turns[0].image if self.turns else None

    @property
    def thinking(self) -> str | None:
        """The first turn's thought."""
        return self.turns[0].thinking if self.turns else None

    @property
    def reflection(self) -> str | None:
        """The last turn's thought, if there was more than one turn."""
        return self.turns[-1].thinking if len(self.turns) > 1 else None

    @property
    def seconds(self) -> float:
        """Time of all stages of all turns."""
        return sum(sum(turn.seconds.values()) for turn in self.turns)

    @property
    def tokens(self) -> int:
        """Length of all thoughts."""
        return sum(turn.tokens for turn in self.turns)

    def image_names(self) -> list[str | None]:
        """For each turn, the file its image is saved to."""
        return [None if turn.image is None else image_name(index) for index, turn in enumerate(self.turns)]

    def to_dict(self) -> dict[str, Any]:
        """What ``trajectory.json`` holds: everything but the pixels."""
        turns = [
            {
                "thinking": turn.thinking,
                "image": name,
                "settings": turn.settings,
                "seconds": turn.seconds,
                "tokens": turn.tokens,
            }
            for turn, name in zip(self.turns, self.image_names(), strict=True)
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "irg_version": self.version,
            "prompt": self.prompt,
            "mode": self.mode,
            "seed": self.seed,
            "model": self.model,
            "stopped": self.stopped,
            "settings": self.settings,
            "turns": turns,
        }

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write images, ``trajectory.json`` and ``report.html`` to ``folder``, wholly or not at all.

        The folder must be new or empty. With ``overwrite`` it may hold an earlier trajectory, which is replaced; a
        folder with any other file in it is always refused, so nothing foreign is ever deleted.

        Raises:
            FileExistsError: ``folder`` is a file or holds something else.
            ValueError: the trajectory holds something that can't be saved unchanged.
            OSError: writing failed; then ``folder`` is as it was before.
        """
        folder = Path(folder).expanduser().resolve()
        check_free(folder, overwrite)
        files = self._files()
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.part"
        try:
            part.mkdir()
            for name, write in files.items():
                write(part / name)
            _move_into_place(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Trajectory":
        """Read back what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, unreadable or not what it should be; file and problem are named.
        """
        folder = Path(folder).expanduser()
        path = folder / JSON_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        try:
            return cls._from_dict(data, lambda name: _load_image(folder, name))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _files(self) -> dict[str, Callable[[Path], None]]:
        """Name -> writer, with everything that can be refused refused before anything is written."""
        try:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            encoded = text.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the trajectory can't be written as JSON: {error}") from error
        files: dict[str, Callable[[Path], None]] = {}
        for index, (turn, name) in enumerate(zip(self.turns, self.image_names(), strict=True)):
            if turn.image is not None and name is not None:
                if turn.image.mode not in _MODES:
                    raise ValueError(f"turn {index}: an image of mode {turn.image.mode} can't be saved unchanged")
                files[name] = _png_writer(turn.image, self._png_details(index))
        files[REPORT_NAME] = _bytes_writer(render(self).encode("utf-8"))
        files[JSON_NAME] = _bytes_writer(encoded)
        return files

    def _png_details(self, index: int) -> dict[str, Any]:
        turn = self.turns[index]
        size = None if turn.image is None else f"{turn.image.width}x{turn.image.height}"
        shared = {name: value for name, value in self.to_dict().items() if name not in ("turns", "settings", "stopped")}
        own = {"size": size, "thinking": turn.thinking, "settings": turn.settings, "request_settings": self.settings}
        return shared | {"turn": index} | own

    @classmethod
    def _from_dict(cls, data: Any, load_image: Callable[[str], Image.Image]) -> "Trajectory":
        version = _get(data, "schema_version", int, "")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {version} is not known to this irg ({__version__}), which reads 1")
        turns = []
        for index, entry in enumerate(_get(data, "turns", list, "")):
            where = f"turns[{index}]."
            name = _get(entry, "image", (str, type(None)), where)
            turns.append(
                Turn(
                    thinking=_get(entry, "thinking", (str, type(None)), where),
                    image=None if name is None else load_image(name),
                    settings=_get(entry, "settings", dict, where),
                    seconds=_seconds(_get(entry, "seconds", dict, where), where),
                    tokens=_get(entry, "tokens", int, where),
                )
            )
        return cls(
            prompt=_get(data, "prompt", str, ""),
            mode=_get(data, "mode", str, ""),
            seed=_get(data, "seed", int, ""),
            model=_get(data, "model", str, ""),
            settings=_get(data, "settings", dict, ""),
            turns=turns,
            stopped=_get(data, "stopped", bool, ""),
            version=_get(data, "irg_version", str, ""),
        )


def image_name(turn: int) -> str:
    """The file of a turn's image: initial.png, improved.png, improved-2.png, ..."""
    if turn == 0:
        return "initial.png"
    return "improved.png" if turn == 1 else f"improved-{turn}.png"


def check_free(folder: Path, overwrite: bool = False) -> None:
    """Check that a trajectory may be saved to ``folder``; see :meth:`Trajectory.save`.

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


def _is_ours(name: str) -> bool:
    middle = name.removeprefix("improved-").removesuffix(".png")
    numbered = name == f"improved-{middle}.png" and middle.isdigit()
    return numbered or name in (JSON_NAME, REPORT_NAME, image_name(0), image_name(1))


def _bytes_writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    return write


def _png_writer(image: Image.Image, details: Mapping[str, Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            image.save(file, format="PNG", pnginfo=png_info(dict(details)))
            file.flush()
            os.fsync(file.fileno())

    return write


def _move_into_place(part: Path, folder: Path) -> None:
    """Rename ``part`` to ``folder``; an earlier one is set aside first and put back should the renaming fail."""
    if not folder.exists():
        part.rename(folder)
        return
    aside = part.with_suffix(".old")
    folder.rename(aside)
    try:
        part.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _load_image(folder: Path, name: str) -> Image.Image:
    """The pixels of an image in ``folder``.

    Raises:
        ValueError: the name leads out of the folder, or the file is missing or damaged.
    """
    plain = name == Path(name).name and not set(name) & set("/\\:\0") and name.endswith(".png")
    path = folder / name
    if not plain or path.resolve().parent != folder.resolve():
        raise ValueError(f"image {name!r} is not the plain name of a PNG file in this folder")
    try:
        with Image.open(path, formats=["PNG"]) as file:
            file.load()
            image = file.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name}: {getattr(error, 'strerror', None) or error}") from error
    image.info.clear()
    return image


def _get(data: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``data[name]``, which must be of the given kind (a bool is no int here)."""
    if not isinstance(data, dict):
        raise ValueError(f"{where.rstrip('.') or 'the file'} must be a JSON object")
    if name not in data:
        raise ValueError(f"{where}{name} is missing")
    value = data[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
        raise ValueError(f"{where}{name} must be of type {wanted}, got {str(value)[:40]!r}")
    return value


def _seconds(values: dict[str, Any], where: str) -> dict[str, float]:
    for name, value in values.items():
        if type(value) not in (int, float):
            raise ValueError(f"{where}seconds.{name} must be a number, got {str(value)[:40]!r}")
    return values
