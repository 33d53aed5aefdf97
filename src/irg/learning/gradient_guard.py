"""What can go wrong in a step: gradients that explode, memory that runs out."""

import math
from dataclasses import dataclass
from typing import Any

from irg.learning.data.packing import Pack
from irg.learning.recipe import Guard, TrainRecipe

MIN_NORMS = 20
"""Norms to average before a spike is called one."""


@dataclass
class GradientGuard:
    """Decides whether a step's gradients are used. Its memory is part of the checkpoint."""

    guard: Guard
    average: float = 0.0  # of the norms of steps that were taken
    taken: int = 0
    skipped_in_a_row: int = 0

    def accepts(self, norm: float) -> bool:
        """Whether a gradient of this norm is fit to be used.

        Raises:
            ValueError: too many in a row were not.
        """
        spike = bool(self.guard.spike) and self.taken >= MIN_NORMS and norm > self.guard.spike * self.average
        if math.isfinite(norm) and not spike:
            self.taken += 1
            self.average += (norm - self.average) * max(0.02, 1 / self.taken)
            self.skipped_in_a_row = 0
            return True
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.guard.patience:
            what = "not finite" if not math.isfinite(norm) else f"above {self.guard.spike:g} x {self.average:.3g}"
            raise ValueError(
                f"{self.skipped_in_a_row} steps in a row had a gradient norm that is {what} (the last: {norm:.3g}) and "
                "were skipped: lower optimizer.lr, look at the rows, or go on from an older checkpoint (guard.patience)"
            )
        return False

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"average": self.average, "taken": self.taken, "skipped_in_a_row": self.skipped_in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Take a state back."""
        self.average, self.taken = state["average"], state["taken"]
        self.skipped_in_a_row = state["skipped_in_a_row"]


def out_of_memory(pack: Pack, step: int, stream: int, recipe: TrainRecipe) -> ValueError:
    """The message for a user whose device has no memory left."""
    held = ", ".join(f"{n} x {mode}" for mode, n in pack.modes.items())
    advice = [f"tokens_per_pack (now {recipe.tokens_per_pack})"]
    if pack.longest > 0.5 * pack.tokens:
        advice.append(f"max_tokens_per_sample (now {recipe.max_tokens_per_sample})")
    if recipe.noise_copies > 1:
        advice.append(f"noise_copies (now {recipe.noise_copies})")
    more = "" if recipe.parallel.recompute == "full" else "; or set parallel.recompute to full"
    return ValueError(
        f"out of memory in step {step}, pack {stream}: {pack.tokens} tokens ({held}; the longest sample has "
        f"{pack.longest}). Lower {' or '.join(advice)}{more}; or shard over more GPUs, or use adapters (lora.rank). "
        "The run resumes from its last checkpoint"
    )
