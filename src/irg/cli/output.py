"""Where results go. One result is the folder itself; several are folders in it, with an ``index.html`` over them."""

import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from irg.cli.requests import Request
from irg.files import write_text
from irg.results.folder import check_free
from irg.results.report import render_gallery
from irg.results.trajectory import Trajectory

INDEX_NAME = "index.html"


class Output:
    """The folders of one run; made only when there is a result to put into them."""

    def __init__(self, out: str | None, requests: Sequence[Request], overwrite: bool = False) -> None:
        """Plan the folders, and check that they can be written.

        Raises:
            ValueError: ``out`` can't be written to, or holds other files.
            FileExistsError: ``out`` holds an earlier result, and ``overwrite`` is off.
        """
        self.overwrite = overwrite
        self.several = len(requests) > 1
        names = [f"{slug(one.images[0].stem if one.images else one.prompt)}-{one.seed}" for one in requests]
        stem = names[0] + (f"-x{len(requests)}" if self.several else "")
        self._default = Path("irg-out") / stem if out is None else None
        self.folder = _unused(self._default) if self._default else Path(str(out)).expanduser()
        self.saved: list[tuple[str, Trajectory]] = []
        self._names = _distinct(names)
        if self.several:
            _check_group(self.folder, overwrite)
            if overwrite:
                for name in self._names:
                    check_free(self.folder / name, overwrite)
        else:
            check_free(self.folder, overwrite)
        _check_writable(self.folder)

    def save(self, index: int, trajectory: Trajectory) -> Path:
        """Write result ``index``; returns its folder.

        Raises:
            OSError: writing failed; nothing of this result is left behind, the earlier ones stay.
        """
        if self._default and not self.saved:
            self.folder = _unused(self._default)  # another run may have taken the name meanwhile
        folder = self.folder / self._names[index] if self.several else self.folder
        trajectory.save(folder, overwrite=self.overwrite)
        self.saved.append((self._names[index], trajectory))
        return folder

    def write_index(self) -> Path | None:
        """The gallery of all saved results, if there are several; None otherwise."""
        if not self.several or not self.saved:
            return None
        order = {name: position for position, name in enumerate(self._names)}
        saved = sorted(self.saved, key=lambda entry: order[entry[0]])
        page = render_gallery([(name, trajectory.to_dict()) for name, trajectory in saved])
        write_text(self.folder / INDEX_NAME, page)
        return self.folder / INDEX_NAME


def slug(prompt: str, longest: int = 48) -> str:
    """A short file name made of a prompt's first words; letters of any script stay."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt[:400]).lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer.encode("utf-8")) > longest:
            break
        name = longer
    return name or "image"


def _distinct(names: list[str]) -> list[str]:
    taken: dict[str, int] = {}
    result = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        result.append(name if taken[name] == 1 else f"{name}_{taken[name]}")
    return result


def _unused(folder: Path) -> Path:
    candidate, number = folder, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _check_group(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, a folder is needed")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder}: is not empty; choose a new folder or give --overwrite")


def _check_writable(folder: Path) -> None:
    """Try a nameless file in the nearest folder that exists, so that an hour of drawing is not lost at its end."""
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(20, "is not a folder")
        # a new folder is renamed into its parent, an existing one is replaced there
        with tempfile.TemporaryFile(dir=nearest if nearest != folder.absolute() else nearest.parent):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: can't be written ({nearest}: {error.strerror})") from error
