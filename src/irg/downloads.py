"""Small pinned files of other people's repositories: the benchmarks' prompts, the texts that models were trained with.

Nothing is downloaded unless a user's request needs it, and then what, from where, how big and under which license is
said first. The caller says what the right content is and where it is kept; a content is taken whole or not at all.
"""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Say = Callable[[str], object]
Terms = Literal["free", "non-commercial", "unlicensed"]
T = TypeVar("T")
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Origin:
    """A repository at a pinned commit; ``url`` plus a path in it is the address of a file."""

    repository: str
    commit: str
    license: str
    terms: Terms
    url: str

    def __str__(self) -> str:
        return f"{self.repository} at {self.commit[:12]}"

    @property
    def license_notice(self) -> str:
        """A sentence with the license, and a warning where it does not allow any use."""
        notice = f"License: {self.license}."
        if self.terms == "non-commercial":
            notice += " NON-COMMERCIAL use only."
        elif self.terms == "unlicensed":
            notice += " UNLICENSED: its authors have granted no rights; check that your use is allowed."
        return notice


def github(repository: str, commit: str, license: str, terms: Terms = "free") -> Origin:
    """A GitHub repository (``owner/name``) at a full commit id."""
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/"
    return Origin(f"github.com/{repository}", commit, license, terms, url)


def default_cache() -> Path:
    """$IRG_CACHE, else ~/.cache/irg."""
    return Path(os.environ.get("IRG_CACHE") or Path.home() / ".cache" / "irg")


def is_offline(offline: bool = False) -> bool:
    """Whether downloading is off: the caller's option, or ``IRG_OFFLINE`` set in the environment."""
    return offline or bool(os.environ.get("IRG_OFFLINE"))


def download(urls: Iterable[str], take: Callable[[bytes], T]) -> T:
    """What ``take`` makes of the content at the first address whose content it accepts.

    Args:
        urls: addresses of the same file, the official one first.
        take: checks and keeps the content; refuses it with a ValueError (or OSError).

    Raises:
        ValueError: no address has it; the message has each address and what went wrong there.
    """
    import pooch

    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_S)
    reasons = []
    for url in urls:
        content = io.BytesIO()
        try:
            downloader(url, content, None)
            return take(content.getvalue())
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            reasons.append(f"{url}: {error}")
    raise ValueError("; ".join(reasons))
