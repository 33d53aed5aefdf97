"""Low-rank adapters as files, and their sum with the weights: W + alpha / r * B @ A (Hu et al. 2021).

A folder holds ``adapter.safetensors`` with ``<module path>.lora_A`` [r, in] and ``<module path>.lora_B`` [out, r], and
``adapter.json`` with ``{"r": int, "alpha": float, "targets": [...]}``.

Legend: R rank; O outputs; I inputs.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from irg.model.config_files import read_json
from irg.model.manifest import TensorEntry, TensorReader, read_header

ADAPTER, SETTINGS = "adapter.safetensors", "adapter.json"


@dataclass(frozen=True)
class AdapterConfig:
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


@dataclass(frozen=True)
class Adapter:
    """A checked adapter on disk: entries of A and B for each module it changes."""

    config: AdapterConfig
    pairs: dict[str, tuple[TensorEntry, TensorEntry]]

    def pair(self, module: str) -> tuple[Tensor, Tensor]:
        """A [R, I] and B [O, R] of a module, float32."""
        a_RI, b_OR = (TensorReader().read(entry, torch.float32) for entry in self.pairs[module])
        return a_RI, b_OR

    def tensors(self) -> dict[str, Tensor]:
        """All of it, read: names as in the file, float32."""
        read = {module: self.pair(module) for module in self.pairs}
        return {f"{module}.{half}": t for module, ab in read.items() for half, t in zip(_HALVES, ab, strict=True)}

    def merged(self, module: str, weight_OI: Tensor) -> Tensor:
        """A module's weight with its adapter added."""
        return added(weight_OI, *self.pair(module), self.config.scale)


_HALVES = ("lora_A", "lora_B")


def added(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """W + scale * B @ A, computed in float32, in the weight's own dtype and on its device."""
    a_RI, b_OR = (t.to(weight_OI.device, torch.float32) for t in (a_RI, b_OR))
    return (weight_OI.to(torch.float32) + scale * (b_OR @ a_RI)).to(weight_OI.dtype)


def read_adapter(folder: Path, weights: Mapping[str, TensorEntry | Tensor] | None = None) -> Adapter:
    """Read and check an adapter's headers, against the weights that it is for if they are given (by parameter name).

    Raises:
        ValueError: a file is missing or damaged, or the adapter is for another model.
    """
    settings_path, path = folder / SETTINGS, folder / ADAPTER
    settings, entries = read_json(settings_path), read_header(path)
    try:
        config = AdapterConfig(settings.get("r"), settings.get("alpha"), tuple(settings.get("targets", ())))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{settings_path}: {error}") from None
    pairs = {}
    for key in entries:
        module, _, half = key.rpartition(".")
        if half not in _HALVES or any(f"{module}.{other}" not in entries for other in _HALVES):
            raise ValueError(f"{path}: {key} is not one of a pair lora_A, lora_B")
        pairs[module] = (entries[f"{module}.lora_A"], entries[f"{module}.lora_B"])
    if not pairs:
        raise ValueError(f"{path} holds no adapter")
    for module, (a, b) in pairs.items():
        if not (a.dtype.is_floating_point and b.dtype.is_floating_point):
            raise ValueError(f"{path}: {module}'s adapter is not of a floating-point dtype")
        _check_shapes(module, a.shape, b.shape, config.r, weights, path)
    return Adapter(config, pairs)


def _check_shapes(
    module: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    rank: int,
    weights: Mapping[str, TensorEntry | Tensor] | None,
    path: Path | str,
) -> None:
    """ValueError unless A [R, I] and B [O, R] fit each other and, where weights are given, the module's [O, I]."""
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        raise ValueError(f"{path}: {module} has lora_A {list(a)} and lora_B {list(b)}, which are not of rank {rank}")
    if weights is None:
        return
    weight = weights.get(f"{module}.weight")
    if weight is None or len(weight.shape) != 2:
        raise ValueError(f"{path}: the model has no linear layer {module}")
    outputs, inputs = weight.shape
    if (b[0], a[1]) != (outputs, inputs):
        raise ValueError(
            f"{path}: {module} has lora_A {list(a)} and lora_B {list(b)}; a weight of {outputs} x {inputs} "
            f"at rank {rank} needs [{rank}, {inputs}] and [{outputs}, {rank}]"
        )


def save_adapter(folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's two files, each aside and renamed, the description last.

    Raises:
        ValueError: they can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / (ADAPTER + ".part")
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, part)
        part.replace(folder / ADAPTER)
        part = folder / (SETTINGS + ".part")
        part.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
        part.replace(folder / SETTINGS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the adapter: {error}") from None


@torch.no_grad()
def merge_adapter(weights: dict[str, Tensor], config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Add an adapter in memory to a model's weights (name -> tensor), replacing those it changes; each keeps its dtype.

    Raises:
        ValueError: the model lacks a layer that the adapter changes, or its shape is another.
    """
    for module in (name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")):
        a_RI, b_OR = tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"]
        _check_shapes(module, tuple(a_RI.shape), tuple(b_OR.shape), config.r, weights, "the adapter")
        name = f"{module}.weight"
        weights[name] = added(weights[name], a_RI, b_OR, config.scale)
