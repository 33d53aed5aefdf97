"""One model on several devices, by decoder layers, applied from outside.

The first device has everything that is not a decoder layer; hidden states cross over where the layers' device changes,
and come back for the final norms. Each layer's keys and values live beside it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from irg.model.network.unified import UnifiedModel

_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)(?:\.|$)")


def layer_devices(layers: int, devices: Sequence[torch.device], shares: Sequence[float]) -> list[torch.device]:
    """A device for each layer: contiguous runs in proportion to ``shares``."""
    total, ends, seen = sum(shares), list[int](), 0.0
    for share in shares:
        seen += share
        ends.append(round(layers * seen / total))
    return [devices[next(d for d, end in enumerate(ends) if layer < end)] for layer in range(layers)]


def device_of(layers: Sequence[torch.device], rest: torch.device) -> Callable[[str], torch.device]:
    """Where a module or parameter of the unified model belongs, by its name."""

    def where(name: str) -> torch.device:
        match = _LAYER.match(name)
        return layers[int(match[1])] if match else rest

    return where


def follow_layers(model: UnifiedModel) -> None:
    """Let hidden states go to the device of each decoder layer, and come back to the model's for the final norms.

    The layers are where they should be already: ``load_model(..., device=device_of(...))`` reads them there.
    """
    decoder = model.language_model.model
    for layer in decoder.layers:
        layer.register_forward_pre_hook(_Follow(next(layer.parameters()).device))
    for norm in (decoder.norm, decoder.norm_moe_gen):
        norm.register_forward_pre_hook(_Follow(model.device))


class _Follow:
    """Moves a module's tensor arguments to its device (rotary tables, a pair, too)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._to(value) for value in args)

    def _to(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        return tuple(self._to(each) for each in value) if isinstance(value, tuple) else value
