"""Guidance branches on several processes: each predicts the velocities of its share of images and branches.

Every process has the whole model and runs the same requests, so caches, texts and noise are alike in all of them. Only
the forwards of a flow step are shared out; their velocities, a few hundred kilobytes, are exchanged after each.

Legend: G latent tokens of all images and branches; D values per token.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from irg.engine.cache import Context
from irg.engine.runner import Branches, PredictsVelocity, Runner
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.unified import UnifiedModel
from irg.model.placement.processes import Processes


class GuidanceParallelRunner(Runner):
    """A runner whose branches are spread over processes."""

    def __init__(self, model: UnifiedModel, autoencoder: Autoencoder, processes: Processes) -> None:
        super().__init__(model, autoencoder, processes=processes)

    def branches(
        self, blocks: Sequence[tuple[Context, tuple[int, int]]], times: Sequence[float] = ()
    ) -> PredictsVelocity:
        """Plan velocity predictions of which this process makes its share."""
        assert self.processes is not None
        return SharedBranches(self, blocks, times, self.processes)


def runner_of(model: UnifiedModel, autoencoder: Autoencoder, processes: Processes | None = None) -> Runner:
    """The runner for one process, or for this one of several."""
    if processes is not None and processes.kind == "guidance":
        return GuidanceParallelRunner(model, autoencoder, processes)
    return Runner(model, autoencoder, processes=processes)


class SharedBranches:
    """Like :class:`Branches`, with block i predicted by process i modulo their number."""

    def __init__(
        self,
        runner: Runner,
        blocks: Sequence[tuple[Context, tuple[int, int]]],
        times: Sequence[float],
        processes: Processes,
    ) -> None:
        lengths = [(context.length, context.position, grid) for context, grid in blocks]
        processes.require_same(lengths, "contexts and sizes of the images")
        with torch.inference_mode():
            runner.cache.reserve([(context, 0) for context, _ in blocks])  # of all: the caches stay alike
        mine = range(processes.rank, len(blocks), processes.world)
        sizes = [rows * columns for _, (rows, columns) in blocks]
        ends = list(accumulate(sizes))
        self.tokens = sum(sizes)
        places = [torch.arange(ends[i] - sizes[i], ends[i]) for i in mine]
        self.mine_G = torch.cat(places).to(runner.model.device) if places else None
        self.branches = Branches(runner, [blocks[i] for i in mine], times) if places else None

    @torch.inference_mode()
    def velocity(self, noisy_GD: Tensor, times_G: Tensor) -> Tensor:
        """Velocities of all latent tokens, float32 [G, D], in every process; see :meth:`Branches.velocity`."""
        v_GD = torch.zeros(self.tokens, noisy_GD.shape[1], device=noisy_GD.device)
        if self.branches is not None:
            assert self.mine_G is not None
            own_times_G = times_G if len(times_G) == 1 else times_G[self.mine_G]
            v_GD[self.mine_G] = self.branches.velocity(noisy_GD[self.mine_G], own_times_G)
        dist.all_reduce(v_GD)  # each row is zero in all processes but one, so the sum is exact
        return v_GD
