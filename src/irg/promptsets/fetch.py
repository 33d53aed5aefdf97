"""Downloading pinned files once: announced first, checked against their sha256, kept in a cache.

After an interruption only the files that are not whole are downloaded again; the largest has a few MB.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from irg.promptsets.sources import PinnedFile, PromptSource

Say = Callable[[str], object]
_TIMEOUT_S = 30.0
_THREADS = 8


def default_cache() -> Path:
    """$IRG_CACHE, else ~/.cache/irg."""
    return Path(os.environ.get("IRG_CACHE") or Path.home() / ".cache" / "irg")


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
        if offline or os.environ.get("IRG_OFFLINE"):
            raise ValueError(f"{where}, and downloading is off (offline). {hint}")
        say(notice(source, variant, missing, folder))
        with ThreadPoolExecutor(_THREADS) as pool:
            problems = [problem for problem in pool.map(lambda file: _download(file, folder), missing) if problem]
        if problems:
            raise ValueError(f"{where} and could not be downloaded: {problems[0]}. {hint}")
    return {file.path: folder / file.path for file in files}


def notice(source: PromptSource, variant: str, files: Sequence[PinnedFile], folder: Path) -> str:
    """What is about to be downloaded, from where, how big, under which license."""
    size = sum(file.bytes for file in files)
    repositories = "; or ".join(f"{o.repository} at {o.commit[:12]}" for o in source.origins(variant))
    origin = source.origins(variant)[0]
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    text = f"Downloading {source.title} prompts ({variant}): {count}, {size / 1e6:.2f} MB, from {repositories} "
    text += f"into {folder}. License: {origin.license}."
    if origin.terms == "non-commercial":
        text += " NON-COMMERCIAL use only."
    elif origin.terms == "unlicensed":
        text += " UNLICENSED: its authors have granted no rights; check that your use is allowed."
    return text


def _download(file: PinnedFile, folder: Path) -> str | None:
    """Download one file; what went wrong at each of its addresses, or None when it is there."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_S)
    reasons = []
    for url in file.urls:
        try:
            pooch.retrieve(url, f"sha256:{file.sha256}", file.path, folder, downloader=downloader)
            return None
        except OSError as error:  # requests' errors are OSErrors
            reasons.append(f"{url}: {error}")
        except ValueError:
            reasons.append(f"{url}: not the pinned file (its sha256 differs)")
    return "; ".join(reasons)


def _is_whole(path: Path, file: PinnedFile) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    except OSError:
        return False
