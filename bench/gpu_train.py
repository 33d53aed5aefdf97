"""Training steps at BAGEL-7B's size with random weights: ``python bench/gpu_train.py``.

LoRA on bfloat16 weights, LoRA on weights of 4 bits (NF4), and all weights of a network that is narrower so that it
fits. Prints tokens a second, the share of the device's peak (MFU, by the operations that ``irg.learning.costs``
counts), and peak memory. Packs hold samples of all six modes; what is read from files, and by the autoencoder, is left
out.
"""

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import train
from gpu_7b import is_missing, measure_machine, random_networks, synchronize
from irg.files import write_json
from irg.learning import parallel, setup
from irg.learning.costs import peak_flops, step_flops
from irg.learning.data.packing import Attention, Pack, assemble
from irg.learning.objective import flow_targets, losses, total
from irg.model.network.config import CONFIGS, ModelConfig
from irg.model.network.flex_attention import FlexAttention
from irg.model.network.lora import LoraConfig, add_adapters
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.network.unified import UnifiedModel
from irg.model.weights.initialize import narrower
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Patches, Target

How = Literal["lora", "qlora", "full"]


@dataclass
class Options:
    """Time training steps with random weights."""

    config: Literal["bagel_7b", "tiny"] = "bagel_7b"
    """Sizes of the network."""
    how: tuple[How, ...] = ("lora", "qlora", "full")
    """lora: adapters on bfloat16 weights; qlora: on weights of 4 bits; full: all weights."""
    full_narrow: int = 2
    """Divide the widths of the network whose weights are all trained by this: float32 weights and moments have to
    fit."""
    rank: int = 16
    """Of the adapters."""
    tokens: int = 20_000
    """Of a pack, at most."""
    recompute: Literal["none", "selective", "full"] = "full"
    """Activation checkpointing."""
    compile: bool = False
    """Compile the layers."""
    steps: int = 5
    """Timed, after two to warm up; the median counts."""
    device: str = "cuda"
    json: Path | None = None
    """Write all numbers to this file."""


@dataclass
class Result:
    """The median step of one way to train."""

    how: How
    parameters: int
    trained: int
    tokens: int
    seconds: float
    tokens_per_second: float
    flops: float
    mfu: float  # of the device's peak, or of its measured rate where that is not known
    peak_bytes: int


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def prepared(options: Options, how: How, device: torch.device) -> UnifiedModel:
    """The network, ready to train."""
    config = CONFIGS[options.config]()
    if how == "full" and options.config == "bagel_7b":
        config = narrower(config, options.full_narrow)
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda and how != "full" else torch.float32
    model, _ = random_networks(config, "bf16", device, dtype)
    model.train()
    if how == "full":
        model.requires_grad_(True)
        model.latent_pos_embed.requires_grad_(False)
        model.vit_pos_embed.requires_grad_(False)
    else:
        adapter = LoraConfig(options.rank, 2.0 * options.rank, TARGETS)
        add_adapters(model, adapter)
        if how == "qlora":
            setup.quantize(model, adapter)
    parallel.recompute(model, options.recompute)
    if options.compile:
        for layer in model.language_model.model.layers:
            layer.compile()
    return model


def packs(options: Options, config: ModelConfig, device: torch.device) -> Iterator[tuple[Pack, torch.Tensor]]:
    """The same pack again and again, noised anew, with the velocities to learn."""
    case = train.build_samples(config, options.tokens)
    attention: Attention = FlexAttention if device.type == "cuda" else SharedPrefixAttention
    layouts = [lay_out(sample, config.grammar) for sample in case.samples]
    parts = [part for sample in case.samples for part in sample]
    patches = [case.patches[p.content] for p in parts if isinstance(p, Patches)]
    latents = [case.latents[p.content] for p in parts if isinstance(p, Latents | Target)]
    while True:
        normals = iter(case.normals)
        pack = assemble(layouts, parts, patches, latents, lambda normals=normals: next(normals), attention=attention)
        pack = pack.to(device)
        assert pack.clean_GD is not None
        flow = flow_targets(pack.clean_GD, torch.randn_like(pack.clean_GD), pack.normal_G, 4.0)
        pack.batch.latents_GD, pack.batch.times_G = flow.noisy_GD, flow.times_G
        yield pack, flow.velocity_GD


def measure(options: Options, how: How, device: torch.device) -> Result:
    """A few steps of packing, forward, backward and AdamW."""
    model = prepared(options, how, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device.type == "cuda")
    cuda, seconds = device.type == "cuda", list[float]()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    made = packs(options, model.config, device)
    for _ in range(options.steps + 2):
        synchronize(device)
        started = time.perf_counter()
        pack, velocity = next(made)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda and how == "full"):
            rows = (pack.loss_rows_L, pack.labels_L, pack.target_rows_M)
            total(losses(model, pack.batch, pack.attend, velocity, *rows))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds[2:])[options.steps // 2]
    assert pack.work is not None
    flops = step_flops(model.config, pack.work, adapters=how != "full")
    peak = peak_flops(device) or measure_machine(device, torch.bfloat16 if cuda else torch.float32).flops
    return Result(
        how,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in trained),
        pack.tokens,
        median,
        pack.tokens / median,
        flops,
        flops / median / peak,
        torch.cuda.max_memory_allocated(device) if cuda else 0,
    )


def main(options: Options) -> int:
    """Print a Markdown table; a way that fails is told and passed over."""
    device = torch.device(options.device)
    if is_missing(device):
        return 2
    print("| trained | parameters | tokens a pack | s a step | tokens/s | TFLOP a step | MFU | peak GB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    results = []
    for how in options.how:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            r = measure(options, how, device)
        except (ValueError, torch.OutOfMemoryError) as error:
            print(f"| {how} | {' '.join(str(error).split())[:150]} |", flush=True)
            continue
        results.append(r)
        print(
            f"| {how} | {r.trained / 1e6:.1f} M of {r.parameters / 1e9:.2f} B | {r.tokens} | {r.seconds:.2f} | "
            f"{r.tokens_per_second:.0f} | {r.flops / 1e12:.3g} | {100 * r.mfu:.0f} % | {r.peak_bytes / 1e9:.1f} |",
            flush=True,
        )
    if options.json:
        write_json(
            options.json,
            {"options": asdict(options) | {"json": None}, "results": [asdict(result) for result in results]},
        )
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
