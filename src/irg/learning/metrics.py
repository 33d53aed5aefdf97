"""What a step logs: losses in all and by mode, counts, rates, memory; summed over ranks in one go."""

import resource
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from irg.learning.data.packing import Pack
from irg.learning.modes import MODES
from irg.learning.objective import Losses
from irg.learning.parallel import Ranks

_KINDS = ("ce", "ce_n", "mse", "mse_n")


class Metrics:
    """Sums over a step's packs, kept on the device until the step is over."""

    def __init__(self, device: torch.device) -> None:
        # one row a kind; a column a mode, and one more for tokens of no mode
        self.sums_KM = torch.zeros(len(_KINDS), len(MODES) + 1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, pack: Pack, scored: Losses) -> None:
        """Add a pack's losses."""
        for first, values, modes in (
            (0, scored.ce_L, pack.mode_of_loss_L),
            (2, scored.mse_MD.mean(dim=-1), pack.mode_of_target_M),
        ):
            if modes is None or not len(modes):
                continue
            index = modes % (len(MODES) + 1)  # -1: no mode
            self.sums_KM[first].index_add_(0, index, values.detach().to(torch.float64))
            self.sums_KM[first + 1].index_add_(0, index, torch.ones_like(index, dtype=torch.float64))

    def summed(
        self, ranks: Ranks, packs: Sequence[Pack], ce_weight: float, mse_weight: float, stop: bool
    ) -> dict[str, float]:
        """Means over all ranks' packs, by their names in the log; and whether any rank wants to ``stop``."""
        tokens = sum(pack.tokens for pack in packs)
        rejected = sum(pack.state["rejected"] for pack in packs)
        samples = [sum(pack.modes.get(mode, 0) for pack in packs) for mode in MODES]
        own = torch.tensor([tokens, rejected, stop, *samples], dtype=torch.float64, device=self.sums_KM.device)
        all_: Tensor = ranks.sum(torch.cat([own, self.sums_KM.flatten()])).cpu()
        (tokens, rejected, stopping), rest = all_[:3].tolist(), all_[3:]
        counts, sums_KM = rest[: len(MODES)].tolist(), rest[len(MODES) :].view(len(_KINDS), -1)
        ce, mse = ((sums_KM[k].sum() / sums_KM[k + 1].sum().clamp(min=1)).item() for k in (0, 2))
        record = {"loss": ce_weight * ce + mse_weight * mse, "ce": ce, "mse": mse, "tokens": tokens, "stop": stopping}
        for k, kind in ((0, "ce"), (2, "mse")):
            for m, mode in enumerate(MODES):
                if sums_KM[k + 1, m]:
                    record[f"{kind}/{mode}"] = (sums_KM[k, m] / sums_KM[k + 1, m]).item()
        return record | {"rejected": rejected} | {f"n/{mode}": n for mode, n in zip(MODES, counts, strict=True) if n}


def summary(
    sums: Mapping[str, Sequence[float]], seconds: float, device: torch.device, peak: float | None
) -> dict[str, float]:
    """A line of the log from the records of its steps: means and rates; steps skipped since the last line, rows refused
    so far.

    Args:
        seconds: that the steps took.
        peak: operations a second that the device can do, if known.
    """
    steps = len(sums["loss"])
    line = {key: sum(values) / len(values) for key, values in sums.items()}
    line |= {key: sum(sums[key]) / steps for key in sums if key.startswith("n/")}  # no entry means none
    line |= {"skipped": sum(sums["skipped"]), "rejected": sums["rejected"][-1]}
    flops = line.pop("flops") * steps / seconds
    line |= {"tokens_per_second": sum(sums["tokens"]) / seconds, "step_seconds": seconds / steps}
    line |= {"tflops": flops / 1e12, "memory_gb": memory_gb(device)}
    return line | ({"mfu": flops / peak} if peak else {})


def memory_gb(device: torch.device) -> float:
    """Peak memory in GB: the device's since the last call, or this process's since its start."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
