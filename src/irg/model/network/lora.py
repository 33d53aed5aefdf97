"""Low-rank adapters on linear layers, put on a model from outside: each adds ``alpha / r * B (A x)`` to a result
(Hu et al. 2021). How they are stored and merged: :mod:`irg.model.weights.adapter_files`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GEN = "_moe_gen"


@dataclass(frozen=True)
class LoraConfig:
    """What ``adapter.json`` holds. ``targets`` are names of linear layers without the expert's ending: both experts'
    layers of the name are meant.

    Raises:
        ValueError: a rank below 1, or an alpha that is no number.
    """

    r: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if type(self.r) is not int or self.r < 1:
            raise ValueError(f"r must be a positive whole number, got {self.r!r}")
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not abs(self.alpha) < float("inf"):
            raise ValueError(f"alpha must be a number, got {self.alpha!r}")

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return self.alpha / self.r


class LoraLinear(nn.Linear):
    """A linear layer with an adapter. Its own weight keeps its name, its values and its dtype, and is frozen."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    @staticmethod
    def of(linear: nn.Linear, r: int, scale: float, generator: torch.Generator) -> "LoraLinear":
        """Wrap a layer: A uniform as a fresh linear layer's weight, B zero, so nothing changes at first."""
        wrapped = LoraLinear(1, 1, bias=False, device="meta")
        wrapped.in_features, wrapped.out_features = linear.in_features, linear.out_features
        wrapped.weight, wrapped.bias = linear.weight.requires_grad_(False), linear.bias
        if wrapped.bias is not None:
            wrapped.bias.requires_grad_(False)
        device = linear.weight.device
        bound = 1 / math.sqrt(linear.in_features)
        on_meta = device.type == "meta"  # there are no values then: drawing them would take its time
        a = torch.zeros(r, linear.in_features, device=device if on_meta else "cpu")
        if not on_meta:
            a.uniform_(-bound, bound, generator=generator)
        wrapped.lora_A = nn.Parameter(a.to(device))
        wrapped.lora_B = nn.Parameter(torch.zeros(linear.out_features, r, device=device))
        wrapped.scale = scale
        return wrapped

    scale: float

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_A.to(x.dtype))
        return super().forward(x) + self.scale * F.linear(low, self.lora_B.to(x.dtype))


def target_layers(model: nn.Module, targets: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers inside the decoder's layers that the names mean, in order.

    Raises:
        ValueError: a name means no layer.
    """
    found = [
        (path, path.rpartition(".")[2].removesuffix(_GEN), module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and "language_model.model.layers." in path
    ]
    names = {name for _, name, _ in found}
    if unknown := [target for target in targets if target not in names]:
        raise ValueError(
            f"lora targets: no linear layer is called {unknown[0]!r}; there are {', '.join(sorted(names))}"
        )
    return ((path, module) for path, name, module in found if name in targets)


def add_adapters(model: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Freeze a model and put trainable adapters (float32) on its target layers.

    Raises:
        ValueError: a target means no layer.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = list(target_layers(model, config.targets))
    model.requires_grad_(False)
    for path, linear in layers:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, LoraLinear.of(linear, config.r, config.scale, generator))
