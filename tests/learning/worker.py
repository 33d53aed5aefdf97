"""One of several training processes, for tests/learning/test_parallel.py: ``python worker.py JOBS.json``.

A job is ``{"recipe": ..., "die": step or null, "dump": path or null, "force": bool}``; they run one after the other.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from irg.learning import parallel
from irg.learning.recipe import TrainRecipe
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


def run(job: dict[str, Any]) -> None:
    """One job."""
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
