"""Processes, devices and sharding: everything about parallelism, applied to the model from outside.

A run is one process, or several started by ``torchrun``. A step takes ``world x accumulate`` packs, one of
each **data stream**; a stream's packs are the same whoever runs it, so the sum over streams does not depend on how
they are spread.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from irg.learning.recipe import Parallel
from irg.model.network.flex_attention import KEEPS_COMPILED
from irg.model.network.unified import UnifiedModel


@dataclass
class Ranks:
    """This process among all of the run. ``mesh`` is None for a run of one process that shards nothing."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    background: Any = None  # a process group of its own for what runs beside the training step

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def streams(self, accumulate: int) -> range:
        """The data streams this process runs."""
        return range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A plain value of every rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def spread(self, items: Sequence[Any], more: Sequence[Any], make: Callable[[Any, Any], Sequence[Any]]) -> list[Any]:
        """``make(items, more)``, one result for each item, of which every rank makes a part; on every rank."""
        own = range(len(items))[self.rank :: self.world]
        made = dict(zip(own, make([items[i] for i in own], [more[i] for i in own]), strict=True))
        found = {number: value for part in self.gather(made) for number, value in part.items()}
        return [found[number] for number in range(len(items))]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


def join(device: str, parallel: Parallel) -> Ranks:
    """This process's place. Starts torch.distributed if ``torchrun`` started us, or if bfloat16 on a GPU
    needs FSDP's mixed precision (on a CPU one process computes with a :class:`.low_precision.LowPrecisionCopy`).

    Raises:
        ValueError: the device is not there, or the ranks do not divide into the replicas.
    """
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device} was asked for, but torch sees no CUDA device; set device to cpu")
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not launched and (parallel.precision == "float32" or kind == "cpu"):
        if parallel.replicas > 1:
            raise ValueError(f"parallel.replicas is {parallel.replicas}, but one process runs; start it with torchrun")
        return Ranks(device=torch.device(device))
    if kind == "cuda":
        local = int(os.environ.get("LOCAL_RANK", torch.device(device).index or 0))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this node has no GPU: torch sees {torch.cuda.device_count()}; start as many "
                "processes as there are GPUs (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(local)
        chosen = torch.device("cuda", local)
    else:
        chosen = torch.device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        alone: dict[str, Any] = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(backend, **alone)
    world = dist.get_world_size()
    if world % parallel.replicas:
        raise ValueError(f"parallel.replicas {parallel.replicas} does not divide the {world} ranks")
    shape = (world,) if parallel.replicas == 1 else (parallel.replicas, world // parallel.replicas)
    names = ("shard",) if parallel.replicas == 1 else ("replicate", "shard")
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    background = dist.new_group(backend="gloo") if world > 1 else None
    return Ranks(dist.get_rank(), world, chosen, mesh, background)


def leave() -> None:
    """End torch.distributed, if it runs."""
    if dist.is_initialized():
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------ on the model


def blocks(model: UnifiedModel) -> list[nn.Module]:
    """The repeated layers: what is recomputed, compiled and sharded one by one."""
    return [*model.language_model.model.layers, *model.vit_model.vision_model.encoder.layers]


def recompute(model: UnifiedModel, how: str) -> None:
    """Activation checkpointing of every layer: ``full`` keeps only a layer's input, ``selective`` also the results of
    attention and of every second matrix product."""
    if how == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if how == "selective":
        options["context_fn"] = _selective
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, **options)


def _selective() -> Any:
    """Contexts that keep attention's results and every second matrix product (the costly and the small ones)."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
    }
    if KEEPS_COMPILED:  # as flex attention is, unless the whole layer is
        attention.add(torch.ops.higher_order.inductor_compiled_code)
    products = {aten.mm.default, aten.addmm.default}
    seen = {True: 0, False: 0}

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operation in attention:
            return CheckpointPolicy.MUST_SAVE
        if operation in products:
            seen[context.is_recompute] += 1
            if seen[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(cast(Any, policy))


def shard(model: UnifiedModel, ranks: Ranks, precision: str, ignored: set[nn.Parameter] | None = None) -> None:
    """FSDP2: every layer a group of its own, everything else one more; weights move to the device group by group, and
    what each rank keeps of them becomes float32 there: a step of the paper's size is lost in a bfloat16 weight.

    Args:
        ignored: parameters that stay whole on every rank (the frozen weights under adapters); they are moved to the
            device as they are.
    """
    assert ranks.mesh is not None
    low = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    groups = [] if ignored else blocks(model)  # adapters are small: one group, one gather
    for parameter in ignored or ():
        if parameter.device != ranks.device:
            parameter.data = parameter.data.to(ranks.device)
    for module in (*groups, model):
        fully_shard(module, mesh=ranks.mesh, mp_policy=policy, ignored_params=ignored)
        if not ignored:  # adapters are float32 as they come, and what is under them stays as it is held
            module.to(torch.float32)


def reshard(model: nn.Module) -> None:
    """Put gathered weights away, so that what is read next are the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's pieces of tensors, sharded or not."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in (x.detach() for x in tensors)]


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on every rank (a collective call if it is sharded)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clipped(weights: list[nn.Parameter], limit: float) -> Callable[[], float]:
    """Clip gradients to a global norm; calling the result gives the norm before clipping (and waits for it)."""
    norm = nn.utils.clip_grad_norm_(weights, limit)
    return lambda: float(whole(norm))
