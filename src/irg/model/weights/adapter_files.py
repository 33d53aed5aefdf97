"""Low-rank adapters and their sum with the weights: W + alpha / r * B @ A (Hu et al. 2021).

Written are a folder's ``adapter.safetensors`` with ``<module path>.lora_A`` [r, in] and ``<module path>.lora_B``
[out, r], and ``adapter.json`` with ``{"r": int, "alpha": float, "targets": [...]}``. What is read:
:mod:`irg.model.weights.adapter_forms`.

Legend: R rank; O outputs; I inputs.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from irg import files
from irg.model.network.lora import LoraConfig
from irg.model.weights.adapter_forms import ADAPTER, SETTINGS, LowRank, read_layers
from irg.model.weights.manifest import TensorEntry
from irg.model.weights.quantize import stored_quantization
from irg.model.weights.tensor_reader import TensorReader

LoraSource = str | Path | tuple[str | Path, float]
"""An adapter to add: its folder or file, ``"PATH:SCALE"``, or (path, scale)."""


@dataclass(frozen=True)
class Adapter:
    """A checked adapter on disk: what it adds to each layer that it changes, times ``strength``."""

    file: Path
    layers: dict[str, LowRank]
    strength: float = 1.0

    def pair(self, module: str) -> tuple[Tensor, Tensor]:
        """A [R, I] and B [O, R] of a module, float32."""
        layer, reader = self.layers[module], TensorReader(map_files=False)
        return reader.read(layer.a, torch.float32), reader.read(layer.b, torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """All pairs, read: named as in our files, float32."""
        read = {module: self.pair(module) for module in self.layers}
        return {f"{module}.{half}": t for module, ab in read.items() for half, t in zip(_HALVES, ab, strict=True)}

    def change(self, module: str, weight_OI: Tensor) -> Tensor:
        """What it adds to a module's weight, float32."""
        layer, (a_RI, b_OR) = self.layers[module], (t.to(weight_OI.device) for t in self.pair(module))
        change_OI = layer.scale * (b_OR @ a_RI)
        if layer.magnitude is not None:  # DoRA
            length_O = TensorReader(map_files=False).read(layer.magnitude, torch.float32).to(weight_OI.device).flatten()
            sum_OI = weight_OI + change_OI
            change_OI = sum_OI * (length_O / sum_OI.norm(dim=1))[:, None] - weight_OI
        return self.strength * change_OI


class Adapters:
    """Several adapters on one model. Each adds its change of the model's own weight; they are rounded once."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)

    def __contains__(self, module: object) -> bool:
        return any(module in adapter.layers for adapter in self.adapters)

    def merged(self, module: str, weight_OI: Tensor) -> Tensor:
        """A module's weight with its adapters added, in the weight's own dtype and on its device."""
        own_OI = weight_OI.to(torch.float32)
        changes = [one.change(module, own_OI) for one in self.adapters if module in one.layers]
        return sum(changes, own_OI).to(weight_OI.dtype)


_HALVES = ("lora_A", "lora_B")


def added(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """W + scale * B @ A, computed in float32, in the weight's own dtype and on its device."""
    a_RI, b_OR = (t.to(weight_OI.device, torch.float32) for t in (a_RI, b_OR))
    return (weight_OI.to(torch.float32) + scale * (b_OR @ a_RI)).to(weight_OI.dtype)


def parse_lora(source: LoraSource) -> tuple[Path, float]:
    """An adapter's path and scale; ``PATH:SCALE`` unless a file of that whole name is there.

    Raises:
        ValueError: the path is empty, or the scale no finite number.
    """
    path, scale = source if isinstance(source, tuple) else (source, 1.0)
    if isinstance(source, str) and ":" in source and not Path(source).expanduser().exists():
        head, _, tail = source.rpartition(":")
        with suppress(ValueError):  # then it is a part of the path
            path, scale = head, float(tail)
    if not str(path) or not math.isfinite(scale):
        raise ValueError(f"lora must be PATH or PATH:SCALE with a finite scale, got {str(source)!r}")
    return Path(path).expanduser(), float(scale)


def lora_sources(sources: str | Path | Sequence[LoraSource]) -> list[tuple[Path, float]]:
    """Path and scale of each adapter; a path alone is one.

    Raises:
        ValueError: as :func:`parse_lora`.
    """
    return [parse_lora(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]


def read_adapters(sources: Sequence[LoraSource], weights: Mapping[str, TensorEntry], path: Path) -> Adapters | None:
    """Read and check the adapters to add to the weights of a file; None without any.

    Args:
        weights: the file's tensors, by name.
        path: the file, for messages.

    Raises:
        ValueError: an adapter is not there, damaged or for another model, or the weights are quantized.
    """
    parsed = [parse_lora(source) for source in sources]
    if parsed and (kind := stored_quantization(weights)) is not None:
        raise ValueError(
            f"{path} is quantized to {kind}, so no adapter can be merged into it: start from the full weights "
            f"(with --memory {kind} they are quantized behind the merge)"
        )
    adapters = [read_adapter(folder, weights, scale) for folder, scale in parsed]
    return Adapters(adapters) if adapters else None


def read_adapter(
    path: Path, weights: Mapping[str, TensorEntry | Tensor] | None = None, strength: float = 1.0
) -> Adapter:
    """Read an adapter's folder or file and check it, against the weights that it is for if they are given (by parameter
    name).

    Raises:
        ValueError: a file is missing or damaged, the adapter is for another model or of a kind that is not read, it has
            numbers that are not finite, or it changes nothing.
    """
    modules = (
        None
        if weights is None
        else [
            key.removesuffix(".weight")
            for key, value in weights.items()
            if key.endswith(".weight") and len(value.shape) == 2
        ]
    )
    file, layers = read_layers(path, modules)
    for module, layer in layers.items():
        _check_shapes(module, layer.a.shape, layer.b.shape, layer.a.shape[0] if layer.a.shape else 0, weights, file)
        if layer.magnitude is not None and math.prod(layer.magnitude.shape) != layer.b.shape[0]:
            raise ValueError(f"{file}: {module}'s magnitude is {list(layer.magnitude.shape)}, not [{layer.b.shape[0]}]")
    adapter = Adapter(file, layers, strength)
    _check_numbers(adapter)
    return adapter


def _check_numbers(adapter: Adapter) -> None:
    """ValueError if a number is not finite, or nothing is changed (an adapter that was never trained has B = 0)."""
    changes = False
    for module, layer in adapter.layers.items():
        a_RI, b_OR = adapter.pair(module)
        if not (a_RI.isfinite().all() and b_OR.isfinite().all() and math.isfinite(layer.scale)):
            raise ValueError(f"{adapter.file}: {module} has NaN or infinite numbers")
        changes |= layer.magnitude is not None or bool(layer.scale and a_RI.any() and b_OR.any())
    if not changes:
        raise ValueError(f"{adapter.file} changes nothing: every lora_A, every lora_B or alpha is 0")


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


def save_adapter(folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's two files atomically, the settings last.

    Raises:
        ValueError: they can't be written.
    """
    try:
        with files.written(folder / ADAPTER) as path:
            save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, path)
        files.write_json(folder / SETTINGS, asdict(config))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the adapter: {error}") from None


@torch.no_grad()
def merge_adapter(weights: dict[str, Tensor], config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Add an adapter in memory to a model's weights (name -> tensor), replacing those it changes; each keeps its dtype.

    Raises:
        ValueError: the model lacks a layer that the adapter changes, or its shape is another.
    """
    for module in (name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")):
        a_RI, b_OR = tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"]
        _check_shapes(module, tuple(a_RI.shape), tuple(b_OR.shape), config.r, weights, "the adapter")
        name = f"{module}.weight"
        weights[name] = added(weights[name], a_RI, b_OR, config.scale)
