"""The texts that a model was trained with, read from their authors' repository when a user's request needs them.

No copy of them is in this package: a text is known by its place at a pinned commit and its sha256. Most are string
constants of Python files. Such a file is parsed, never run and never kept; the constant with the sha256 is.
"""

import ast
import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from irg.downloads import Origin, Say, default_cache, download, is_offline
from irg.files import sweep, write_text
from irg.text_files import read_text

_MAX_OWN_BYTES = 1 << 16


@dataclass(frozen=True)
class OfficialText:
    """A text by its place in the authors' repository.

    Attributes:
        origin: the repository, its commit and license.
        path: the file in it: a Python file that has the text as a string, or a text file that is the text.
        sha256: of the text (UTF-8) as the authors' running program holds it. A formatted string (f-string) is hashed
            with the expressions of its placeholders in braces, as the source spells them; a text file may be used
            without its final newline.
        length: characters of the text.
        file_bytes: size of the file, told before it is downloaded.
    """

    origin: Origin
    path: str
    sha256: str
    length: int
    file_bytes: int

    @property
    def url(self) -> str:
        """The address of the file."""
        return self.origin.url + self.path

    def read(self, say: Say, offline: bool = False, cache_dir: Path | None = None) -> str:
        """The text; see :func:`read_texts`."""
        return read_texts([self], say, offline, cache_dir)[0]


def read_texts(
    texts: Sequence[OfficialText], say: Say, offline: bool = False, cache_dir: Path | None = None
) -> list[str]:
    """The texts, from the cache, or downloaded into it; each file that is needed is downloaded once.

    Args:
        texts: the wanted ones; the result has their order.
        say: gets one line per file before it is downloaded: what, from where, how big, the license, the cache.
        offline: never download; also ``IRG_OFFLINE=1``.
        cache_dir: default ``$IRG_CACHE``, else ``~/.cache/irg``; the texts are in its folder ``texts``, by sha256.

    Raises:
        ValueError: a text is not in the cache and downloading is off; or its file can't be downloaded or does not have
            it. The message names the file and what to do.
    """
    folder = _texts_folder(cache_dir)
    found: dict[str, str] = {}
    files: dict[str, list[OfficialText]] = {}
    for text in {text.sha256: text for text in texts}.values():
        cached = _cached(folder, text)
        if cached is None:
            files.setdefault(text.url, []).append(text)
        else:
            found[text.sha256] = cached
    for missing in files.values():
        found |= _fetch(missing, folder, say, offline)
    return [found[text.sha256] for text in texts]


def is_cached(text: OfficialText, cache_dir: Path | None = None) -> bool:
    """Whether the cache has a text."""
    return _cached(_texts_folder(cache_dir), text) is not None


def read_own_text(path: Path) -> str:
    """A text of the user's own (``--system-prompt-file``), without one final newline, which editors add.

    Raises:
        ValueError: the file can't be read, is not UTF-8, is too long for a system prompt, or has no text.
    """
    try:
        text = read_text(path, _MAX_OWN_BYTES).removesuffix("\n")
    except ValueError as error:
        raise ValueError(f"system prompt {path}: can't be read: {error}") from None
    if not text.strip():
        raise ValueError(f"system prompt {path}: has no text")
    return text


def _texts_folder(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache()) / "texts"


def _cached(folder: Path, text: OfficialText) -> str | None:
    """The text, if the cache has it undamaged."""
    try:
        content = (folder / f"{text.sha256}.txt").read_bytes()
    except OSError:
        return None
    return content.decode("utf-8") if hashlib.sha256(content).hexdigest() == text.sha256 else None


def _fetch(texts: Sequence[OfficialText], folder: Path, say: Say, offline: bool) -> dict[str, str]:
    """Texts of one file by sha256, downloaded into the cache.

    Raises:
        ValueError: see :func:`read_texts`.
    """
    first = texts[0]
    what = f"{len(texts)} text{'s' if len(texts) > 1 else ''} ({sum(text.length for text in texts)} characters)"
    place = f"{what} in {first.path} of {first.origin}"
    hint = (
        f"Run it once where there is a network and copy {folder} from there, or give a system prompt of your own with "
        "--system-prompt-file"
    )
    if is_offline(offline):
        raise ValueError(f"not in the cache, and downloading is off (offline): {place}. {hint}")
    say(f"Downloading {place}: {first.file_bytes / 1e3:.1f} kB, into {folder}. {first.origin.license_notice}")
    sweep(folder)

    def keep(content: bytes) -> dict[str, str]:
        found = find_texts(first.path, content, {text.sha256 for text in texts})
        for sha256, text in found.items():
            write_text(folder / f"{sha256}.txt", text)
        return found

    try:
        return download([first.url], keep)
    except ValueError as error:
        raise ValueError(f"could not be downloaded: {place}: {error}. {hint}") from None


def find_texts(path: str, content: bytes, sha256s: Collection[str]) -> dict[str, str]:
    """The strings of a file that have these sha256, by sha256.

    Args:
        path: the file's name: one that ends in ``.py`` is searched for string constants, any other is a text itself.

    Raises:
        ValueError: the file has none of some sha256, or is not readable as what it is.
    """
    found: dict[str, str] = {}
    for text in _python_strings(content) if path.endswith(".py") else _whole_text(content):
        sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if sha256 in sha256s:
            found[sha256] = text
    lost = sorted(set(sha256s) - set(found))
    if lost:
        raise ValueError(f"{path} has no text of sha256 {lost[0][:12]}...: it is not the pinned file")
    return found


def _whole_text(content: bytes) -> Iterator[str]:
    """A text file, and the same without its final newline."""
    text = content.decode("utf-8")
    yield text
    yield text.removesuffix("\n")


def _python_strings(content: bytes) -> Iterator[str]:
    """Every string constant of a Python file (adjacent ones joined), and every formatted string as a template.

    A template has each placeholder's expression in braces, without conversion and format.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes in other people's strings
            tree = ast.parse(content)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"not readable as Python: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_template(piece) for piece in node.values)


def _template(piece: ast.expr) -> str:
    """A literal piece of a formatted string as it is, a placeholder as ``{expression}``."""
    if isinstance(piece, ast.FormattedValue):
        return f"{{{ast.unparse(piece.value)}}}"
    return str(piece.value) if isinstance(piece, ast.Constant) else ""
