"""Optimizers, learning-rate schedule and the running average of weights.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix; the rest of the parameters go
to AdamW. It is our own version: ``torch.optim.Muon`` always iterates in bfloat16, matrix by matrix, which took 25 to 31
times as long on a CPU without bfloat16 units, and has one triple of coefficients for all steps.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from irg.learning.recipe import Optimizer as OptimizerRecipe

# Coefficients of the polynomial iteration, one triple per step (Amsel et al. 2025, "Polar Express").
POLAR = ((8.2872, -23.5959, 17.3004), (4.1071, -2.9478, 0.5448), (3.9487, -2.9089, 0.5518), (3.3184, -2.4885, 0.5100))


def orthogonalised(x_BMN: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrices of a batch, approximately: four steps bring most singular values near 1."""
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x = x_BMN.mT if tall else x_BMN
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in POLAR:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon for matrices, and for convolutions, flattened to [out, the rest].

    The update of an [M, N] matrix has about unit singular values times sqrt(max(1, M / N)) times the rate.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, dtype: torch.dtype = torch.float32
    ) -> None:
        """``dtype``: of the iteration; momentum and weights stay as they are."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                by_shape[p.shape[0], p[0].numel()].append(p)
        for (rows, columns), params in by_shape.items():
            updates = torch.stack([self._nesterov(p, group["momentum"]).flatten(1) for p in params])
            scale = max(1.0, rows / columns) ** 0.5
            for p, update in zip(params, orthogonalised(updates.to(self.dtype)), strict=True):
                p.add_(update.view(p.shape).to(p.dtype), alpha=-group["lr"] * scale)

    def _nesterov(self, p: nn.Parameter, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum)


def build_optimizers(
    model: nn.Module, recipe: OptimizerRecipe, precision: torch.dtype = torch.float32
) -> list[Optimizer]:
    """AdamW for everything, or Muon (iterating in ``precision``) for the matrices of all layers (decoder and ViT) and
    AdamW for the rest."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if recipe.kind == "muon" and p.ndim == 2 and ".layers." in name]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in taken]
    adamw, options = (_adamw8bit(), {}) if recipe.kind == "adamw8bit" else (AdamW, {"fused": rest[0].is_cuda})
    optimizers: list[Optimizer] = [
        adamw(rest, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, **options)
    ]
    if matrices:
        optimizers.append(Muon(matrices, recipe.muon_lr, recipe.muon_momentum, precision))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def _adamw8bit() -> Any:
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise ValueError("optimizer.kind adamw8bit needs torchao: pip install 'irg[quant]'") from None
    return AdamW8bit


def to_saved(value: Tensor) -> Tensor:
    """An optimizer's tensor as a checkpoint holds it.

    8-bit moments are written as float32, which can be cut into pieces for any number of ranks; reading them back rounds
    a block's scale once more (within 1 %), so here alone a resumed run is not bit-identical.
    """
    piece = value.to_local() if isinstance(value, DTensor) else value
    if not hasattr(piece, "dequantize") or type(piece) is Tensor:
        return value
    plain = cast(Any, piece).dequantize(torch.float32)
    if not isinstance(value, DTensor):
        return plain
    return DTensor.from_local(plain, value.device_mesh, value.placements, shape=value.shape, stride=value.stride())


def from_saved(optimizer: Optimizer, weight: Tensor, kind: str, value: Tensor) -> Tensor:
    """The inverse of :func:`to_saved`, for a moment called ``kind``."""
    if value.ndim == 0:  # the number of steps: on the CPU, but for fused kernels, which read it on the weight's device
        return value.to(weight.device, copy=True) if optimizer.defaults.get("fused") else value.clone()
    if not hasattr(optimizer, "_new_buffer"):
        return value.clone()
    held: Tensor = optimizer._new_buffer(weight, kind == "exp_avg")  # signed, or not
    held.copy_(value)
    return held


def belongs(optimizer: Optimizer, moments: Iterable[str]) -> bool:
    """Whether moments of these names are an optimizer's own, and not those of another kind that went before it."""
    names = {"momentum"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
    return names == set(moments)


def rate(step: int, steps: int, recipe: OptimizerRecipe) -> float:
    """Factor on the learning rate at ``step`` (0-based): linear warm-up, constant, linear cool-down."""
    factor = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.cooldown:
        factor = min(factor, max(0.0, (steps - step) / recipe.cooldown))
    return factor


@torch.no_grad()
def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """ema = decay * ema + (1 - decay) * weight, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)
