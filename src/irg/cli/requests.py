"""Which images are asked for: prompts from the command line and from files, a seed for each image."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from irg.reasoning.settings import check_prompt, check_seed


@dataclass(frozen=True)
class Request:
    """One image: its prompt and its seed."""

    prompt: str
    seed: int


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
    """A file of one prompt a line, or of JSON lines ``{"prompt": ..., "seed": ...}``; ``-`` is standard input."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: can't read the prompts: {error.strerror or error}") from error
    requests = list(_requests(raw, seed, "standard input" if name == "-" else name))
    if not requests:
        raise ValueError(f"{name}: holds no prompt")
    return requests


def _requests(raw: bytes, seed: int, name: str) -> Iterator[Request]:
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8").strip()
            yield _from_json(text, seed) if text.startswith("{") else Request(check_prompt(text), seed)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: not UTF-8 text") from error
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error


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
