"""A benchmark's prompts as plain data."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchPrompt:
    """One prompt.

    Attributes:
        id: unique in its set, and what its images are named after (``00000``, ``anime/000``, ``text/short/3``).
        text: the prompt.
        tag: the benchmark's category; empty where it has none for this prompt.
        metadata: everything else that the official files hold of it, such as objects, questions, explanations.
    """

    id: str
    text: str
    tag: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSet:
    """A benchmark's prompts and where they come from.

    Attributes:
        name: the benchmark, one of :data:`irg.promptsets.NAMES`.
        variant: which of its prompt sets (``original``, ``testmini``, ...).
        sha256: of the files that were read (see :func:`combined_sha256`).
        license: as its repository states it.
        terms: ``free``, ``non-commercial`` or ``unlicensed``: what the license means for users.
        source: repository and pinned commit, or the path that was given.
        official: the files are byte for byte the pinned ones.
    """

    name: str
    variant: str
    prompts: tuple[BenchPrompt, ...]
    sha256: str
    license: str
    terms: str
    source: str
    official: bool

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def label(self) -> str:
        """How tables name this set: the variant, and a mark when its files are not the official ones."""
        return f"{self.variant} {self.sha256[:8]}{'' if self.official else ', own files'}"

    def by_id(self) -> dict[str, BenchPrompt]:
        return {prompt.id: prompt for prompt in self.prompts}


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """One sha256 for several files (layout path -> sha256): a single file's own, else that of the sorted list."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{value}  {path}\n" for path, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
