"""How much memory a request needs, and which memory mode fits: nothing is loaded here.

The estimate counts what PyTorch holds at the worst moment of one request: weights, the key-value cache of three
guidance branches, and the larger of the network's and the autoencoder's activations. Formulas stand in
:func:`estimate`; a reserve for the CUDA context and cuBLAS is added on GPUs. GB are 1e9 bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from irg.model.network.autoencoder import FluxConfig, images_at_once
from irg.model.network.config import ModelConfig
from irg.model.placement.devices import free_memory
from irg.model.placement.kv_cache_size import EXPECTED_TEXT_TOKENS, RowKind, bytes_per_slot, request_slots
from irg.model.weights import quantize as quantizing
from irg.model.weights.checkpoint import CheckedFolder
from irg.model.weights.manifest import format_size

Memory = Literal["auto", "bf16", "int8", "int4", "fp8", "offload"]
"""What a caller may ask for."""
MemoryMode = Literal["float32", "bf16", "int8", "int4", "fp8", "offload"]
CUDA_RESERVE = 700_000_000
SYSTEM_TOKENS, PROMPT_TOKENS = 120, 80


@dataclass(frozen=True)
class RequestShape:
    """What the estimate is for: the image's size in pixels, tokens of every thinking text, rounds of improving, and
    how many such requests run at a time."""

    height: int = 1024
    width: int = 1024
    thinking_tokens: int = EXPECTED_TEXT_TOKENS
    rounds: int = 1
    requests: int = 1

    def latent_tokens(self, config: ModelConfig) -> int:
        return (self.height // config.image_stride) * (self.width // config.image_stride)

    def cache_slots(self, config: ModelConfig) -> tuple[int, ...]:
        """Slots of a request's rows of the key-value cache, by :class:`RowKind`."""
        said, texts = SYSTEM_TOKENS + PROMPT_TOKENS, self.rounds + 1
        return request_slots(config, said, self.thinking_tokens, texts, self.rounds, self.height, self.width)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, by what they are for; ``host`` are weights in host memory."""

    weights: int
    cache: int
    activations: int
    autoencoder: int
    reserve: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes needed on the device at the worst moment: the network and the autoencoder never run together."""
        return self.weights + self.cache + max(self.activations, self.autoencoder) + self.reserve


@dataclass(frozen=True)
class MemoryPlan:
    """A memory mode, and why it was taken: one line."""

    mode: MemoryMode
    estimate: MemoryEstimate
    reason: str
    resident_layers: int = 0  # that stay on the device when the others are offloaded
    max_concurrent_requests: int = 1  # that fit the free memory
    precision: str = ""  # of the weights: what two results must share to be comparable


# ------------------------------------------------------------------------------------------------------- the estimate


def weight_bytes(checked: CheckedFolder, mode: MemoryMode) -> dict[str, int]:
    """Bytes of the weights in a mode: ``layers`` of the decoder, ``largest`` of these layers, ``other``.

    What a folder has quantized keeps its size.
    """
    item, quantization = (4 if mode == "float32" else 2), quantization_of(mode)
    layers: dict[str, int] = {}
    other = sum(tensor.numel() for tensor in checked.autoencoder.parameters()) * item
    for name, module in checked.model.named_modules():
        size = _quantized_bytes(name, module, quantization)
        size += sum(
            tensor.numel() * (item if tensor.is_floating_point() and leaf not in quantizing.PARTS else tensor.itemsize)
            for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if not (leaf == "weight" and size)
        )
        if name.startswith(quantizing.LAYERS):
            layer = name.removeprefix(quantizing.LAYERS).partition(".")[0]
            layers[layer] = layers.get(layer, 0) + size
        else:
            other += size
    return {"layers": sum(layers.values()), "largest": max(layers.values()), "other": other}


def _quantized_bytes(name: str, module: torch.nn.Module, quantization: quantizing.Quantization | None) -> int:
    """Bytes of a linear layer's weight once it is quantized; 0 if it is not."""
    if quantization is None or not quantizing.is_quantizable(name, module):
        return 0
    assert isinstance(module, torch.nn.Linear)
    shapes = quantizing.part_shapes(module.in_features, module.out_features, quantization) or {}
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


def quantization_of(mode: MemoryMode) -> quantizing.Quantization | None:
    """What weights are quantized to in a mode."""
    return mode if mode == "int8" or mode == "int4" or mode == "fp8" else None


def estimate(
    checked: CheckedFolder, mode: MemoryMode, shape: RequestShape, device: str = "cuda", resident_layers: int = 0
) -> MemoryEstimate:
    """What requests of a shape need in a mode.

    * Cache: rows of the main context and of the two unconditional branches for every request, each as long as its
      sequence becomes (:mod:`irg.model.placement.kv_cache_size`).
    * Activations: a denoising step of all three branches, N tokens. At its peak, in an MLP, a layer holds three
      tensors of the intermediate size (gate, up, product) and five of the hidden size; of quantized weights also
      one dequantized, of int4 half as much again while it is unpacked.
    * Autoencoder: three tensors (four of a compact one) of its widest full-resolution stage while it decodes, of the
      images that it decodes together; convolution workspaces are not known.
    * Offload: device buffers for two layers, and the layers that stay on the device.
    """
    config = checked.config
    decoder, item = config.decoder, 4 if mode == "float32" else 2
    weights = weight_bytes(checked, mode)
    host = 0
    on_device = weights["layers"] + weights["other"]
    if mode == "offload":
        offloaded = decoder.num_hidden_layers - resident_layers
        host = weights["layers"] * offloaded // decoder.num_hidden_layers
        on_device += min(2, offloaded) * weights["largest"] - host
    tokens = len(RowKind) * shape.requests * (shape.latent_tokens(config) + 2)
    activations = tokens * (3 * decoder.intermediate_size + 5 * decoder.hidden_size) * item
    quantization = quantization_of(mode) or quantizing.stored_quantization(checked.entries)
    if quantization is not None:
        dequantized = decoder.intermediate_size * decoder.hidden_size * item
        activations += dequantized * 3 // 2 if quantization == "int4" else dequantized
    return MemoryEstimate(
        weights=on_device,
        cache=shape.requests * sum(shape.cache_slots(config)) * bytes_per_slot(decoder, item),
        activations=activations,
        autoencoder=min(shape.requests, images_at_once(shape.height, shape.width))
        * _autoencoder_bytes(config, shape, item),
        reserve=CUDA_RESERVE if device.startswith("cuda") else 0,
        host=host,
    )


def _autoencoder_bytes(config: ModelConfig, shape: RequestShape, item: int) -> int:
    ae, pixels = config.autoencoder, shape.height * shape.width
    if isinstance(ae, FluxConfig):
        return 3 * ae.ch * ae.ch_mult[min(1, len(ae.ch_mult) - 1)] * pixels * item
    half, quarter, eighth = ae.decoder_widths
    return 4 * max(half * pixels // 4, 4 * quarter * pixels // 64, eighth * pixels // 64) * item


# ------------------------------------------------------------------------------------------------------------ the plan


def plan_memory(
    checked: CheckedFolder,
    memory: Memory = "auto",
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    shape: RequestShape | None = None,
    dtype: torch.dtype | None = None,
    free: int | None = None,
) -> MemoryPlan:
    """The mode that was asked for; for ``auto`` the first that fits the free memory of the devices.

    The order is float32 (CPU only), bf16, int8, int4, offload; fp8 is as large as int8 and further from bf16, so it is
    taken only where it is asked for. What a folder has quantized stays as it is. With
    ``auto``, offload keeps as many layers on the device as fit; offload that was asked for keeps none.

    Args:
        dtype: with ``auto`` it stands for its mode: nothing is quantized or offloaded.
        free: bytes; default: what the devices have free now.

    Raises:
        ValueError: ``memory`` is unknown, or goes against the folder or the devices.
    """
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}, got {memory!r}")
    free = sum(map(free_memory, devices)) if free is None else free
    planner = _Planner(checked, shape or RequestShape(), devices, free)
    stored = planner.stored
    if stored is not None and memory not in ("auto", "offload", stored):
        raise ValueError(f"{checked.weights_file} is quantized to {stored}: memory must be auto, {stored} or offload")
    if len(devices) > 1 and memory == "offload":
        raise ValueError("memory offload needs one device, not several")
    if memory != "auto":
        return planner.plan(memory, before=f"{memory} as asked: ")
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        plan = planner.plan("float32" if dtype.itemsize >= 4 else "bf16", before=f"{name} as asked: ")
        return replace(plan, precision=stored or name.replace("bfloat", "bf"))
    return planner.first_that_fits()


def max_concurrent_requests(
    checked: CheckedFolder, mode: MemoryMode, shape: RequestShape, device: str, free: int
) -> int:
    """How many requests may run at a time in ``free`` bytes: at least one."""
    one, two = (estimate(checked, mode, replace(shape, requests=n), device).total for n in (1, 2))
    return 1 + max(0, (free - one) // max(1, two - one))


@dataclass(frozen=True)
class _Planner:
    checked: CheckedFolder
    shape: RequestShape
    devices: Sequence[torch.device]
    free: int

    @property
    def kind(self) -> str:
        return self.devices[0].type

    @property
    def stored(self) -> quantizing.Quantization | None:
        return quantizing.stored_quantization(self.checked.entries)

    def estimate(self, mode: MemoryMode, resident_layers: int = 0) -> MemoryEstimate:
        return estimate(self.checked, mode, self.shape, self.kind, resident_layers)

    def first_that_fits(self) -> MemoryPlan:
        passed: list[str] = []
        for mode in self._modes():
            if (kind := quantization_of(mode)) and not self.stored and not quantizing.available(kind):
                passed.append(f"{mode} needs pip install 'irg[quant]'")
                continue
            if (needed := self.estimate(mode).total) <= self.free:
                return self.plan(mode, passed=passed)
            passed.append(f"{mode} needs {format_size(needed)}")
        if len(self.devices) > 1:
            raise ValueError(
                f"{self.checked.weights_file} does not fit {self._names()}: {'; '.join(passed)}; "
                f"{format_size(self.free)} is free"
            )
        return self.plan("offload", self._resident_layers(), passed=passed)

    def plan(
        self, mode: MemoryMode, resident_layers: int = 0, before: str = "", passed: Sequence[str] = ()
    ) -> MemoryPlan:
        needs = self.estimate(mode, resident_layers)
        reason = f"{before or f'{mode} '}needs about {format_size(needs.total)}"
        if needs.host:
            reason += f" and {format_size(needs.host)} of host memory ({resident_layers} layers stay on the device)"
        reason += f" at {self.shape.width}x{self.shape.height}; {self._names()} has {format_size(self.free)} free"
        reason += "" if needs.total <= self.free else ", which may not be enough"
        reason += f" ({'; '.join(passed)})" if passed else ""
        concurrent = 1
        if mode != "offload":
            concurrent = max_concurrent_requests(self.checked, mode, self.shape, self.kind, self.free)
        precision = quantization_of(mode) or self.stored or mode.replace("offload", "bf16")
        return MemoryPlan(mode, needs, reason, resident_layers, concurrent, precision)

    def _modes(self) -> list[MemoryMode]:
        """What ``auto`` tries before it offloads layers."""
        if self.stored is not None:
            return [self.stored]
        return ["float32", "bf16", "int8", "int4"] if self.kind == "cpu" else ["bf16", "int8", "int4"]

    def _resident_layers(self) -> int:
        """How many layers fit the device beside all else, with a twentieth of it left free."""
        layers, budget = self.checked.config.decoder.num_hidden_layers, 0.95 * self.free
        none, one = (self.estimate("offload", n).total for n in (0, 1))
        return int(min(max(0, (budget - none) / max(1, one - none)), max(0, layers - 2)))

    def _names(self) -> str:
        return " + ".join(map(str, self.devices))
