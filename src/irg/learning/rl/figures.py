"""What a step by reward logs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from irg.learning.parallel import Ranks
from irg.learning.rl.loss import PolicyLosses
from irg.learning.rl.packs import PolicyPack
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rewards import Judged
from irg.learning.rl.rollouts import Group


def rollout_figures(
    groups: Sequence[Group], judged: Sequence[Sequence[Judged]], advantages: Sequence[Sequence[float | None]]
) -> dict[str, float]:
    """Of a step's rollouts: rewards by name, their spread, lengths, what is malformed, failed, unfinished."""
    texts = [text for group in groups for text in group.texts]
    flat = [one for some in judged for one in some]
    return reward_figures(judged, advantages) | {
        "malformed": mean([not t.complete or one.malformed for t, one in zip(texts, flat, strict=True)]),
        "unfinished": mean([not text.complete for text in texts]),
        "length": mean([len(text.ids) for text in texts]),
    }


def reward_figures(
    judged: Sequence[Sequence[Judged]], advantages: Sequence[Sequence[float | None]]
) -> dict[str, float]:
    """Of a step's rewards: by name, their spread, what failed, what they found malformed."""
    flat = [one for some in judged for one in some]
    totals = [[one.total for one in some if one.total is not None] for some in judged]
    known = [total for some in totals for total in some]
    by_name: dict[str, list[float]] = {}
    for one in flat:
        for name, value in one.figures().items():
            by_name.setdefault(name, []).append(value)
    record = {name: mean(values) for name, values in by_name.items()}
    return record | {
        "reward": mean(known),
        "reward_std": mean([float(np.std(some)) for some in totals if some]),
        "equal_groups": mean([float(not any(values)) for values in advantages]),
        "malformed": mean([one.malformed for one in flat]),
        "reward_failed": mean([one.total is None for one in flat]),
    }


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return float(np.mean(values)) if values else float("nan")


@dataclass
class StepFigures:
    """Sums over the packs and updates of a step."""

    updates: list[tuple[float, bool]] = field(default_factory=list)  # norm of the gradient, whether it was used
    supervised: dict[str, float] = field(default_factory=dict)  # of the last update
    losses: list[float] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    tokens: int = 0  # of all packs
    chosen: int = 0
    ratio_gap: float = 0.0

    @torch.no_grad()
    def add(self, pack: PolicyPack, scored: PolicyLosses, loss: Tensor, old_L: Tensor, entropy_L: Tensor) -> None:
        """Add a pack after its backward pass."""
        chosen_L = pack.weights_L.to(old_L.device) > 0
        gap_L = (old_L - pack.rollout_L.to(old_L.device)).abs()
        values = {"entropy": entropy_L, "rollout_gap": gap_L, "clipped": scored.clipped_L.to(torch.float32)}
        if scored.kl_L is not None:
            values["kl"] = scored.kl_L
        for name, value_L in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value_L[chosen_L].sum())
        self.ratio_gap = max(self.ratio_gap, float((scored.ratio_L[chosen_L] - 1).abs().max()))
        self.losses.append(float(loss))
        self.tokens += pack.pack.tokens
        self.chosen += pack.chosen

    def over(self, ranks: Ranks) -> "StepFigures":
        """The figures of all ranks together; all must call this. (A rank's losses are ``world`` times their part.)"""
        whole, *others = ranks.gather(self)
        for other in others:
            whole.add_other(other)
        whole.losses = [sum(whole.losses) / ranks.world]
        return whole

    def add_other(self, other: "StepFigures") -> None:
        """Add another rank's figures."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.losses += other.losses
        self.tokens += other.tokens
        self.chosen += other.chosen
        self.ratio_gap = max(self.ratio_gap, other.ratio_gap)

    def record(self, recipe: RLRecipe) -> dict[str, float]:
        """Means over the chosen tokens of all updates, and the sum of the losses by update."""
        updates = max(1, len(self.updates))
        policy, imitation = sum(self.losses) / updates, self.supervised
        means = {name: value / max(1, self.chosen) for name, value in self.sums.items()}
        record = {"entropy": float("nan"), "rollout_gap": float("nan"), "clipped": 0.0} | means
        record |= {
            name: value for name, value in imitation.items() if name not in ("loss", "tokens", "stop", "rejected")
        }
        return record | {
            "policy_loss": policy,
            "loss": policy + recipe.supervised_weight * imitation.get("loss", 0.0),
            "tokens": self.tokens + imitation.get("tokens", 0.0) * len(self.updates),
            "rejected": imitation.get("rejected", 0.0),
            "ratio_gap": self.ratio_gap,
            "grad_norm": sum(norm for norm, _ in self.updates) / updates,
            "skipped": float(sum(not taken for _, taken in self.updates)),
        }
