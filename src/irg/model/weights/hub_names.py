"""How a hub model may be called: ``owner/name``, ``owner/name@REVISION``, or its page's address."""

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w][\w./+-]*", re.ASCII)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_FORM = "https://huggingface.co/owner/name or .../owner/name/tree/REVISION"


@dataclass(frozen=True)
class HubName:
    """A repository, one of its revisions (branch, tag or commit; None: the main one), and a folder in it."""

    repo: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        """``owner/name@REVISION/FOLDER``."""
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f"/{self.folder}" if self.folder else "")


def is_repo_id(name: str) -> bool:
    """Whether a model's name reads like a hub id: ``owner/name``."""
    return _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def parse_hub_name(name: str) -> HubName | None:
    """What a name means on the hub; None if it is no name of a hub model.

    Raises:
        ValueError: it is an address, but not of a model on the hub; or what follows ``@`` is no revision.
    """
    if "://" in name or name.split("/")[0] in _HOSTS:
        return _of_address(name)
    repo, at, revision = name.partition("@")
    if not is_repo_id(repo):
        return None
    if at and not _is_revision(revision):
        raise ValueError(f"{name!r}: {revision!r} is no revision: give owner/name@BRANCH, a tag or a commit")
    return HubName(repo, revision or None)


def _of_address(name: str) -> HubName:
    address = urlsplit(name if "://" in name else f"https://{name}")
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    words = [unquote(word) for word in address.path.split("/") if word]
    if address.netloc not in (*_HOSTS, mirror) or address.scheme not in ("https", "http"):
        raise ValueError(f"{name!r} is not an address of the model hub: give {_FORM}")
    repo, kind, rest = "/".join(words[:2]), "".join(words[2:3]), words[3:]
    if not is_repo_id(repo) or words[0] in ("datasets", "spaces", "collections"):
        raise ValueError(f"{name!r} is not the address of a model: give {_FORM}")
    if kind not in ("", "tree", "blob", "resolve", "raw") or (kind and not rest) or ".." in rest:
        raise ValueError(f"{name!r} is not the address of a model: give {_FORM}")
    revision, folder = (rest[0], rest[1:]) if kind else (None, [])
    if kind and kind != "tree":  # of a file: its folder
        folder = folder[:-1]
    if revision is not None and not _is_revision(revision):
        raise ValueError(f"{name!r}: {revision!r} is no revision")
    return HubName(repo, revision, "/".join(folder))


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text
