"""Which images are asked for: prompts from the command line and from files, a seed for each image."""

import csv
import io
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from irg.reasoning.settings import check_prompt, check_seed


@dataclass(frozen=True)
class Request:
    """One image: its prompt and its seed."""

    prompt: str
    seed: int


def drawn_seed(seed: int | Literal["random"]) -> int:
    """The seed itself, or a new one."""
    return secrets.randbelow(2**32) if seed == "random" else seed


def collect(prompts: Sequence[str], prompts_file: str | None, seed: int, copies: int) -> list[Request]:
    """All requests, in order; each prompt ``copies`` times with the seeds that follow its own.

    Raises:
        ValueError: a prompt, a seed, the number of copies or a line of the file is not acceptable; or no prompt.
    """
    if type(copies) is not int or not 1 <= copies <= 10_000:
        raise ValueError(f"-n must be a whole number from 1 to 10000, got {copies}")
    wanted = [Request(check_prompt(prompt), seed) for prompt in prompts]
    if prompts_file is not None:
        wanted += _read(prompts_file, seed)
    if not wanted:
        raise ValueError('no prompt is given; for example: irg generate "a red apple"')
    return [Request(one.prompt, check_seed(one.seed + copy)) for one in wanted for copy in range(copies)]


def _read(name: str, seed: int) -> list[Request]:
    """A file of one prompt a line, of JSON lines ``{"prompt": ..., "seed": ...}``, or (``.csv``, ``.tsv``) of columns
    with these names; ``-`` is standard input."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: can't read the prompts: {error.strerror or error}") from error
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    delimiter = {".csv": ",", ".tsv": "\t"}.get(Path(name).suffix.lower())
    if delimiter:
        requests = list(_from_table(raw, delimiter, seed, name))
    else:
        requests = list(_requests(raw, seed, "standard input" if name == "-" else name))
    if not requests:
        raise ValueError(f"{name}: holds no prompt")
    return requests


def _requests(raw: bytes, seed: int, name: str) -> Iterator[Request]:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8").strip()
            yield _from_json(text, seed) if text.startswith("{") else Request(check_prompt(text), seed)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: not UTF-8 text") from error
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error


def _from_table(raw: bytes, delimiter: str, seed: int, name: str) -> Iterator[Request]:
    """The rows of a CSV file: column ``prompt``, and ``seed`` if there is one; other columns are left alone."""
    try:
        rows = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""), delimiter=delimiter, strict=True)
        if "prompt" not in (rows.fieldnames or ()):
            raise ValueError(f"{name}: the first line must name the columns, one of them prompt")
        for row in rows:
            try:
                own = (row.get("seed") or "").strip()
                yield Request(check_prompt(row["prompt"] or ""), check_seed(int(own)) if own else seed)
            except ValueError as error:
                raise ValueError(f"{name}, line {rows.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text") from error
    except csv.Error as error:
        raise ValueError(f"{name}: not a CSV file: {error}") from error


def _from_json(text: str, seed: int) -> Request:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"starts with '{{' but is not valid JSON: {error}") from error
    unknown = sorted(set(entry) - {"prompt", "seed"})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; the fields are prompt and seed")
    if "prompt" not in entry:
        raise ValueError("the field 'prompt' is missing")
    return Request(check_prompt(entry["prompt"]), check_seed(entry.get("seed", seed)))
