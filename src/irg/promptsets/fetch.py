"""Downloading a benchmark's pinned files once: announced first, checked against their sha256, kept in a cache.

After an interruption only the files that are not whole are downloaded again; the largest has a few MB.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from irg.downloads import Say, default_cache, download, is_offline
from irg.files import sweep, write_bytes
from irg.promptsets.sources import PinnedFile, PromptSource

_THREADS = 8


def fetch(source: PromptSource, variant: str, cache_dir: Path | None, offline: bool, say: Say) -> dict[str, Path]:
    """The files of a variant (layout path -> file in the cache), downloaded if they are not there.

    Raises:
        ValueError: they are not there and can't be downloaded; the message says how to do without the network.
    """
    folder = Path(cache_dir or default_cache()) / "promptsets" / source.name
    files = source.variants[variant]
    missing = [file for file in files if not _is_whole(folder / file.path, file)]
    if missing:
        where = f"the {source.title} prompts ({variant}) are not in the cache"
        hint = (
            f"Get {'it' if len(missing) == 1 else 'them'} where there is a network (such as {missing[0].urls[0]}) and "
            "give the file, or a folder laid out like the official one, with --prompts PATH"
        )
        if is_offline(offline):
            raise ValueError(f"{where}, and downloading is off (offline). {hint}")
        say(notice(source, variant, missing, folder))
        sweep(folder)
        with ThreadPoolExecutor(_THREADS) as pool:
            problems = [problem for problem in pool.map(lambda file: _download(file, folder), missing) if problem]
        if problems:
            raise ValueError(f"{where} and could not be downloaded: {problems[0]}. {hint}")
    return {file.path: folder / file.path for file in files}


def notice(source: PromptSource, variant: str, files: Sequence[PinnedFile], folder: Path) -> str:
    """What is about to be downloaded, from where, how big, under which license."""
    size = sum(file.bytes for file in files)
    origins = source.origins(variant)
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    text = f"Downloading {source.title} prompts ({variant}): {count}, {size / 1e6:.2f} MB, "
    return text + f"from {'; or '.join(map(str, origins))} into {folder}. {origins[0].license_notice}"


def _download(file: PinnedFile, folder: Path) -> str | None:
    """Download one file; what went wrong at each of its addresses, or None when it is there."""

    def keep(content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise ValueError("not the pinned file (its sha256 differs)")
        write_bytes(folder / file.path, content)

    try:
        download(file.urls, keep)
    except ValueError as error:
        return str(error)
    return None


def _is_whole(path: Path, file: PinnedFile) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    except OSError:
        return False
