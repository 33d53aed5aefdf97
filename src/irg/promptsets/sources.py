"""Where each benchmark's prompt files are published; the table itself is ``sources.json``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irg.downloads import Origin

_TABLE = Path(__file__).with_name("sources.json")


@dataclass(frozen=True)
class PinnedFile:
    """One official file: its path in the cache, hash and size, and its path in each origin that has it."""

    path: str
    sha256: str
    bytes: int
    remote: tuple[tuple[Origin, str], ...]

    @property
    def urls(self) -> list[str]:
        """Where to download it, the official repository first, then mirrors."""
        return [origin.url + path for origin, path in self.remote]


@dataclass(frozen=True)
class PromptSource:
    """A benchmark's prompt files by variant (the default first)."""

    name: str
    title: str
    variants: dict[str, tuple[PinnedFile, ...]]

    @property
    def default(self) -> str:
        return next(iter(self.variants))

    def origins(self, variant: str) -> list[Origin]:
        """The repositories of a variant, without repetition."""
        return list(dict.fromkeys(origin for file in self.variants[variant] for origin, _ in file.remote))


def _source(name: str, entry: dict[str, Any]) -> PromptSource:
    origins = {key: Origin(**value) for key, value in entry["origins"].items()}
    files = {
        path: PinnedFile(
            path, one["sha256"], one["bytes"], tuple((origins[key], place) for key, place in one["remote"].items())
        )
        for path, one in entry["files"].items()
    }
    variants = {
        variant: tuple(file for path, file in files.items() if path.startswith(tuple(starts)))
        for variant, starts in entry["variants"].items()
    }
    return PromptSource(name, entry["title"], variants)


SOURCES: dict[str, PromptSource] = {
    name: _source(name, entry) for name, entry in json.loads(_TABLE.read_text(encoding="utf-8")).items()
}
"""All benchmarks by name."""
