"""API keys: kept as SHA-256 digests, compared in constant time, never logged.

A digest without a salt is enough because keys are long random words: there is nothing to guess.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

PREFIX = "irg-"
_SHORTEST = 16
_LINE = re.compile(r"([\w.@-]{1,64})\s*:\s*sha256:([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """A random key and the line of a key file that lets it in.

    Raises:
        ValueError: the name has characters that a key file has no place for.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name}:sha256:{_digest(key)}"
    if not _LINE.fullmatch(line):
        raise ValueError(f"a key's name has up to 64 letters, digits and _ . @ -, got {name!r}")
    return key, line


class ApiKeys:
    """The keys that let requests in; none: everybody."""

    def __init__(self, digests: dict[str, str] | None = None) -> None:
        """Args:
        digests: name -> SHA-256 of the key, in hexadecimal digits.
        """
        self._digests = dict(digests or {})

    def __bool__(self) -> bool:
        return bool(self._digests)

    def add_plain(self, keys: Iterable[str]) -> None:
        """Let keys in that are given as they are; only their digests are kept.

        Raises:
            ValueError: one is short enough to be guessed.
        """
        for number, key in enumerate(keys, start=1):
            if len(key) < _SHORTEST:
                raise ValueError(f"API key {number} has {len(key)} characters; at least {_SHORTEST} are needed")
            self._digests[f"key-{number}"] = _digest(key)

    def add_file(self, path: str) -> None:
        """Let the keys of a file in: lines ``NAME:sha256:DIGEST``; empty lines and those with # do not count.

        Raises:
            ValueError: it can't be read, a line has another form, or there is no key.
        """
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ValueError(f"{path}: can't read the API keys: {reason}") from None
        found: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:  # the line is not shown: it may be a key
                raise ValueError(f"{path}, line {number}: must be NAME:sha256:DIGEST, as irg serve --new-key prints it")
            found[match[1]] = match[2]
        if not found:
            raise ValueError(f"{path}: holds no API key")
        self._digests |= found

    def name_of(self, authorization: str | None) -> str | None:
        """The name of the key in an ``Authorization`` header; None: it is not one of ours. Every key is compared."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        matches = [name for name, known in self._digests.items() if hmac.compare_digest(known, digest)]
        return matches[0] if matches and scheme.lower() == "bearer" else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
