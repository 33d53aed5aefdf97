"""Attention over a training pack on a CPU: a dense mask per sample against images that share their context's keys.

``python bench/pack_attention.py`` lays out a pack of irg-mini's size (first and second images, five noised copies
each), compares the outputs of both, and times forward and backward of one layer, in float32 and bfloat16, alternating.
"""

import time
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from irg.learning.modes import EncodedImage, EncodedTrajectory, write
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.network.token_batch import StreamOrder
from irg.sequence import Grammar, SpecialTokens, TokenLayout, lay_out
from irg.sequence.parts import noised_copies

HEADS, SIZE = 8, 32
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Options:
    """How much is timed."""

    firsts: int = 10
    """Samples that draw a first image."""
    seconds: int = 6
    """Samples that look at one and draw a second one."""
    copies: int = 5
    grid: int = 8
    """Latent tokens on a side of an image."""
    runs: int = 7
    threads: int = 2


def pack(options: Options) -> list[TokenLayout]:
    """Layouts of a pack, with texts of irg-mini's usual lengths."""
    image = EncodedImage(0, (options.grid, options.grid), (8, 8))
    words = tuple(range(5, 205))
    row = EncodedTrajectory(words[:4], words[:14], words[:21], image, words[:80], image)
    grammar = Grammar(SpecialTokens(0, 1, 2, 3), latent_side=options.grid, patch_side=8)
    samples = [write("initial_full", row)] * options.firsts + [write("improving_full", row)] * options.seconds
    return [lay_out(noised_copies(sample, options.copies), grammar) for sample in samples]


def run(attend: PackedAttention | SharedPrefixAttention, qkv: list[Tensor]) -> tuple[float, Tensor]:
    """Seconds of a forward and backward, and the output."""
    for x in qkv:
        x.grad = None
    begun = time.perf_counter()
    out = attend(0, *qkv)
    out.sum().backward()
    return time.perf_counter() - begun, out.detach()


def main(options: Options) -> None:
    """Compare, time, print."""
    torch.set_num_threads(options.threads)
    layouts = pack(options)
    order, tokens = StreamOrder.of(layouts), sum(map(len, layouts))
    ways = {"dense": PackedAttention(layouts, order), "shared": SharedPrefixAttention(layouts, order)}
    print(f"{tokens} tokens, {len(layouts)} samples, {options.threads} threads")
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        qkv = [torch.randn(tokens, HEADS, SIZE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
        outputs = [run(attend, qkv)[1].float() for attend in ways.values()]  # also warms up
        off = float((outputs[0] - outputs[1]).abs().max())
        assert off < TOLERANCE[dtype], f"the two differ by {off}"
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.runs):
            for name, attend in ways.items():
                spent[name].append(run(attend, qkv)[0])
        dense, shared = (sorted(spent[name])[options.runs // 2] * 1000 for name in ways)
        print(f"{dtype}: dense {dense:.1f} ms, shared {shared:.1f} ms, {dense / shared:.2f}x (differ by {off:.1e})")


if __name__ == "__main__":
    main(tyro.cli(Options))
