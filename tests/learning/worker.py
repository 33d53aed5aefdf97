"""One of several training processes, for tests/learning/test_parallel.py: ``python worker.py JOBS.json``.

A job is ``{"recipe": ..., "die": step or null, "dump": path or null, "force": bool}``; they run one after the other. A
recipe by reward has the reward ``low``.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from irg import registry
from irg.learning import parallel
from irg.learning.recipe import TrainRecipe
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.run import trainer_of
from irg.learning.rl.trainer import RLTrainer
from irg.learning.trainer import Trainer
from irg.recipes import build


def dump_gradients(trainer: Trainer, path: Path) -> None:
    """Loss and whole gradients of the first step."""
    streams = trainer.ranks.streams(trainer.recipe.parallel.accumulate)
    packs = {stream: trainer.loader.pack(0, stream) for stream in streams}
    metrics = trainer.gradients(packs)
    record = metrics.summed(trainer.ranks, list(packs.values()), 1.0, 1.0, False)
    grads = {
        name: parallel.whole(p.grad).contiguous()
        for name, p in trainer.state.named_weights.items()
        if p.grad is not None
    }
    if trainer.ranks.main:
        save_file(grads, path)
        path.with_suffix(".json").write_text(json.dumps(record))


def die_at(trainer: Trainer, step: int) -> None:
    """Kill -9 as a step begins; what is being written may or may not be whole by then."""
    healthy = trainer.train_step

    def train_step(stop: Any = bool) -> dict[str, float]:
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return healthy(stop)

    trainer.train_step = train_step  # type: ignore[method-assign]


def low(prompt: Any, trajectory: Any) -> float:
    """A reward: share of the last text's bytes below 64, and how dark the last image is."""
    text, image = trajectory.turns[-1].thinking or "", trajectory.image
    dark = 0.0 if image is None else 1 - float(np.asarray(image).mean()) / 255
    return sum(ord(letter) < 64 for letter in text) / max(1, len(text)) + dark


def dump_reward_gradients(trainer: RLTrainer, path: Path) -> None:
    """Whole gradients of the first update by reward, and the step's record; no weight is changed."""

    def update(factor: float) -> tuple[float, bool]:
        named = [(name, p) for name, p in trainer.state.named_weights.items() if p.grad is not None]
        grads = {name: parallel.whole(p.grad).contiguous() for name, p in named if p.grad is not None}
        if trainer.ranks.main:
            save_file(grads, path)
        return 0.0, False

    trainer.update = update  # type: ignore[method-assign]
    record = trainer.train_step()
    if trainer.ranks.main:
        path.with_suffix(".json").write_text(json.dumps(record))


def run_by_reward(job: dict[str, Any]) -> None:
    """One job of kind rl."""
    usual = registry.load
    registry.load = lambda group, name: low if name == "low" else usual(group, name)  # type: ignore[assignment]
    recipe = build(RLRecipe, job["recipe"])
    trainer = trainer_of(recipe)(recipe, quiet=True, force=job.get("force", False))
    if job.get("dump"):
        dump_reward_gradients(trainer, Path(job["dump"]))
    else:
        trainer.fit()


def run(job: dict[str, Any]) -> None:
    """One job."""
    if job["recipe"]["kind"] == "rl":
        run_by_reward(job)
        return
    trainer = Trainer(build(TrainRecipe, job["recipe"]), quiet=True, force=job.get("force", False))
    if job.get("dump"):
        dump_gradients(trainer, Path(job["dump"]))
        return
    if job.get("die") is not None:
        die_at(trainer, job["die"])
    trainer.fit()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(one)
    parallel.leave()
