"""Getting official files once: said before it is done, checked against their sha256, kept in a cache."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from irg.promptsets.registry import Home, SetFile

Say = Callable[[str], object]
_TIMEOUT_S = 30.0
_AT_ONCE = 8


def default_cache() -> Path:
    """$IRG_CACHE, else ~/.cache/irg."""
    return Path(os.environ.get("IRG_CACHE") or Path.home() / ".cache" / "irg")


def fetch(home: Home, variant: str, cache_dir: Path | None, offline: bool, say: Say) -> dict[str, Path]:
    """The files of a variant (layout path -> file in the cache), fetched if they are not there.

    Raises:
        ValueError: they are not there and can't be fetched; the message says how to do without the network.
    """
    folder = Path(cache_dir or default_cache()) / "promptsets" / home.name
    files = {file: folder / file.path for file in home.variants[variant]}
    missing = [file for file, path in files.items() if not _whole(path, file)]
    if missing:
        if offline or os.environ.get("IRG_OFFLINE"):
            raise ValueError(f"{_not_here(home, variant)}, and fetching is off (offline). {_hint(home, missing)}")
        say(notice(home, variant, missing, folder))
        _fetch_all(home, variant, [(file, files[file]) for file in missing])
    return {file.path: path for file, path in files.items()}


def notice(home: Home, variant: str, files: Sequence[SetFile], folder: Path) -> str:
    """What is about to be fetched, from where, how big, under which licence."""
    size = sum(file.bytes for file in files)
    homes = "; or ".join(f"{o.repository} at {o.commit[:12]}" for o in home.origins(variant))
    origin = home.origins(variant)[0]
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    text = f"Fetching {home.title} prompts ({variant}): {count}, {size / 1e6:.2f} MB, from {homes} into {folder}."
    text += f" Licence: {origin.license}."
    if origin.terms == "non-commercial":
        text += " NON-COMMERCIAL use only."
    elif origin.terms == "unlicensed":
        text += " UNLICENSED: its authors have granted no rights; check that your use is allowed."
    return text


def _fetch_all(home: Home, variant: str, wanted: Sequence[tuple[SetFile, Path]]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = [problem for problem in pool.map(lambda pair: _fetch_one(*pair), wanted) if problem]
    if problems:
        files = [file for file, _ in wanted]
        raise ValueError(f"{_not_here(home, variant)} and could not be fetched: {problems[0]}. {_hint(home, files)}")


def _fetch_one(file: SetFile, path: Path) -> str | None:
    """Fetch one file; what went wrong at each of its homes, or None when it is there."""
    reasons = []
    for url in file.urls:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                content = answer.read(file.bytes + 1)  # one more tells a longer file
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
            reasons.append(f"{url}: {code}{reason}")
            continue
        if hashlib.sha256(content).hexdigest() != file.sha256:
            reasons.append(f"{url}: not the pinned file (its sha256 differs)")
            continue
        _write(path, content)
        return None
    return "; ".join(reasons)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _whole(path: Path, file: SetFile) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    except OSError:
        return False


def _not_here(home: Home, variant: str) -> str:
    return f"the {home.title} prompts ({variant}) are not in the cache"


def _hint(home: Home, files: Sequence[SetFile]) -> str:
    return (
        f"Get {'it' if len(files) == 1 else 'them'} where there is a network (such as {files[0].urls[0]}) and give "
        "the file, or a folder laid out like the official one, with --prompts PATH"
    )
