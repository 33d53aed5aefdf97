"""Where each benchmark's files officially live; the table itself is ``registry.json``."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Terms = Literal["free", "non-commercial", "unlicensed"]
_TABLE = Path(__file__).with_name("registry.json")


@dataclass(frozen=True)
class Origin:
    """A repository at a pinned commit; ``url`` plus a path in it is where a file can be fetched."""

    repository: str
    commit: str
    license: str
    terms: Terms
    url: str


@dataclass(frozen=True)
class SetFile:
    """One official file: its place in our layout, what it must be, and the paths in the origins that have it."""

    path: str
    sha256: str
    bytes: int
    remote: tuple[tuple[Origin, str], ...]

    @property
    def urls(self) -> list[str]:
        """Where to fetch it, the official home first, then mirrors."""
        return [origin.url + path for origin, path in self.remote]


@dataclass(frozen=True)
class Home:
    """A benchmark's files by variant (the usual one first)."""

    name: str
    title: str
    variants: dict[str, tuple[SetFile, ...]]

    @property
    def default(self) -> str:
        return next(iter(self.variants))

    def origins(self, variant: str) -> list[Origin]:
        """The homes of a variant, without repetition."""
        return list(dict.fromkeys(origin for file in self.variants[variant] for origin, _ in file.remote))


@cache
def homes() -> dict[str, Home]:
    """All benchmarks by name."""
    return {name: _home(name, entry) for name, entry in json.loads(_TABLE.read_text(encoding="utf-8")).items()}


def _home(name: str, entry: dict[str, Any]) -> Home:
    origins = {key: Origin(**value) for key, value in entry["origins"].items()}
    files = {
        path: SetFile(
            path, one["sha256"], one["bytes"], tuple((origins[key], place) for key, place in one["remote"].items())
        )
        for path, one in entry["files"].items()
    }
    variants = {
        variant: tuple(file for path, file in files.items() if path.startswith(tuple(starts)))
        for variant, starts in entry["variants"].items()
    }
    return Home(name, entry["title"], variants)


HOMES = homes()
