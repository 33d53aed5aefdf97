"""Low-rank adapters as files, and their sum with the weights: W + alpha / r * B @ A (Hu et al. 2021).

A folder holds ``adapter.safetensors`` with ``<module path>.lora_A`` [r, in] and ``<module path>.lora_B`` [out, r], and
``adapter.json`` with ``{"r": int, "alpha": float, "targets": [...]}``. Folders of the peft library are read too
(``adapter_model.safetensors``, ``adapter_config.json``), where they hold plain adapters of one rank.

Legend: R rank; O outputs; I inputs.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from irg import files
from irg.model.network.lora import LoraConfig
from irg.model.weights.config_files import read_json
from irg.model.weights.manifest import TensorEntry, read_header
from irg.model.weights.tensor_reader import TensorReader

ADAPTER, SETTINGS = "adapter.safetensors", "adapter.json"
PEFT_ADAPTER, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PEFT_KEY = re.compile(r"(?:base_model\.model\.)?(.+\.lora_[AB])(?:\.default)?\.weight")
_PEFT_PLAIN = {  # what other values mean is not computed here
    "use_dora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
}


@dataclass(frozen=True)
class Adapter:
    """A checked adapter on disk: entries of A and B for each module it changes."""

    config: LoraConfig
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
    if (folder / PEFT_SETTINGS).is_file() and not (folder / SETTINGS).is_file():
        settings_path, path = folder / PEFT_SETTINGS, folder / PEFT_ADAPTER
        settings = _peft_settings(read_json(settings_path), settings_path)
        entries = {_peft_key(key, path): entry for key, entry in read_header(path).items()}
    else:
        settings_path, path = folder / SETTINGS, folder / ADAPTER
        settings, entries = read_json(settings_path), read_header(path)
    try:
        config = LoraConfig(settings.get("r"), settings.get("alpha"), tuple(settings.get("targets", ())))  # type: ignore[arg-type]
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


def _peft_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """peft's words as ours. With rslora it scales by alpha / sqrt(r)."""
    if settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path}: peft_type {settings['peft_type']!r} is not supported: only LORA is")
    for name, plain in _PEFT_PLAIN.items():
        if settings.get(name) not in plain:
            raise ValueError(f"{path}: {name} {settings[name]!r} is not supported: merge it with peft itself")
    r, alpha = settings.get("r"), settings.get("lora_alpha")
    if settings.get("use_rslora") and type(r) is int and r > 0 and isinstance(alpha, int | float):
        alpha = alpha * math.sqrt(r)
    targets = settings.get("target_modules")
    return {"r": r, "alpha": alpha, "targets": targets if isinstance(targets, list) else ()}


def _peft_key(key: str, path: Path) -> str:
    match = _PEFT_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{path}: {key} is not one of a pair lora_A, lora_B")
    return match[1]


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
