"""The training loop that the autoencoder, the ViT and the detectors share.

Everything random in a step is drawn from the seed and the step's number, and the state of a run is one file, so a
resumed run repeats the uninterrupted one exactly.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from irg.files import JsonLines, write_bytes
from irg_mini.perception.optim import MuonAdamW
from irg_mini.perception.schedule import Schedule

STATE, LOG = "state.safetensors", "log.jsonl"
LOG_EVERY = 50
Data = TypeVar("Data")


@dataclass(frozen=True)
class TrainingConfig:
    """What every training of this package can be set to."""

    out: Path
    """Folder for the weights, log.jsonl and the state that a resume needs."""
    steps: int = 2000
    """Length of the schedule; ignored when minutes are given."""
    minutes: float | None = None
    """Wall-clock budget: the schedule's length is fixed after a few timed steps."""
    batch: int = 16
    muon_lr: float = 0.015
    adam_lr: float = 2e-3
    warmup: int = 50
    cooldown: float = 0.5
    """Last share of the schedule in which the rate falls linearly to zero."""
    pool: int = 8000
    """Images that batches are drawn from."""
    held_out: int = 512
    seed: int = 0
    threads: int = 1
    save_every: int = 200
    resume: bool = True

    def __post_init__(self) -> None:
        if self.pool < self.batch or self.batch < 1:
            raise ValueError(f"a pool of {self.pool} images cannot fill a batch of {self.batch}")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown is a share between 0 and 1, not {self.cooldown}")


class Training(ABC, Generic[Data]):
    """One run: network, optimizer, schedule and step counter.

    Args:
        network: all that is trained.
        adam_only: matrices that are no linear maps of features.
    """

    max_grad_norm: ClassVar[float] = 1.0

    def __init__(self, config: TrainingConfig, network: nn.Module, adam_only: Sequence[Tensor] = ()) -> None:
        self.config, self.network = config, network
        self.optimizer = MuonAdamW(network.parameters(), config.muon_lr, config.adam_lr, adam_only=adam_only)
        self.schedule = Schedule(config.steps, config.minutes, config.warmup, config.cooldown)
        self.step = 0

    @abstractmethod
    def losses(self, data: Data, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of a batch drawn from the data; ``total`` is what is minimized."""

    @abstractmethod
    def export(self) -> None:
        """Write the trained weights and their configuration to the output folder."""

    def catch_up(self, data: Data) -> None:
        """Bring freshly made data to where it was after ``self.step`` steps."""

    def validate(self) -> dict[str, Any]:
        """Numbers for the log when weights are saved."""
        return {}

    def train_step(self, data: Data) -> dict[str, float]:
        """One update; returns its losses."""
        rng = np.random.default_rng([self.config.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.network.train()
        losses = self.losses(data, rng, generator)
        factor = self.schedule.factor(self.step)
        self.optimizer.scale_rates(factor)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        numbers = {name: round(float(value.detach()), 6) for name, value in losses.items()}
        return numbers | {"grad_norm": round(float(norm), 6), "rate": factor}

    def run(self, data: Data) -> None:
        """Train to the end of the schedule, from where an earlier run in the output folder was stopped.

        Raises:
            FloatingPointError: a loss is no longer finite.
        """
        torch.set_num_threads(self.config.threads)
        if self.config.resume and self.load():
            self.catch_up(data)
        else:
            (self.config.out / LOG).unlink(missing_ok=True)
        self.schedule.start(self.step)
        while not self.schedule.done(self.step):
            numbers = self.train_step(data)
            if not all(math.isfinite(value) for value in numbers.values()):
                raise FloatingPointError(f"training diverged at step {self.step}: {numbers}")
            if self.step % LOG_EVERY == 0:
                self.log({"steps": self.schedule.steps, "seconds": self.schedule.seconds} | numbers)
            if self.step % self.config.save_every == 0:
                self.save()
                if measured := self.validate():
                    self.log(measured)
        self.save()

    def log(self, record: dict[str, Any]) -> None:
        """A line of log.jsonl."""
        with JsonLines(self.config.out / LOG) as file:
            file.append({"step": self.step} | record)

    def save(self) -> None:
        """Write the weights, and the state that a resume needs (one file, so that its parts belong together)."""
        moments = {
            f"optimizer.{index}.{key}": value.contiguous()
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        weights = {f"network.{name}": value for name, value in weights_of(self.network).items()}
        progress = {"step": str(self.step), "steps": str(self.schedule.steps), "fixed": str(int(self.schedule.fixed))}
        write_bytes(self.config.out / STATE, save(weights | moments, progress))
        self.export()

    def load(self) -> bool:
        """Take up the run saved in the output folder; False when there is none."""
        path = self.config.out / STATE
        if not path.exists():
            return False
        tensors = load_file(path)
        weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        self.network.load_state_dict(weights)
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                optimizer["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(optimizer)
        with safe_open(path, "pt") as file:
            progress = {name: int(value) for name, value in file.metadata().items()}
        self.step = progress["step"]
        if self.config.minutes is not None:  # the length that the first session's speed allowed
            self.schedule.steps, self.schedule.fixed = progress["steps"], bool(progress["fixed"])
        return True


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A module's state as plain contiguous tensors, ready for safetensors."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
