"""Training checkpoints: a folder a step, written by torch.distributed.checkpoint beside the running training.

``step-00000100/`` holds safetensors shards (one a rank, with the places of the pieces in their headers) and
``state.json``. It appears by renaming, when all ranks have written all of it: a folder without the ending ``.part`` is
whole. (The ranks write into one folder, so its temporary name is fixed.) ``state.json`` has a CRC-32 of each shard:
a checkpoint whose bytes have changed is refused. Nothing is pickled.
"""

import json
import logging
import shutil
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from irg import files
from irg.learning.parallel import Ranks
from irg.text_files import parse_json, read_text

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that a run of one process is one
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)  # it logs every tensor

STATE = "state.json"
CHECKSUMS = "checksums"  # in state.json: CRC-32 of each shard, by name
_PART = ".part"
_CHUNK = 1 << 24


def folder_of(out: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return out / "checkpoints"


def checkpoints(out: Path) -> list[Path]:
    """All finished checkpoints, oldest first."""
    return sorted(path.parent for path in folder_of(out).glob(f"step-*/{STATE}") if path.parent.suffix != _PART)


def latest(out: Path) -> Path | None:
    """The newest finished checkpoint."""
    return found[-1] if (found := checkpoints(out)) else None


def prune(out: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in checkpoints(out)[:-keep]:
        (path / STATE).unlink(missing_ok=True)  # first: a half-deleted folder is no checkpoint
        shutil.rmtree(path, ignore_errors=True)


def remove_unfinished(out: Path) -> None:
    """Delete what kills have left of checkpoints that were being written or deleted."""
    whole = set(checkpoints(out))
    for path in folder_of(out).glob("step-*"):
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)


class Writer:
    """Writes one checkpoint at a time, in the background; keeps the newest few."""

    def __init__(self, out: Path, ranks: Ranks, keep: int) -> None:
        self.out, self.ranks, self.keep = out, ranks, keep
        self._pending: Future[Any] | None = None
        self._problem: ValueError | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Copy a state and start writing it. Waits for the one before; its failure is a warning here.

        Args:
            tensors: sharded or whole; they may change as soon as this returns.
            about: plain data for ``state.json``.
        """
        if (problem := self.wait()) is not None and self.ranks.main:
            warnings.warn(f"{problem}; training goes on", stacklevel=2)
        path = folder_of(self.out) / f"step-{step:08d}"
        part = path.with_name(path.name + _PART)
        there, refused = False, ""
        if self.ranks.main:
            there = path.is_dir()  # nothing was done since it was written
            try:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
            except OSError as error:
                refused = str(_not_written(path, error))
        # The main rank decides for all, or the others would wait for one that writes nothing.
        there, refused = self.ranks.gather((there, refused))[0]
        if there or refused:
            if self.ranks.main:
                shutil.rmtree(part, ignore_errors=True)
            self._problem = ValueError(refused) if refused else None
            return
        future: Any = dcp.async_save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True),
            process_group=self.ranks.background,
            no_dist=self.ranks.world == 1,
        )
        self._pending = Future()
        future.add_done_callback(lambda done: self._finish(done, part, path, dict(about)))

    def _finish(self, done: Any, part: Path, path: Path, about: dict[str, Any]) -> None:
        """All ranks have written (or one has failed): give the folder its name, or take it away."""
        assert self._pending is not None
        try:
            done.result()
            if self.ranks.main:
                about[CHECKSUMS] = {shard.name: _crc32(shard) for shard in sorted(part.glob("*.safetensors"))}
                (part / STATE).write_text(json.dumps(about) + "\n", encoding="utf-8")
                files.publish_folder(part, path)
                prune(self.out, self.keep)
        except BaseException as error:  # DCP's own exception is no Exception; it lists what every rank met
            self._problem = _not_written(path, error)
            if self.ranks.main:
                shutil.rmtree(part, ignore_errors=True)
        self._pending.set_result(None)

    def wait(self) -> ValueError | None:
        """Until nothing is being written; returns what went wrong since the last call."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        problem, self._problem = self._problem, None
        return problem


def _not_written(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"cannot write checkpoint {path}: {_in_one_line(error)}; earlier checkpoints are untouched")


def read_about(path: Path) -> dict[str, Any]:
    """A checkpoint's ``state.json``.

    Raises:
        ValueError: it is damaged.
    """
    try:
        about = parse_json(read_text(path / STATE))
        assert isinstance(about, dict)
        return about
    except (OSError, ValueError, AssertionError) as error:
        raise _damaged(path, error) from None


def read_names(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, whole shapes and dtypes of a checkpoint's tensors.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:
        raise _damaged(path, error) from None
    return {name: (entry.size, entry.properties.dtype) for name, entry in found.items()}  # type: ignore[union-attr]


def check(path: Path, about: Mapping[str, Any], ranks: Ranks) -> None:
    """Read a checkpoint's shards, each by one rank, and compare their checksums. Collective.

    Args:
        about: its ``state.json``; those of earlier versions have no checksums.

    Raises:
        ValueError: a shard is missing or its bytes have changed.
    """
    problem: str | None = None
    for number, (name, expected) in enumerate(about.get(CHECKSUMS, {}).items()):
        if number % ranks.world == ranks.rank and problem is None:
            try:
                if _crc32(path / name) != expected:
                    problem = f"{name}: its bytes have changed"
            except OSError as error:
                problem = f"{name}: {error.strerror or error}"
    if found := next((one for one in ranks.gather(problem) if one), None):
        raise _damaged(path, ValueError(found))


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            value = zlib.crc32(piece, value)
    return value


def read_tensors(path: Path, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors (sharded in any way, or whole) from a checkpoint.

    Raises:
        ValueError: it is damaged or lacks a tensor.
    """
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=ranks.world == 1)
    except BaseException as error:  # as above
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"checkpoint {path} is damaged ({_in_one_line(error)}); delete it to resume from the one before")


def _in_one_line(error: BaseException) -> str:
    """An error in one line; of DCP's collection, what the first rank met."""
    failures = getattr(error, "failures", None)
    met = next(iter(failures.values()))[0] if failures else error
    return " ".join(str(met).split())[:300] or type(met).__name__
