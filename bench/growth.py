"""How cost grows with requests at once, size, rounds and thoughts: ``python bench/growth.py``.

The loop of a network with random weights, one setting changed at a time. Beside seconds and memory stands the work
(operations counted by ``work.py``): where seconds per operation rise along a row, something grows faster than the work.
"""

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from gpu_7b import GpuOptions, new_runner, random_networks, run
from irg.files import write_json
from irg.model.network.config import CONFIGS, ModelConfig
from irg.model.weights.initialize import narrower
from irg.sequence.images import ResizeRule


@dataclass
class Options:
    """Run the loop at several sizes of one thing."""

    config: Literal["bagel_7b", "mini", "tiny"] = "mini"
    """Sizes of the network; mini and tiny are let draw up to 1024 x 1024."""
    narrow: int = 1
    """Divide its widths by this."""
    requests: tuple[int, ...] = (1, 4, 16, 64)
    sizes: tuple[int, ...] = (128, 256, 512, 1024)
    rounds: tuple[int, ...] = (1, 2, 4)
    thoughts: tuple[int, ...] = (50, 200, 800, 2000)
    """Tokens of each text."""
    num_timesteps: int = 5
    """Points of the time grid."""
    repeats: int = 1
    """Runs of each; the fastest counts."""
    processor_time: bool = False
    """Measure seconds of the processor, not the clock: on a busy machine."""
    device: str = "cpu"
    json: Path | None = None
    """Write all numbers to this file."""


@dataclass
class Point:
    """One run. ``bytes`` are the peak that PyTorch allocated on a GPU, on a CPU those of the cache; ``relative`` is the
    time per operation over that of the row's first run."""

    what: str
    value: int
    seconds: float
    tflop: float
    bytes: int
    relative: float = 1.0


def config_of(options: Options) -> ModelConfig:
    """The network's, with room for large images."""
    config = narrower(CONFIGS[options.config](), options.narrow)
    if options.config == "bagel_7b":
        return config
    patch = config.vit.patch_size
    return replace(
        config,
        vit=replace(config.vit, image_size=70 * patch),
        max_latent_size=64,
        vit_max_num_patch_per_side=70,
        vae_resize=ResizeRule(1024, 64, config.image_stride),
        vit_resize=ResizeRule(70 * patch, patch, patch),
    )


def measure(options: Options) -> list[Point]:
    """All rows; the other settings are the first of each."""
    device = torch.device(options.device)
    networks = random_networks(config_of(options), "bf16", device, torch.float32)
    base = GpuOptions(
        size=options.sizes[0],
        requests=options.requests[0],
        rounds=options.rounds[0],
        thinking_tokens=options.thoughts[0],
        device=options.device,
        dtype="float32",
    )
    rows = {"requests": options.requests, "size": options.sizes, "rounds": options.rounds}
    points: list[Point] = []
    run(new_runner(networks, base), base, "bf16", "irg", 2)  # warms up
    for name, values in (*rows.items(), ("thinking_tokens", options.thoughts)):
        first = len(points)
        for value in values:
            changed = replace(base, **{name: value})  # type: ignore[arg-type]
            runs = [
                run(new_runner(networks, changed), changed, "bf16", "irg", options.num_timesteps)
                for _ in range(options.repeats)
            ]
            result = min(runs, key=lambda one: one.total)
            tflop = sum(work.flops for work in result.work.values()) / 1e12
            point = Point(name, value, result.total, tflop, max(result.peak.values()) or result.cache)
            points.append(point)
            point.relative = (point.seconds / point.tflop) / (points[first].seconds / points[first].tflop)
            print(
                f"| {name} | {value} | {point.seconds:.2f} | {tflop:.3g} | {point.relative:.2f} | "
                f"{point.bytes / 1e6:.1f} |",
                flush=True,
            )
    return points


def main(options: Options) -> int:
    """Print a Markdown table."""
    if options.processor_time:
        time.perf_counter = time.process_time  # of the stages, too
    print("| what | how many | s | TFLOP | s per operation | MB |\n|---|---:|---:|---:|---:|---:|")
    points = measure(options)
    if options.json:
        report = {"options": asdict(options) | {"json": None}, "points": [asdict(point) for point in points]}
        write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
