"""Training checkpoints on disk: one safetensors file a step, written aside and renamed."""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def folder_of(out: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return out / "checkpoints"


def checkpoints(out: Path) -> list[Path]:
    """All finished checkpoints, oldest first."""
    return sorted(folder_of(out).glob("step-*.safetensors"))


def latest(out: Path) -> Path | None:
    """The newest finished checkpoint."""
    return found[-1] if (found := checkpoints(out)) else None


def save_state(out: Path, step: int, state: dict[str, Tensor]) -> Path:
    """Write a state; a crash or a full disk leaves earlier checkpoints as they were.

    Raises:
        ValueError: the disk refused the file.
    """
    path = folder_of(out) / f"step-{step:08d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"cannot write checkpoint {path}: {error}; earlier checkpoints are untouched") from None
    return path


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); delete it to resume from the one before") from None


def prune(out: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in checkpoints(out)[:-keep]:
        path.unlink(missing_ok=True)
