"""``load(name)``: a benchmark's prompts, from its official repository through the cache, or from a path."""

import hashlib
import sys
from pathlib import Path

from irg.downloads import Say
from irg.promptsets.fetch import fetch
from irg.promptsets.parse import PARSERS, companion_files
from irg.promptsets.prompt_set import PromptSet, combined_sha256
from irg.promptsets.sources import SOURCES, PromptSource
from irg.recipes import choose

NAMES = tuple(SOURCES)


def load(
    name: str,
    path: str | Path | None = None,
    *,
    variant: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    say: Say | None = None,
) -> PromptSet:
    """The prompts of a benchmark.

    Args:
        name: one of :data:`NAMES` (``genai-bench`` and ``genai_bench`` are the same).
        path: read them here instead of downloading: the main file of the set, a folder laid out like the official one,
            or a folder with such a folder in it under the benchmark's name.
        variant: which of the benchmark's sets; default: the one that the file at ``path`` is, else the usual one
            (:attr:`PromptSource.default`).
        offline: never download; also ``IRG_OFFLINE=1``.
        cache_dir: default ``$IRG_CACHE``, else ``~/.cache/irg``.
        say: called with a line that says what is downloaded, before it is; default: print to standard error.

    Raises:
        ValueError: no such benchmark, variant or path; a file is missing, unreadable or not what it should be; or
            the files are not here and can't be downloaded.
    """
    source = SOURCES[canonical_name(name)]
    selected = _variant(source, variant)
    if path is None:
        files = fetch(source, selected, Path(cache_dir) if cache_dir else None, offline, say or _to_stderr)
    else:
        files = _files_at(source, selected, Path(path).expanduser())
    contents = {place: _read(file) for place, file in files.items()}
    hashes = {place: hashlib.sha256(content).hexdigest() for place, content in contents.items()}
    prompts = PARSERS[source.name]({place: (files[place], content) for place, content in contents.items()})
    if not prompts:
        raise ValueError(f"{path or source.name}: contains no prompt")
    official = next((one for one in source.variants if _pinned(source, one) == hashes), None)
    if variant is None and official is not None:
        selected = official  # the files at a path may be another variant than the default
    origin = source.origins(selected)[0]
    return PromptSet(
        name=source.name,
        variant=selected,
        prompts=tuple(prompts),
        sha256=combined_sha256(hashes),
        license=origin.license,
        terms=origin.terms,
        source=str(Path(path).expanduser().absolute())
        if path is not None
        else f"{origin.repository}@{origin.commit[:12]}",
        official=official == selected,
    )


def canonical_name(name: str) -> str:
    """The benchmark's name as this package spells it (``genai-bench`` -> ``genai_bench``).

    Raises:
        ValueError: there is no such benchmark.
    """
    known = name.replace("-", "_").lower()
    if known not in NAMES:
        raise ValueError(f"no benchmark {name!r}{choose(known, NAMES)}; there are {', '.join(NAMES)}")
    return known


def _variant(source: PromptSource, variant: str | None) -> str:
    if variant is None:
        return source.default
    if variant not in source.variants:
        raise ValueError(
            f"{source.name} has no prompt set {variant!r}{choose(variant, source.variants)}; "
            f"there are {', '.join(source.variants)}"
        )
    return variant


def _pinned(source: PromptSource, variant: str) -> dict[str, str]:
    return {file.path: file.sha256 for file in source.variants[variant]}


def _files_at(source: PromptSource, variant: str, path: Path) -> dict[str, Path]:
    """Layout path -> file, for ``path`` as a user gave it."""
    if path.is_file():
        return companion_files(source.name, path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    places = [file.path for file in source.variants[variant]]
    root = path / source.name if (path / source.name).is_dir() else path
    missing = next((place for place in places if not (root / place).is_file()), None)
    if missing is not None:
        raise ValueError(f"{root}: {missing} is missing; the {source.title} set {variant!r} has {len(places)} file(s)")
    return {place: root / place for place in places}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: can't be read: {error.strerror or error}") from error


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
