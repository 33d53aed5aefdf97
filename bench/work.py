"""How much arithmetic and memory traffic the engine's calls take at least, by formulas: the roofline's two axes.

FLOPs count two for a multiplication and its addition, in matrix products, convolutions and attention. Bytes are a lower
bound: every weight that a call uses once, the cached keys and values it looks at, those it writes, and hidden states in
and out of each layer; what a kernel might keep on the chip is not counted.

Legend: U understanding tokens; G generation tokens; C hidden size; P patches.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from irg.engine.cache import Context
from irg.engine.runner import Branches, Runner
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.unified import UnifiedModel
from irg.model.weights.quantize import QuantizedLinear, part_shapes
from irg.model.weights.quantized_product import Quantization, choose_method
from irg.sequence.layout import extent
from irg.sequence.parts import Latents, Part, Patches, Text

STAGES = ("prefill", "decode", "denoise", "vae")


@dataclass
class Work:
    """FLOPs, and bytes moved."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Size:
    """Multiplications of one token, and bytes, of a group of linear layers."""

    products: int
    bytes: int


def linear_size(modules: Iterator[nn.Module]) -> Size:
    """Of all linear layers among ``modules``."""
    products = size = 0
    for module in modules:
        if isinstance(module, nn.Linear):
            products += module.weight.numel()
            size += module.weight.nbytes
        elif isinstance(module, QuantizedLinear):
            products += (2 if module.kind == "int4" else 1) * module.qdata.numel()
            size += sum(buffer.nbytes for buffer in module.buffers())
    return Size(products, size)


def product_bytes(kind: Quantization | None, tokens: int, inputs: int, outputs: int, capability: int = 90) -> int:
    """Bytes that one product moves as :mod:`irg.model.weights.quantized_product` computes it in bfloat16 (None: of a
    weight that is not quantized), when nothing of it is in a cache before."""
    size = 2 * tokens * (inputs + outputs)
    if kind is None:
        return size + 2 * inputs * outputs
    shapes = part_shapes(inputs, outputs, kind)
    assert shapes is not None
    size += sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    method = choose_method(kind, tokens, inputs, outputs, torch.bfloat16, False, capability)
    if method == "fp8":
        return size + 2 * tokens * (inputs + 4)  # rounded activations and their scales are written and read
    return size if method == "stored" else size + 4 * inputs * outputs  # the dequantized weight is written and read


class NetworkWork:
    """The formulas for one unified model."""

    def __init__(self, model: UnifiedModel) -> None:
        self.config, self.item = model.config, model.dtype.itemsize
        layers = list(model.language_model.model.layers.named_modules())
        self.understanding = linear_size(m for name, m in layers if "_moe_gen" not in name)
        self.generation = linear_size(m for name, m in layers if "_moe_gen" in name)
        self.head = linear_size(iter([model.language_model.lm_head]))
        self.vit = linear_size(iter([*model.vit_model.modules(), *model.connector.modules()]))
        self.latent = linear_size(iter([model.vae2llm]))
        self.velocity = linear_size(iter([model.llm2vae]))
        self.time = linear_size(model.time_embedder.modules())
        decoder = model.config.decoder
        self.layers, self.hidden = decoder.num_hidden_layers, decoder.hidden_size
        self.query = decoder.num_attention_heads * decoder.head_dim
        self.keys = 2 * decoder.num_key_value_heads * decoder.head_dim * self.item * self.layers  # bytes of a slot

    def forward(self, blocks: Sequence[tuple[int, int]], und: int, gen: int) -> Work:
        """The decoder over new tokens; ``blocks`` are (new tokens, slots looked at)."""
        flops = 2 * (self.understanding.products * und + self.generation.products * gen)
        flops += sum(4 * self.query * n * length for n, length in blocks) * self.layers
        size = self.understanding.bytes + (self.generation.bytes if gen else 0)
        size += sum(self.keys * (n + length) for n, length in blocks)
        size += 2 * (und + gen) * self.hidden * self.item * self.layers
        return Work(flops, size)

    def linear(self, part: Size, tokens: int) -> Work:
        """A group of linear layers over tokens."""
        return Work(2 * part.products * tokens, part.bytes)

    def read_patches(self, lens: Sequence[int]) -> Work:
        """The ViT over images of ``lens`` patches."""
        vit = self.config.vit
        attention = sum(4 * vit.hidden_size * n * n for n in lens) * vit.num_hidden_layers
        return self.linear(self.vit, sum(lens)) + Work(attention, 0) if lens else Work()


def autoencoder_work(autoencoder: Autoencoder, z_channels: int, height: int, width: int, decode: bool) -> Work:
    """One image through the autoencoder: FLOPs by PyTorch's own counter on the meta device; bytes are the weights."""
    parameter = next(autoencoder.parameters())
    half = autoencoder.decoder if decode else autoencoder.encoder
    assert isinstance(half, nn.Module)
    down = autoencoder.downsample
    shape = (1, z_channels, height // down, width // down) if decode else (1, 3, height, width)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        state = {key: torch.empty_like(value, device="meta") for key, value in half.state_dict().items()}
        torch.func.functional_call(half, state, (torch.empty(shape, dtype=parameter.dtype),))
    return Work(counter.get_total_flops(), sum(p.nbytes for p in half.parameters()))


@dataclass
class Counted:
    """Work by stage."""

    stages: dict[str, Work] = field(default_factory=lambda: {stage: Work() for stage in STAGES})

    def add(self, stage: str, work: Work) -> None:
        """Count more."""
        self.stages[stage] = self.stages[stage] + work


class CountingRunner(Runner):
    """A runner that counts its work in ``counted``; ``stage`` is called around the autoencoder (see ``gpu_7b.py``)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.counted = Counted()
        self.work = NetworkWork(self.model)
        self._images: dict[Any, Work] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Where a stage begins and ends."""
        yield

    def extend(self, items: Sequence[tuple[Context, Sequence[Part]]]) -> Tensor | None:
        blocks, latents, patches = [], 0, list[int]()
        for context, parts in items:
            if parts:
                end = context.length
                for text, group in groupby(parts, key=lambda part: isinstance(part, Text)):
                    sizes = [extent(part)[0] for part in group]
                    for n in [sum(sizes)] if text else sizes:  # texts that follow each other are one block
                        end += n
                        blocks.append((n, end))
                latents += sum(part.tokens for part in parts if isinstance(part, Latents))
                patches += [part.tokens for part in parts if isinstance(part, Patches)]
        if blocks:
            total = sum(n for n, _ in blocks)
            work = self.work.forward(blocks, total - latents, latents) + self.work.read_patches(patches)
            if latents:
                work += self.work.linear(self.work.latent, latents) + self.work.linear(self.work.time, 1)
            self.counted.add("prefill", work)
        return super().extend(items)

    def feed(self, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]]) -> Tensor:
        tokens = len(texts_BN[0])
        blocks = [(tokens, context.length + tokens) for context in contexts]
        total = tokens * len(contexts)
        self.counted.add("decode", self.work.forward(blocks, total, 0) + self.work.linear(self.work.head, total))
        return super().feed(contexts, texts_BN)

    def branches(self, blocks: Sequence[tuple[Context, tuple[int, int]]], times: Sequence[float] = ()) -> Branches:
        return _CountedBranches(self, blocks, times)

    def read_latents(self, pixels_B3HW: Tensor, eps: Tensor | None = None) -> Tensor:
        self._count_images(len(pixels_B3HW), pixels_B3HW.shape[2], pixels_B3HW.shape[3], decode=False)
        with self.stage("vae"):
            return super().read_latents(pixels_B3HW, eps)

    def decode_latents(self, latents_BChw: Tensor) -> Tensor:
        down = self.autoencoder.downsample
        self._count_images(len(latents_BChw), latents_BChw.shape[2] * down, latents_BChw.shape[3] * down, decode=True)
        with self.stage("vae"):
            return super().decode_latents(latents_BChw)

    def _count_images(self, count: int, height: int, width: int, decode: bool) -> None:
        key = (height, width, decode)
        if key not in self._images:
            channels = self.config.autoencoder.z_channels
            self._images[key] = autoencoder_work(self.autoencoder, channels, height, width, decode)
        one = self._images[key]
        self.counted.add("vae", Work(count * one.flops, one.bytes))


class _CountedBranches(Branches):
    def __init__(
        self, runner: CountingRunner, blocks: Sequence[tuple[Context, tuple[int, int]]], times: Sequence[float]
    ) -> None:
        self.counting = runner
        sizes = [rows * columns for _, (rows, columns) in blocks]
        lengths = [(n + 2, context.length + n + 2) for (context, _), n in zip(blocks, sizes, strict=True)]
        work, total = runner.work, sum(sizes)
        self.one = work.forward(lengths, 2 * len(blocks), total)
        for part in (work.latent, work.velocity):
            self.one += work.linear(part, total)
        self.one += work.linear(work.time, 1)
        super().__init__(runner, blocks, times)

    def velocity(self, noisy_GD: Tensor, times_G: Tensor) -> Tensor:
        self.counting.counted.add("denoise", self.one)
        return super().velocity(noisy_GD, times_G)
