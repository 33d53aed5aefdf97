"""Runs a script in several processes, with torchrun's variables. They are forked from a process that has imported
torch already (multiprocessing's fork server), so each starts in a moment instead of seconds."""

import multiprocessing
import os
import runpy
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["irg.learning.trainer", "torch._dynamo"])


@dataclass
class Ended:
    """A process that has ended: its exit code (minus the signal's number, if one killed it) and what it printed."""

    code: int | None
    out: str
    error: str


def torchrun(script: Path, words: list[str], folder: Path, world: int) -> list[Ended]:
    """Run ``script`` with these words in ``world`` processes that work in ``folder``; None as a code: after 300 s."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(world):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = _FORKS.Process(target=_run, args=(str(script), words, str(folder), dict(os.environ) | own))
        process.start()
        started.append(process)
    try:
        for process in started:
            process.join(timeout=300)
        texts = [[(folder / f"rank-{rank}.{name}").read_text() for name in ("out", "error")] for rank in range(world)]
        return [Ended(process.exitcode, *both) for process, both in zip(started, texts, strict=True)]
    finally:
        for process in started:
            process.kill()


def _run(script: str, words: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "error")):
        os.dup2(os.open(f"rank-{environment['RANK']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")
