"""Prompts from wherever a recipe says, as rows with ids."""

import csv
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irg.curation import taxonomy
from irg.curation.recipe import DataRecipe, FileSource, HubSource, MiniSource, Source, TaxonomySource, content
from irg.curation.stages import Workbench, made
from irg.curation.store import Row, digest
from irg.reasoning.settings import check_prompt
from irg_mini import world
from irg_mini.data.stages import ask, drawable


@dataclass(frozen=True)
class Found:
    """A prompt as a source gives it. ``turns`` None: the recipe's share decides."""

    prompt: str
    source: str
    license: str
    request: str | None = None
    turns: int | None = None


def key(recipe: DataRecipe) -> str:
    """Eight digits of what decides the prompts; files count by what is in them.

    Raises:
        ValueError: a file is not there, or a quota cannot be met.
    """
    told = []
    for source in recipe.prompts.sources:
        one = content(source)
        if isinstance(source, FileSource):
            one["path"] = _sha256(Path(source.path))
        if isinstance(source, TaxonomySource):
            taxonomy.check(source.quotas)
            one["grammar"] = _sha256(Path(taxonomy.__file__).with_name("taxonomy.yaml"))
        told.append(one)
    settings = content(recipe.prompts) | {"sources": told}
    return digest("prompts", 1, recipe.seed, recipe.rows_per_block, settings)[:8]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"prompts.sources: {path}: {error.strerror or error}") from error


async def prompt_rows(recipe: DataRecipe, bench: Workbench) -> AsyncIterator[Row]:
    """All rows of the prompts stage, in order; always the same for the same recipe.

    Raises:
        ValueError: a source cannot be read.
    """
    seen: set[bytes] = set()
    number = 0
    for source in recipe.prompts.sources:
        async for found in _found(source, recipe.seed, bench):
            for sample in range(recipe.prompts.samples):
                number += 1
                row = _row(found, recipe, number if recipe.prompts.repeats else sample)
                name = bytes.fromhex(row["id"])
                if not recipe.prompts.repeats:
                    if name in seen:
                        continue  # the same prompt from two sources is one prompt
                    seen.add(name)
                yield row


def _row(found: Found, recipe: DataRecipe, sample: int) -> Row:
    turns = found.turns
    if turns is None:
        lot = int(digest("turns", recipe.seed, found.prompt)[:8], 16) / 16**8
        turns = 1 if lot < recipe.prompts.first_turns else 2
    name = digest("row", found.prompt, found.request, turns, sample, recipe.seed)
    row = {"id": name[:32]}
    return made(
        row,
        {"source": found.source},
        prompt=found.prompt,
        request=found.request,
        turns=turns,
        seed=int(name[32:40], 16) % 2**31,
        source=found.source,
        license=found.license,
    )


async def _found(source: Source, seed: int, bench: Workbench) -> AsyncIterator[Found]:
    if isinstance(source, TaxonomySource) and source.endpoint is not None:
        async for category, text in taxonomy.by_endpoint(source, seed, bench):
            yield Found(check_prompt(text), f"taxonomy/{category} by {source.endpoint.model}", "model output")
        return
    for found in _at_hand(source, seed):
        yield found


def _at_hand(source: Source, seed: int) -> Iterator[Found]:
    match source:
        case FileSource():
            path = Path(source.path)
            name = source.name or path.name
            yield from _limited(_texts(path, source.column), source.limit, name, source.license)
        case HubSource():
            path, name = fetch(source)
            yield from _limited(_texts(path, source.column), source.limit, name, source.license)
        case TaxonomySource():
            for category, text in taxonomy.by_grammar(source, seed):
                yield Found(text, f"taxonomy/{category}", "Apache-2.0")
        case MiniSource():
            yield from mini_requests(source, seed)


def mini_requests(source: MiniSource, seed: int) -> Iterator[Found]:
    """Random requests of the mini world, without the combinations held out for testing."""
    vocab = drawable(source.vocab, world.load_sprites(source.sprites))
    rng = np.random.default_rng([seed, 300])
    for _ in range(source.rows):
        request, prompt = ask(rng, vocab, source.weights)
        turns = 2 if rng.random() < source.repairs else 1
        yield Found(prompt, "mini world", "Apache-2.0", json.dumps(request.to_json()), turns)


def _limited(texts: Iterator[tuple[str, str]], limit: int | None, name: str, license_: str) -> Iterator[Found]:
    for number, (where, text) in enumerate(texts):
        if limit is not None and number >= limit:
            return
        try:
            yield Found(check_prompt(" ".join(text.split())), name, license_)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def fetch(source: HubSource) -> tuple[Path, str]:
    """A file of a hub data set, through the hub's own cache, and what the source is called (with its commit).

    Raises:
        ValueError: it is not there or cannot be fetched.
    """
    import huggingface_hub
    from rich.console import Console

    told = f"{source.repo}/{source.file} at {source.revision}"
    Console(stderr=True).print(f"prompts: fetching {told} from the Hugging Face hub (kept in its cache)", style="dim")
    try:
        path = Path(
            huggingface_hub.hf_hub_download(source.repo, source.file, repo_type="dataset", revision=source.revision)
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"prompts.sources: {told}: {' '.join(str(error).split())[:300]}") from error
    commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else source.revision
    return path, f"{source.repo}@{commit[:12]}"


def _texts(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """(where, prompt) of a file: parquet, CSV, JSON lines, or one prompt a line.

    Raises:
        ValueError: it cannot be read, or lacks the column.
    """
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _parquet_texts(path, column)
            case ".csv" | ".tsv":
                with path.open(encoding="utf-8", newline="") as file:
                    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
                    for number, row in enumerate(reader, 2):
                        yield f"{path}, line {number}", _column(row, column, f"{path}, line {number}")
            case ".jsonl" | ".json":
                with path.open(encoding="utf-8") as file:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            where = f"{path}, line {number}"
                            yield where, _column(_object(line, where), column, where)
            case _:
                with path.open(encoding="utf-8") as file:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield f"{path}, line {number}", line
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error


def _parquet_texts(path: Path, column: str) -> Iterator[tuple[str, str]]:
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


def _object(line: str, where: str) -> dict[str, str]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object")
    return value


def _column(row: dict[str, str], column: str, where: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        raise ValueError(f"{where}: no text in {column!r} (it has {', '.join(map(str, row))})")
    return text
