"""Decoder layers that wait in host memory and visit the device when they are run, applied to a model from outside.

Two slots on the device hold what two layers need. While a layer computes, the copy of the layer after the next is on
its way into the slot that was freed last: on CUDA from pinned memory on a stream of its own, elsewhere at once. Each
layer comes in two halves, its experts; text needs the understanding one only, so the idle expert stays at home.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from irg.model.network.unified import UnifiedModel

EXPERTS = ("understanding", "generation")
_ALIGN = 256  # bytes: what every kernel is content with


@dataclass
class _Slot:
    """Room for one layer: each expert's tensors, whose they are now, and the CUDA events that order their use."""

    tensors: dict[str, list[Tensor]]
    holds: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(EXPERTS))
    ready: dict[str, Any] = field(default_factory=dict)
    done: Any = None


class LayerOffload:
    """Keeps ``streamed`` layers of a model in host memory. The model stays usable as before."""

    def __init__(
        self, layers: Sequence[nn.Module], streamed: Sequence[int], device: torch.device, packed: bool | None = None
    ) -> None:
        """``packed``: an expert's tensors wait as one block, one copy (default: on CUDA, where it is pinned)."""
        self.device, self.streamed = device, list(streamed)
        self.copies = 0  # of an expert of a layer, so far
        cuda = device.type == "cuda"
        packed = cuda if packed is None else packed
        self._stream = torch.cuda.Stream(device) if cuda else None
        leaves = [{expert: _leaves(layers[i], expert) for expert in EXPERTS} for i in self.streamed]
        self._home = [{e: _to_host(_tensors(own[e]), packed, pinned=cuda) for e in EXPERTS} for own in leaves]
        self._slots: list[_Slot] = []
        for number in range(min(2, len(leaves))):
            room = {e: _like(self._home[number][e], device) for e in EXPERTS}
            self._slots.append(_Slot(room))
        for number, own in enumerate(leaves):
            for expert in EXPERTS:
                _bind(own[expert], self._slots[number % 2].tensors[expert], packed)
        self._handles = [
            handle
            for number, index in enumerate(self.streamed)
            for handle in (
                layers[index].register_forward_pre_hook(lambda _, args, n=number: self._before(n, args)),
                layers[index].register_forward_hook(lambda _, args, out, n=number: self._after(n, args)),
            )
        ]

    def _before(self, number: int, args: tuple[Any, ...]) -> None:
        slot = self._slots[number % 2]
        for expert in _experts_of(args):
            self._fetch(number, expert)
            if self._stream is not None:
                torch.cuda.current_stream(self.device).wait_event(slot.ready[expert])

    def _after(self, number: int, args: tuple[Any, ...]) -> None:
        """The slot is free: fetch what will use it next (after the last layers, the first ones of the next pass)."""
        if self._stream is not None:
            self._slots[number % 2].done = torch.cuda.current_stream(self.device).record_event()
        following = number + 2 if number + 2 < len(self.streamed) else number % 2
        for expert in _experts_of(args):
            self._fetch(following, expert)

    def _fetch(self, number: int, expert: str) -> None:
        slot = self._slots[number % 2]
        if slot.holds[expert] == number:
            return
        with self._aside():
            if self._stream is not None and slot.done is not None:
                self._stream.wait_event(slot.done)
            for target, source in zip(slot.tensors[expert], self._home[number][expert], strict=True):
                target.copy_(source, non_blocking=True)
            if self._stream is not None:
                slot.ready[expert] = self._stream.record_event()
        slot.holds[expert] = number
        self.copies += 1

    def _aside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def offload_layers(model: UnifiedModel, device: torch.device | str, resident: int = 0) -> LayerOffload:
    """Stream the decoder's layers from host memory; all but them must be on ``device`` already.

    Args:
        model: in eval mode, its streamed layers in host memory; not to be trained any more.
        resident: layers that stay on the device, spread evenly, so that the others' copies have time to arrive.
    """
    device, layers = torch.device(device), list(model.language_model.model.layers)
    streamed = streamed_layers(len(layers), resident)
    for index in set(range(len(layers))) - set(streamed):
        layers[index].to(device)
    return LayerOffload(layers, streamed, device)


def streamed_layers(layers: int, resident: int) -> list[int]:
    """Indices of the layers that are streamed when ``resident`` of them are not: evenly spread."""
    count = max(0, layers - resident)
    return [(2 * k + 1) * layers // (2 * count) for k in range(count)]


def _experts_of(args: tuple[Any, ...]) -> tuple[str, ...]:
    """Experts that a layer's call needs: its arguments are (understanding tokens, generation tokens or None, ...)."""
    return EXPERTS if args[1] is not None else EXPERTS[:1]


@dataclass(frozen=True)
class _Leaf:
    """A parameter or buffer of a layer."""

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = getattr(self.module, self.name)
        return tensor.detach()

    def set(self, tensor: Tensor) -> None:
        if self.name in self.module._parameters:
            self.module._parameters[self.name] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.module._buffers[self.name] = tensor


def _leaves(layer: nn.Module, expert: str) -> list[_Leaf]:
    """Parameters and buffers of one expert of a layer."""
    generation = expert == EXPERTS[1]
    return [
        _Leaf(module, name)
        for path, module in layer.named_modules()
        for name in (*module._parameters, *module._buffers)
        if getattr(module, name) is not None and ("_moe_gen" in path) == generation
    ]


def _tensors(leaves: Iterable[_Leaf]) -> list[Tensor]:
    return [leaf.tensor for leaf in leaves]


def _to_host(tensors: list[Tensor], packed: bool, pinned: bool) -> list[Tensor]:
    """Where tensors wait: as they are (mapped from their file, say), or packed into one block."""
    if not packed:
        return tensors
    block = torch.empty(_offsets(tensors)[-1], dtype=torch.uint8, pin_memory=pinned)
    for start, tensor in zip(_offsets(tensors), tensors, strict=False):
        _view(block, start, tensor).copy_(tensor)
    return [block]


def _like(home: list[Tensor], device: torch.device) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in home]


def _bind(leaves: list[_Leaf], room: list[Tensor], packed: bool) -> None:
    """Let a layer's tensors be views of its slot."""
    tensors = _tensors(leaves)
    for leaf, tensor, start, place in zip(leaves, tensors, _offsets(tensors), room * len(leaves), strict=False):
        leaf.set(_view(place, start, tensor) if packed else place)


def _offsets(tensors: list[Tensor]) -> list[int]:
    """Where each tensor begins in a packed block, and the block's length."""
    offsets = [0]
    for tensor in tensors:
        offsets.append(offsets[-1] + -(-tensor.nbytes // _ALIGN) * _ALIGN)
    return offsets


def _view(block: Tensor, start: int, like: Tensor) -> Tensor:
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape)
