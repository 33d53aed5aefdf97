"""Prompts from files and from data sets of the hub: kinds ``file`` and ``hub``."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from irg.curation.content import content
from irg.curation.parts import Prompt, Source
from irg.curation.resources import Resources
from irg.reasoning.settings import check_prompt
from irg.text_files import lines_of, parse_json, read_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileSource(Source):
    """Prompts of the user: one a line, JSON lines with ``prompt``, or parquet/CSV with a prompt column."""

    kind: Literal["file"]
    path: str
    column: str = "prompt"
    license: str = "unknown"
    name: str = ""
    limit: int | None = None

    def content(self) -> Any:
        return content(self) | {"path": file_hash(Path(self.path))}

    async def prompts(self, seed: int, resources: Resources) -> AsyncIterator[Prompt]:
        path = Path(self.path)
        for prompt in _limited(_texts(path, self.column), self.limit, self.name or path.name, self.license):
            yield prompt


@dataclass(frozen=True)
class HubSource(Source):
    """Prompts of a data set on the Hugging Face hub: one of its files (parquet, CSV, JSON lines or text)."""

    kind: Literal["hub"]
    repo: str
    file: str
    revision: str = "main"
    column: str = "prompt"
    license: str = "unknown"
    limit: int | None = None

    async def prompts(self, seed: int, resources: Resources) -> AsyncIterator[Prompt]:
        path, name = fetch(self)
        for prompt in _limited(_texts(path, self.column), self.limit, name, self.license):
            yield prompt


def file_hash(path: Path) -> str:
    """sha256 of a file of a source.

    Raises:
        ValueError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"prompts.sources: {path}: {error.strerror or error}") from error


def _limited(texts: Iterator[tuple[str, str | None]], limit: int | None, name: str, license_: str) -> Iterator[Prompt]:
    """The prompts of a source; what is no prompt (nothing, or too long a text) is left out and counted in a line.

    Raises:
        ValueError: there are rows, and none holds a prompt.
    """
    refused: list[str] = []
    used = 0
    for number, (where, text) in enumerate(texts):
        if limit is not None and number >= limit:
            break
        try:
            prompt = Prompt(check_prompt(" ".join((text or "").split())), name, license_)
        except ValueError as error:
            refused.append(f"{where}: {error}")
            continue
        used += 1
        yield prompt
    if refused and not used:
        raise ValueError(refused[0])
    if refused:
        log.warning("%s: %d rows hold no usable prompt and are left out, such as %s", name, len(refused), refused[0])


def fetch(source: HubSource) -> tuple[Path, str]:
    """A file of a hub data set, through the hub's own cache, and what the source is called (with its commit).

    Raises:
        ValueError: it is not there or cannot be fetched.
    """
    import huggingface_hub
    from rich.console import Console

    name = f"{source.repo}/{source.file} at {source.revision}"
    Console(stderr=True).print(f"prompts: fetching {name} from the Hugging Face hub (kept in its cache)", style="dim")
    try:
        path = Path(
            huggingface_hub.hf_hub_download(source.repo, source.file, repo_type="dataset", revision=source.revision)
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"prompts.sources: {name}: {' '.join(str(error).split())[:300]}") from error
    commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else source.revision
    return path, f"{source.repo}@{commit[:12]}"


def _texts(path: Path, column: str) -> Iterator[tuple[str, str | None]]:
    """(where, prompt or None) of a file: parquet, CSV, JSON lines, or one prompt a line.

    Raises:
        ValueError: it cannot be read, or lacks the column.
    """
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _parquet_texts(path, column)
            case ".csv" | ".tsv":
                table = io.StringIO(_text(path), newline="")
                reader = csv.DictReader(table, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
                for row in reader:
                    where = f"{path}, line {reader.line_num}"
                    yield where, _column(row, column, where)
            case ".jsonl" | ".json":
                yield from _json_texts(path, column)
            case _:
                yield from ((f"{path}, line {number}", line) for number, line in lines_of(_text(path)))
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise ValueError(f"{path}: can't be read: {error}") from error


def _json_texts(path: Path, column: str) -> Iterator[tuple[str, str | None]]:
    """Of a list of objects or texts, or of one object a line."""
    text = _text(path)
    if text.lstrip().startswith("["):
        try:
            entries = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: no JSON: {error}") from error
        for number, entry in enumerate(entries):
            where = f"{path}, entry {number}"
            yield where, entry if isinstance(entry, str | None) else _column(_checked(entry, where), column, where)
        return
    for number, line in lines_of(text):
        where = f"{path}, line {number}"
        yield where, _column(_object(line, where), column, where)


def _parquet_texts(path: Path, column: str) -> Iterator[tuple[str, str | None]]:
    try:
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise ValueError(f"{path}: no column {column!r}; there are {', '.join(file.schema_arrow.names)}")
        number = 0
        for batch in file.iter_batches(columns=[column]):
            for text in batch.column(0).to_pylist():
                yield f"{path}, row {number}", _column({column: text}, column, f"{path}, row {number}")
                number += 1
    except pa.ArrowException as error:
        raise ValueError(f"{path}: no parquet file: {error}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)  # not parse_json: half a surrogate pair costs the one prompt, not the file
    except RecursionError:
        raise ValueError(f"{where}: no JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: no JSON: {error}") from error
    return _checked(value, where)


def _checked(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object")
    return value


def _column(row: dict[str, Any], column: str, where: str) -> str | None:
    text = row.get(column)
    if column not in row or not isinstance(text, str | None):
        raise ValueError(f"{where}: no text in {column!r} (it has {', '.join(map(str, row))})")
    return text
