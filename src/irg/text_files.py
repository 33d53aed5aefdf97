"""Text that a user or another program has written: any of the usual encodings, and JSON that can be trusted to be text.

UTF-8, with or without a byte-order mark; UTF-16 and UTF-32 with one. Line ends become line feeds.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile("\r\n?")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def decoded(content: bytes) -> str:
    """The text of a file's bytes.

    Raises:
        ValueError: they are no text in a known encoding; the message says where.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise ValueError(f"not {name} text ({error.reason} at byte {error.start}, line {line})") from None
    return _LINE_END.sub("\n", text)


def read_text(path: str | Path, most_bytes: int | None = None) -> str:
    """The text of a file.

    Raises:
        ValueError: it can't be read, is larger than ``most_bytes`` or no text. The message does not name the path.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(-1 if most_bytes is None else most_bytes + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if most_bytes is not None and len(content) > most_bytes:
        raise ValueError(f"larger than {most_bytes:,} bytes")
    return decoded(content)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank. Only line feeds end one: texts may hold U+2028."""
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text of others.

    Raises:
        ValueError: it is not valid, nested too deeply, or holds half of a surrogate pair, which is no text and can't
            be written again.
    """
    try:
        value = json.loads(decoded(text) if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _ESCAPED_SURROGATE.search(text if isinstance(text, str) else text.decode("utf-8", "replace")):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, such as an emoji that was cut in two") from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
    return value
