"""One model run by several processes, each on a device of its own, as ``torchrun`` starts them.

All processes run the same requests and come to the same results; what they share out is the work of a forward:

* ``tensor``: every matrix product of the decoder's layers, of which each holds its part (:mod:`.tensor_parallel`).
* ``guidance``: the branches of classifier-free guidance, and the images of a batch
  (:mod:`irg.engine.guidance_parallel`). Each process holds the whole model.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist

Parallel = Literal["tensor", "guidance"]


@dataclass(frozen=True)
class Processes:
    """This process among those that run a model together."""

    kind: Parallel
    rank: int
    world: int
    device: torch.device

    def agreed(self, value: Any) -> Any:
        """Process 0's value of a plain object."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def require_same(self, value: Any, what: str) -> None:
        """Raises:
        RuntimeError: the processes have different values, so that their next exchange would mix what does not belong
            together.
        """
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        if any(other != value for other in values):
            raise RuntimeError(f"the processes no longer run the same: {what} differ: {values}")


def join(kind: Parallel, device: object = None) -> Processes:
    """Join the other processes. ``device``: ``cpu`` or ``cuda``; default: CUDA if there is one.

    Raises:
        ValueError: the way to share is unknown, ``torchrun`` did not start this process, or it has no device.
    """
    if kind not in get_args(Parallel):
        raise ValueError(f"parallel must be one of {', '.join(get_args(Parallel))}, got {kind!r}")
    world = int(os.environ.get("WORLD_SIZE", "0"))
    if world < 2:
        raise ValueError(
            f"parallel {kind} needs several processes: torchrun --nproc-per-node 2 -m irg generate ... "
            f"--parallel {kind}"
        )
    on = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else str(device)
    if on not in ("cpu", "cuda"):
        raise ValueError(f"with parallel each process takes a device of its own: give cpu or cuda, not {on!r}")
    own = torch.device("cpu")
    if on == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local} of this machine has no device: PyTorch sees {count} CUDA devices here")
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on == "cuda" else "gloo")
    return Processes(kind, dist.get_rank(), dist.get_world_size(), own)


def leave() -> None:
    """Leave the group of processes, if this one is in any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
