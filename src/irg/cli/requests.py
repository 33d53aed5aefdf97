"""What is asked for: prompts and given images from the command line and from files, a seed for each request."""

import csv
import io
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from irg.reasoning.settings import check_prompt, check_seed
from irg.text_files import decoded, lines_of, parse_json


@dataclass(frozen=True)
class Request:
    """A prompt (an instruction, a question), a seed, and the image files that it is about."""

    prompt: str
    seed: int
    images: tuple[Path, ...] = ()


def drawn_seed(seed: int | Literal["random"]) -> int:
    """The seed itself, or a new one."""
    return secrets.randbelow(2**32) if seed == "random" else seed


def images_and_text(words: Sequence[str], example: str) -> tuple[tuple[Path, ...], str]:
    """The image files and the text after them.

    Raises:
        ValueError: one of them is missing.
    """
    if len(words) < 2 or _is_file(words[-1]):
        raise ValueError(f"image files and then a text in quotes are needed; for example: {example}")
    return tuple(Path(word) for word in words[:-1]), words[-1]


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # a text may be too long for a name
        return False


def collect(
    given: Sequence[Request], file: str | None, seed: int, copies: int, example: str, with_images: bool = False
) -> list[Request]:
    """All requests, in order: those of the command line, then those of ``file``; each ``copies`` times with the seeds
    that follow its own.

    Args:
        example: a command that would be right, for the message when there is no request.
        with_images: the file's requests are about images.

    Raises:
        ValueError: a prompt, a seed, the number of copies or a line of the file is not acceptable; or no request.
    """
    if type(copies) is not int or not 1 <= copies <= 10_000:
        raise ValueError(f"-n must be a whole number from 1 to 10000, got {copies}")
    wanted = [replace(one, prompt=check_prompt(one.prompt)) for one in given]
    if file is not None:
        wanted += _read(file, seed, with_images)
    if not wanted:
        raise ValueError(f"no prompt is given; for example: {example}")
    return [replace(one, seed=check_seed(one.seed + copy)) for one in wanted for copy in range(copies)]


def _read(name: str, seed: int, with_images: bool) -> list[Request]:
    """A file of one prompt a line, of JSON lines ``{"prompt": ..., "seed": ...}`` (with ``image`` or ``images``, where
    they are asked for), or (``.csv``, ``.tsv``) of columns with these names; ``-`` is standard input."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: can't read the prompts: {error.strerror or error}") from error
    title, folder = ("standard input", Path()) if name == "-" else (name, Path(name).parent)
    delimiter = {".csv": ",", ".tsv": "\t"}.get(Path(name).suffix.lower())
    fields = ("prompt", "seed", "image", "images") if with_images else ("prompt", "seed")
    try:
        text = decoded(raw)
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from error
    requests = []
    for where, entry in _table_rows(text, delimiter, title, fields) if delimiter else _entries(text, title):
        try:
            requests.append(_request(entry(), seed, folder, fields))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not requests:
        raise ValueError(f"{title}: holds no prompt")
    return requests


_Entries = Iterator[tuple[str, Callable[[], dict[str, Any]]]]  # (file and line, what makes its fields or complains)


def _entries(text: str, title: str) -> _Entries:
    """One a line, or those of a JSON list of objects and texts."""
    if text.lstrip().startswith("[{") or (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        try:
            entries = parse_json(text)
        except ValueError:  # a prompt may begin with a bracket
            entries = None
        if isinstance(entries, list):
            yield from ((f"{title}, entry {n}", partial(_fields_of_entry, one)) for n, one in enumerate(entries))
            return
    yield from ((f"{title}, line {number}", partial(_fields_of_line, line)) for number, line in lines_of(text))


def _fields_of_entry(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"prompt": entry}
    if not isinstance(entry, dict):
        raise ValueError("expected an object or a text")
    return entry


def _fields_of_line(line: str) -> dict[str, Any]:
    line = line.strip()
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        entry: dict[str, Any] = parse_json(line)
    except ValueError as error:
        raise ValueError(f"starts with '{{' but is not valid JSON: {error}") from error
    return entry


def _table_rows(text: str, delimiter: str, title: str, fields: Sequence[str]) -> _Entries:
    """The rows of a CSV file with a column ``prompt``; columns that are no field are left alone."""
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        if "prompt" not in (rows.fieldnames or ()):
            raise ValueError(f"{title}: the first line must name the columns, one of them prompt")
        for row in rows:
            yield f"{title}, line {rows.line_num}", partial(_fields_of_row, {name: row.get(name) for name in fields})
    except csv.Error as error:
        raise ValueError(f"{title}: not a CSV file: {error}") from error


def _fields_of_row(row: dict[str, str | None]) -> dict[str, Any]:
    entry: dict[str, Any] = {name: text for name, text in row.items() if text and text.strip()}
    if entry.get("seed", "").strip().isdecimal():
        entry["seed"] = int(entry["seed"])
    return {"prompt": ""} | entry


def _request(entry: Mapping[str, Any], seed: int, folder: Path, fields: Sequence[str]) -> Request:
    """A request from its fields; relative paths of images begin at ``folder``."""
    unknown = sorted(set(entry) - set(fields))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; the fields are {', '.join(fields)}")
    if "prompt" not in entry:
        raise ValueError("the field 'prompt' is missing")
    images = entry.get("images", [entry["image"]] if "image" in entry else [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError("the field 'image' must be a path, 'images' a list of paths")
    if "image" in fields and not images:
        raise ValueError("the field 'image' is missing (or 'images' for several)")
    paths = tuple(folder / Path(image).expanduser() for image in images)
    return Request(check_prompt(entry["prompt"]), check_seed(entry.get("seed", seed)), paths)
