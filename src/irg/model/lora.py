"""Low-rank adapters on linear layers: put on a model from outside, saved apart, merged back into the weights.

An adapter adds ``alpha / r * B (A x)`` to a linear layer's result. On disk: ``adapter.safetensors`` with
``<module path>.lora_A`` [r, in] and ``<module path>.lora_B`` [out, r], and ``adapter.json`` with ``r``, ``alpha`` and
``targets`` (Hu et al. 2021).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from irg.recipes import build

FILE, CONFIG = "adapter.safetensors", "adapter.json"
_GEN = "_moe_gen"


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter.json`` holds. ``targets`` are names of linear layers without the expert's ending: both experts'
    layers of the name are meant."""

    r: int
    alpha: float
    targets: tuple[str, ...]

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
        a = torch.zeros(r, linear.in_features).uniform_(-bound, bound, generator=generator)
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


def add_adapters(model: nn.Module, config: AdapterConfig, seed: int = 0) -> None:
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


def save_adapter(folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's two files, each aside and renamed, the description last.

    Raises:
        ValueError: they can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / (FILE + ".part")
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, part)
        part.replace(folder / FILE)
        part = folder / (CONFIG + ".part")
        part.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
        part.replace(folder / CONFIG)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the adapter: {error}") from None


def load_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Read an adapter.

    Raises:
        ValueError: a file is missing or damaged, or the tensors are no pairs of rank ``r``.
    """
    try:
        config = build(AdapterConfig, json.loads((folder / CONFIG).read_text(encoding="utf-8")), str(folder / CONFIG))
        tensors = load_file(folder / FILE)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a readable adapter ({FILE}, {CONFIG}): {error}") from None
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        rank = tensor.shape[0 if kind == "lora_A" else -1] if tensor.ndim == 2 else None
        if (
            kind not in ("lora_A", "lora_B")
            or rank != config.r
            or not {f"{path}.lora_A", f"{path}.lora_B"} <= set(tensors)
        ):
            raise ValueError(
                f"{folder / FILE}: {name} {list(tensor.shape)} is no half of an adapter of rank {config.r}"
            )
    return config, tensors


def deltas(config: AdapterConfig, tensors: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Weight name -> a function that makes what is to be added to it, alpha / r * B A, float32 [out, in]."""

    def delta(path: str) -> Callable[[], Tensor]:
        a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        return lambda: config.scale * (b.to(torch.float32) @ a.to(torch.float32))

    paths = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    return {f"{path}.weight": delta(path) for path in paths}


@torch.no_grad()
def merge_adapter(weights: dict[str, Tensor], config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Add an adapter to a model's weights (name -> tensor), replacing those it changes; each keeps its dtype.

    Raises:
        ValueError: the model lacks a layer that the adapter changes, or its shape is another.
    """
    for name, delta in deltas(config, tensors).items():
        added: Any = delta()
        if name not in weights or weights[name].shape != added.shape:
            has = f"has shape {list(weights[name].shape)}" if name in weights else "is not there"
            raise ValueError(f"the adapter changes {name} {list(added.shape)}, which {has} in this model")
        old = weights[name]
        weights[name] = (old.to(torch.float32) + added.to(old.device)).to(old.dtype)
