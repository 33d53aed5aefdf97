"""Files that are whole or not there, locks, and JSON lines that survive a kill. Nobody else writes a temporary file.

A file or folder is written under a temporary name beside its place, synced to the disk and renamed. Temporary names
begin with ``.tmp-`` and are locked while their writer lives; :func:`sweep` removes those of killed processes.
"""

import contextlib
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from irg.text_files import parse_json

TEMPORARY, SET_ASIDE = ".tmp-", ".before-"


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else has. It keeps the ending, which some libraries look at."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path; what the block writes there becomes ``path`` if it succeeds, and is removed if not.

    Missing parent folders are made.

    Raises:
        OSError: it can't be written; the error names ``path``.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        with _held(temporary):
            yield temporary
            _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # its folder may be no folder
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """A file with this content, whole or not at all.

    Raises:
        OSError: it can't be written; the error names ``path``.
    """
    with written(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """A UTF-8 text file, whole or not at all; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON; see :func:`write_bytes`.

    Raises:
        ValueError: it holds NaN or infinity, which are no JSON.
        TypeError: it holds something that JSON has no form for.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def written_folder(place: Path) -> Iterator[Path]:
    """An empty temporary folder that takes the place of ``place`` if the block succeeds, and is removed if not.

    What was at ``place`` is set aside first and comes back should the renaming fail, or should it have been killed when
    this is next called. Whether it may be replaced is for the caller to check.

    Raises:
        OSError: it can't be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _mend(place)
    temporary = temporary_name(place)
    try:
        temporary.mkdir()
        with _held(temporary):
            yield temporary
            publish_folder(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mend(place: Path) -> None:
    """What writers of ``place`` that were killed have left: what they set aside comes back if nothing is there."""
    for earlier in place.parent.glob(f"{SET_ASIDE}*-{glob.escape(place.name)}"):
        if place.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            earlier.rename(place)
    for leftover in place.parent.glob(f"{TEMPORARY}*-{glob.escape(place.name)}"):
        _remove_abandoned(leftover)


def publish_folder(temporary: Path, place: Path) -> None:
    """Sync a folder that is whole and rename it to ``place``, for those who can't use :func:`written_folder`.

    Raises:
        OSError: it can't be written.
    """
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    _into_place(temporary, place)
    _sync(place.parent)


def _into_place(temporary: Path, place: Path) -> None:
    if not place.exists():
        temporary.rename(place)
        return
    earlier = place.with_name(temporary_name(place).name.replace(TEMPORARY, SET_ASIDE, 1))
    place.rename(earlier)
    try:
        temporary.rename(place)
    except BaseException:
        earlier.rename(place)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _sync(path: Path) -> None:
    """Write a file's content, or a folder's entries, to the disk (folders: where the system can)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise  # some file systems can't sync a folder; a file that can't be synced is an error
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove temporary files and folders in ``folder``, at any depth, whose writers were killed."""
    for inside, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if name.startswith(TEMPORARY):
                _remove_abandoned(Path(inside) / name)


def _remove_abandoned(leftover: Path) -> None:
    """Remove a temporary file or folder unless a living process writes it, or that can't be told."""
    with contextlib.suppress(OSError), _held(leftover, refuse=True):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path, refuse: bool = False) -> Iterator[None]:
    """Lock a file or folder for as long as this process lives at most; nothing is locked where the system can't.

    Raises:
        OSError: with ``refuse``: another process holds it, or it can't be locked.
    """
    if os.name == "nt":  # there an open file can't be renamed, and what is open can't be removed
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if refuse:
                raise
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file ``path`` of its folder; the system lets go of it when the process ends, however it ends.
    What killed processes have left in the folder is removed first (:func:`sweep`).

    Raises:
        ValueError: another process holds it; the message is ``refusal``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(refusal) from None
    try:
        sweep(path.parent)
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------------------------------------------------- JSON lines


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; none if there is no file. A last line that was cut short by a
    kill counts for nothing.

    Raises:
        ValueError: another line is no JSON object; file and line are named.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line) if line.strip() else None
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:40]!r}")
        found.append(value)
    return found


class JsonLines:
    """A file that grows by one JSON object a line and is read back after any interruption.

    Opening it cuts off a last line that a kill has left without its end.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab+")
        self._cut()

    def _cut(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        self._file.truncate(end)

    def append(self, value: Mapping[str, Any], sync: bool = False) -> None:
        """Add an object. When this returns it outlives the process; with ``sync`` also a power cut.

        Raises:
            TypeError: it holds something that JSON has no form for.
            OSError: it can't be written.
        """
        self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
