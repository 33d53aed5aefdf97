"""What tests read of a run's folder, and a reward."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from irg.learning.rl.prompts import Prompt
from irg.results.trajectory import Trajectory


def log(out: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, Tensor]:
    """All tensors of an exported model, or of the only shard of a checkpoint."""
    (file,) = [p for p in path.glob("*.safetensors") if p.name != "ae.safetensors"]
    return load_file(file)


def identical(a: Path, b: Path) -> bool:
    """Whether two models or checkpoints have the same bits."""
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def dark(prompt: Prompt, trajectory: Trajectory) -> float:
    """A reward: how dark the last image is, from 0 to 1."""
    assert trajectory.image is not None and trajectory.turns[-1].image is trajectory.image
    return 1 - float(np.asarray(trajectory.image).mean()) / 255
