"""One optimiser for small networks: Muon for linear maps and convolutions, AdamW for everything else.

Compared with AdamW alone, the small networks trained here needed about a quarter of the steps to the same quality.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from irg.learning.optim import orthogonalised


class MuonAdamW(torch.optim.Optimizer):
    """Muon for parameters with two or more dimensions (convolutions are flattened), AdamW for the rest.

    ``adam_only`` names matrices that are no linear maps of features (embeddings, read-outs). The update of an [M, N]
    matrix has about unit singular values times ``muon_lr`` times sqrt(max(1, M / N)).
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
        super().__init__([group for group in groups if group["params"]], {})

    def scale_rates(self, factor: float) -> None:
        """Set every group's rate to ``factor`` times what it was made with."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon(group)
            else:
                self._adamw(group)

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                by_shape[p.shape[0], p[0].numel()].append(p)
        for (rows, columns), parameters in by_shape.items():
            updates = torch.stack([self._nesterov(p, group["momentum"]).flatten(1) for p in parameters])
            scale = max(1.0, rows / columns) ** 0.5
            for p, update in zip(parameters, orthogonalised(updates), strict=True):
                p.add_(update.view(p.shape), alpha=-group["lr"] * scale)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum)

    def _adamw(self, group: dict[str, Any]) -> None:
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
