"""Small changes of valid files, so that a reader gets past the first check: as a hypothesis strategy."""

import re
from collections.abc import Sequence

from hypothesis import strategies as st

Edit = tuple[int, int, int]
"""(what is done, where from 0 to 65535, with what from 0 to 255)."""

TOKENS: tuple[bytes, ...] = (
    *(b"null", b"true", b"false", b"-1", b"0", b"0.5", b"1e999", b"NaN", b"-Infinity", b"9" * 30, b"4294967296"),
    *(b'""', b"[]", b"{}", b'{"a": {}}', b"[" * 3000, b'{"a":' * 3000, b'"\\ud83d"', b'"\\u0000"'),
    *(b'"' + b"a" * 999 + b'"', "\u0660".encode()),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"\r", b"\n", b"\t", "\u2028".encode()),
    *(b'"../../etc/passwd"', b'"/dev/zero"', b'"con"', b"<think>", b"</think>", b"```json\n", b"yes", b"2.0", b"10/10"),
    *(b"&a [*a, *a]", b"!!python/object/apply:os.system [ls]", b"? [a]", b"- - - -", b"%", b"$(ls)", b"--help", b"="),
    *(b"0x10", b"1_000", b"9" * 5000, b"1e-400", b'"F64"', b'"I8"', b"[0, 0]", b"[9223372036854775807, 4]"),
)  # fmt: skip
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|\b(?:true|false|null)\b')

edits = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 65535), st.integers(0, 255)), max_size=6)


def changed(content: bytes, changes: Sequence[Edit]) -> bytes:
    """The content after some changes."""
    data = bytearray(content)
    for kind, where, value in changes:
        at = where * len(data) // 65536
        length = 1 + value * len(data) // 1024
        if kind == 0 and data:
            data[at] ^= 1 << value % 8
        elif kind == 1 and data:
            data[at] = value
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at:at] = TOKENS[value % len(TOKENS)]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at : at + 4] = (value << 24 | value).to_bytes(4, "little")
        elif (found := _VALUE.search(data, at)) is not None:  # twice as likely: it reaches deepest
            data[found.start() : found.end()] = TOKENS[value % len(TOKENS)]
    return bytes(data)
