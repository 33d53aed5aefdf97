"""Decoder layers in host memory that are copied to the device when they run, applied to a model from outside.

Two device buffers hold one layer each. While a layer computes, the layer after the next is prefetched into the buffer
that was released last: on CUDA from pinned host buffers on a stream of its own, elsewhere at once. The two experts of a
layer are copied separately; text needs the understanding one only, so the other is not copied then. Pinned memory is
not given back under pressure: where the layers do not fit, they stay as they are, mapped from their file for example,
and copies are slower.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from irg.model.network.unified import UnifiedModel
from irg.model.placement.devices import free_memory

EXPERTS = ("understanding", "generation")
_ALIGN = 256  # bytes: enough for every kernel
_PINNED_SHARE = 0.8  # of the free host memory: what pinned layers may take


@dataclass
class _DeviceBuffer:
    """Memory for one layer: each expert's tensors, the layer they hold, and CUDA events that order their use."""

    tensors: dict[str, list[Tensor]]
    holds: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(EXPERTS))
    ready: dict[str, Any] = field(default_factory=dict)
    done: Any = None


class LayerOffload:
    """Keeps the ``offloaded`` layers of a model in host memory. The model is used as before."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        offloaded: Sequence[int],
        device: torch.device,
        packed: bool | None = None,
        streams: Any = None,
    ) -> None:
        """Args:
        packed: an expert's tensors are one block, copied at once (default: on CUDA, where it is pinned, if host memory
            has room).
        streams: the module that has them: ``torch.cuda`` on CUDA, else none; tests give one that records.
        """
        self.device, self.offloaded = device, list(offloaded)
        self.copies = 0  # of an expert of a layer to the device, so far
        cuda = device.type == "cuda"
        packed = (cuda and _fit_host_memory([layers[i] for i in offloaded])) if packed is None else packed
        self._streams = torch.cuda if cuda else streams
        self._stream = None if self._streams is None else self._streams.Stream(device)
        leaves = [{expert: _leaves(layers[i], expert) for expert in EXPERTS} for i in self.offloaded]
        self._host_buffers = [{e: _to_host(_tensors(own[e]), packed, pinned=cuda) for e in EXPERTS} for own in leaves]
        self._device_buffers = [
            _DeviceBuffer({e: _like(host[e], device) for e in EXPERTS}) for host in self._host_buffers[:2]
        ]
        for buffer in self._device_buffers:  # what had their memory before may still be computed with
            buffer.done = self._event()
        for number, own in enumerate(leaves):
            for expert in EXPERTS:
                _bind(own[expert], self._device_buffers[number % 2].tensors[expert], packed)
        self._handles = [
            handle
            for number, index in enumerate(self.offloaded)
            for handle in (
                layers[index].register_forward_pre_hook(lambda _, args, n=number: self._before(n, args)),
                layers[index].register_forward_hook(lambda _, args, out, n=number: self._after(n, args)),
            )
        ]

    def _event(self) -> Any:
        """An event behind all that computes so far; None without streams."""
        return None if self._streams is None else self._streams.current_stream(self.device).record_event()

    def _before(self, number: int, args: tuple[Any, ...]) -> None:
        buffer = self._device_buffers[number % 2]
        for expert in _experts_of(args):
            self._copy(number, expert)
            if self._streams is not None:
                self._streams.current_stream(self.device).wait_event(buffer.ready[expert])

    def _after(self, number: int, args: tuple[Any, ...]) -> None:
        """Prefetch the buffer's next layer (after the last layers, the first ones of the next pass)."""
        self._device_buffers[number % 2].done = self._event()
        following = number + 2 if number + 2 < len(self.offloaded) else number % 2
        for expert in _experts_of(args):
            self._copy(following, expert)

    def _copy(self, number: int, expert: str) -> None:
        """Copy an expert of a layer to its device buffer, if it is not there."""
        buffer = self._device_buffers[number % 2]
        if buffer.holds[expert] == number:
            return
        with self._copy_stream():
            if self._stream is not None:
                self._stream.wait_event(buffer.done)
            for target, source in zip(buffer.tensors[expert], self._host_buffers[number][expert], strict=True):
                target.copy_(source, non_blocking=True)
            if self._stream is not None:
                buffer.ready[expert] = self._stream.record_event()
        buffer.holds[expert] = number
        self.copies += 1

    def _copy_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._streams is None else self._streams.stream(self._stream)


def _fit_host_memory(layers: Sequence[nn.Module]) -> bool:
    size = sum(tensor.nbytes for layer in layers for tensor in (*layer.parameters(), *layer.buffers()))
    return size <= _PINNED_SHARE * free_memory(torch.device("cpu"))


def offload_layers(model: UnifiedModel, device: torch.device | str, resident: int = 0) -> LayerOffload:
    """Offload the decoder's layers to host memory; all else must be on ``device`` already.

    Args:
        model: in eval mode, its offloaded layers in host memory; not to be trained any more.
        resident: layers that stay on the device, spread evenly, so that the others' copies have time to arrive.
    """
    device, layers = torch.device(device), list(model.language_model.model.layers)
    offloaded = offloaded_layers(len(layers), resident)
    for index in set(range(len(layers))) - set(offloaded):
        layers[index].to(device)
    return LayerOffload(layers, offloaded, device)


def offloaded_layers(layers: int, resident: int) -> list[int]:
    """Indices of the layers that are offloaded when ``resident`` of them are not: evenly spread."""
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
    """Host buffers: the tensors as they are (mapped from their file, for example), or packed into one block."""
    if not packed:
        return tensors
    block = torch.empty(_offsets(tensors)[-1], dtype=torch.uint8, pin_memory=pinned)
    for start, tensor in zip(_offsets(tensors), tensors, strict=False):
        _view(block, start, tensor).copy_(tensor)
    return [block]


def _like(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in tensors]


def _bind(leaves: list[_Leaf], buffers: list[Tensor], packed: bool) -> None:
    """Let a layer's tensors be views of its device buffer."""
    tensors = _tensors(leaves)
    for leaf, tensor, start, buffer in zip(leaves, tensors, _offsets(tensors), buffers * len(leaves), strict=False):
        leaf.set(_view(buffer, start, tensor) if packed else buffer)


def _offsets(tensors: list[Tensor]) -> list[int]:
    """Where each tensor begins in a packed block, and the block's length."""
    offsets = [0]
    for tensor in tensors:
        offsets.append(offsets[-1] + -(-tensor.nbytes // _ALIGN) * _ALIGN)
    return offsets


def _view(block: Tensor, start: int, like: Tensor) -> Tensor:
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape)
