"""The optimizer of small networks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from irg.learning.optim import Muon


class MuonAdamW(Muon):
    """Muon for parameters with two or more dimensions, AdamW (without decay) for the rest, in one state.

    Small networks needed about a quarter of the steps that AdamW alone takes to the same quality.

    ``adam_only`` names matrices that are no linear maps of features (embeddings, read-outs).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        muon_lr: float = 0.02,
        adam_lr: float = 2e-3,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.98),
        adam_only: Iterable[Tensor] = (),
    ) -> None:
        parameters, kept_back = list(parameters), {id(p) for p in adam_only}
        matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in kept_back]
        others = [p for p in parameters if p.ndim < 2 or id(p) in kept_back]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "kind": "muon", "lr": muon_lr, "base_lr": muon_lr, "momentum": momentum},
            {"params": others, "kind": "adamw", "lr": adam_lr, "base_lr": adam_lr, "betas": betas},
        ]
        super().__init__([group for group in groups if group["params"]])

    def scale_rates(self, factor: float) -> None:
        """Set every group's rate to ``factor`` times what it was made with."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _update(self, group: dict[str, Any]) -> None:
        if group["kind"] == "muon":
            super()._update(group)
            return
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            step = float(state["step"])
            state["mean"].lerp_(p.grad, 1 - beta1)
            state["square"].lerp_(p.grad.square(), 1 - beta2)
            scale = (state["square"] / (1 - beta2**step)).sqrt_().add_(1e-8)
            p.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1**step))
