"""Low-rank adapters as files, merged into weights: W + alpha / r * B @ A.

A folder holds ``adapter.safetensors`` with ``<module path>.lora_A`` [r, in] and ``<module path>.lora_B`` [out, r], and
``adapter.json`` with ``{"r": int, "alpha": float, "targets": [...]}``.

Legend: R rank; O outputs; I inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from irg.model.config_files import read_json
from irg.model.manifest import TensorEntry, TensorReader, read_header

ADAPTER, SETTINGS = "adapter.safetensors", "adapter.json"


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: entries of A and B for each module it changes."""

    folder: Path
    scale: float
    pairs: dict[str, tuple[TensorEntry, TensorEntry]]

    def merged(self, module: str, weight_OI: Tensor) -> Tensor:
        """A module's weight with its adapter added in float32, in the weight's own dtype."""
        a_RI, b_OR = (TensorReader().read(entry, torch.float32) for entry in self.pairs[module])
        return (weight_OI.to(torch.float32) + self.scale * (b_OR @ a_RI)).to(weight_OI.dtype)


def read_adapter(folder: Path, weights: Mapping[str, TensorEntry]) -> Adapter:
    """Read and check an adapter's headers against the weights that it is for.

    Raises:
        ValueError: a file is missing or damaged, or the adapter is for another model.
    """
    settings_path, path = folder / SETTINGS, folder / ADAPTER
    settings, entries = read_json(settings_path), read_header(path)
    rank, alpha = settings.get("r"), settings.get("alpha")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{settings_path}: r must be a positive whole number, got {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < float("inf"):
        raise ValueError(f"{settings_path}: alpha must be a number, got {alpha!r}")
    pairs = {}
    for key in entries:
        module, _, leaf = key.rpartition(".")
        if leaf not in ("lora_A", "lora_B") or f"{module}.lora_A" not in entries or f"{module}.lora_B" not in entries:
            raise ValueError(f"{path}: {key} is not one of a pair lora_A, lora_B")
        pairs[module] = (entries[f"{module}.lora_A"], entries[f"{module}.lora_B"])
    if not pairs:
        raise ValueError(f"{path} holds no adapter")
    for module, (a, b) in pairs.items():
        weight = weights.get(f"{module}.weight")
        if weight is None or len(weight.shape) != 2:
            raise ValueError(f"{path}: the model has no linear layer {module}")
        outputs, inputs = weight.shape
        if a.shape != (rank, inputs) or b.shape != (outputs, rank):
            raise ValueError(
                f"{path}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; a weight of {outputs} x "
                f"{inputs} at rank {rank} needs [{rank}, {inputs}] and [{outputs}, {rank}]"
            )
        if not (a.dtype.is_floating_point and b.dtype.is_floating_point):
            raise ValueError(f"{path}: {module}'s adapter is not of a floating-point dtype")
    return Adapter(folder, alpha / rank, pairs)
