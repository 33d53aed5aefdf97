"""The loop's cost at BAGEL-7B's size, counted and not measured: ``python bench/roofline.py``.

How seconds and memory grow with requests at once, size, rounds and thoughts, one setting changed at a time. Seconds are
the least by the roofline: of each stage the larger of counted FLOPs over a rate of products, and of counted bytes over
a rate of copies (``work.py``). Memory is what the plan of ``irg generate`` says. Weights stay on the meta device.

Lengths are slots of the cache: a text has two tokens around it, and so has an image.
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from irg.engine.flow import time_grid
from irg.engine.guidance import scales_at
from irg.engine.settings import IMPROVING, DrawSettings
from irg.files import write_json
from irg.model.network.autoencoder import build_autoencoder
from irg.model.network.config import CONFIGS, ModelConfig
from irg.model.network.unified import UnifiedModel
from irg.model.placement.memory_plan import MemoryEstimate, RequestShape, estimate
from irg.model.weights.checkpoint import CheckedFolder
from work import STAGES, Counted, NetworkWork, Work, autoencoder_work


@dataclass(frozen=True)
class Loop:
    """What is asked: so many equal requests together."""

    requests: int = 1
    size: int = 1024
    rounds: int = 1
    thinking_tokens: int = 300
    num_timesteps: int = 50
    system: int = 120
    prompt: int = 40


@dataclass
class Options:
    """Count what the loop costs at BAGEL-7B's size."""

    config: Literal["bagel_7b", "mini", "tiny"] = "bagel_7b"
    """Sizes of the network."""
    flops: float = 683e12
    """A second, in products: measured on an H100 80GB in bfloat16 for seconds on end."""
    bandwidth: float = 2.94e12
    """Bytes a second, of a copy: measured there."""
    requests: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    sizes: tuple[int, ...] = (128, 256, 512, 1024)
    rounds: tuple[int, ...] = (1, 2, 3, 4)
    thoughts: tuple[int, ...] = (50, 100, 200, 300, 500, 1000, 2000)
    """Tokens of each text."""
    json: Path | None = None
    """Write all numbers to this file."""


class LoopWork:
    """The work of loops of one network, call by call as the engine makes them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> None:
        with torch.device("meta"):
            self.model = UnifiedModel(config).to(dtype)
            self.autoencoder = build_autoencoder(config.autoencoder).to(dtype)
        self.config, self.network = config, NetworkWork(self.model)
        self._images: dict[tuple[int, bool], Work] = {}

    def count(self, loop: Loop) -> dict[str, Work]:
        """By stage."""
        counted, text = Counted(), loop.thinking_tokens + 2
        latents = (loop.size // self.config.image_stride) ** 2
        width, height = self.config.vit_resize.size(loop.size, loop.size)
        patches = (width // self.config.vit.patch_size) * (height // self.config.vit.patch_size)
        said = loop.system + 2 + loop.prompt + 2
        main, image_free = said, said
        counted.add("prefill", self.extend(loop.requests, 0, [said]))
        for turn in range(loop.rounds + 1):
            if turn:
                counted.add("vae", self.pixels(loop, decode=False))
                seen = self.extend(loop.requests, main, [latents + 2, patches + 2], latents, patches)
                counted.add("prefill", seen)
                main += latents + patches + 4
            text_free = main if turn else loop.system + 2
            for n in range(text):
                counted.add("decode", self.token(loop.requests, main + n + 1))
            main += text
            if turn:
                counted.add("prefill", self.extend(loop.requests, image_free, [text]))
            image_free += text
            settings = IMPROVING if turn else DrawSettings()
            contexts = [main, text_free, image_free][: 3 if turn else 2]
            scales = (settings.cfg_text_scale, settings.cfg_img_scale, settings.cfg_interval)
            for time in time_grid(loop.num_timesteps, settings.timestep_shift)[:-1]:
                guided = scales_at(time, *scales)[0] > 1
                counted.add("denoise", self.velocity(loop.requests, contexts if guided else [main], latents))
            counted.add("vae", self.pixels(loop, decode=True))
        return counted.stages

    def extend(self, requests: int, length: int, new: list[int], latents: int = 0, patches: int = 0) -> Work:
        """Texts, or an image's latents and patches, appended to contexts of a length."""
        blocks, network = [], self.network
        for n in new:
            length += n
            blocks.append((n, length))
        work = network.forward(blocks * requests, (sum(new) - latents) * requests, latents * requests)
        if latents:
            work += network.read_patches([patches] * requests)
            work += network.linear(network.latent, latents * requests) + network.linear(network.time, 1)
        return work

    def token(self, requests: int, length: int) -> Work:
        """The next token of each request, with what it looks at."""
        blocks = [(1, length)] * requests
        return self.network.forward(blocks, requests, 0) + self.network.linear(self.network.head, requests)

    def velocity(self, requests: int, contexts: list[int], latents: int) -> Work:
        """One update of an image, guided by contexts of these lengths."""
        blocks = [(latents + 2, length + latents + 2) for length in contexts] * requests
        total, network = latents * len(blocks), self.network
        work = network.forward(blocks, 2 * len(blocks), total)
        for part, tokens in ((network.latent, total), (network.velocity, total), (network.time, 1)):
            work += network.linear(part, tokens)
        return work

    def pixels(self, loop: Loop, decode: bool) -> Work:
        """An image of each request through the autoencoder: decoded together, read one by one."""
        key, channels = (loop.size, decode), self.config.autoencoder.z_channels
        if key not in self._images:
            self._images[key] = autoencoder_work(self.autoencoder, channels, loop.size, loop.size, decode)
        one = self._images[key]
        return Work(loop.requests * one.flops, one.bytes * (1 if decode else loop.requests))

    def memory(self, loop: Loop) -> MemoryEstimate:
        """What the memory plan says of bf16 weights on a GPU."""
        folder = CheckedFolder(self.config, self.model, self.autoencoder, Path(), Path(), {}, {})
        shape = RequestShape(loop.size, loop.size, loop.thinking_tokens, loop.rounds, loop.requests)
        return estimate(folder, "bf16", shape)


def least_seconds(work: Work, options: Options) -> float:
    """By the roofline."""
    return max(work.flops / options.flops, work.bytes / options.bandwidth)


def rows(options: Options) -> dict[str, list[Loop]]:
    """What is counted, by the setting that changes."""
    changes = {
        "requests": options.requests,
        "size": options.sizes,
        "rounds": options.rounds,
        "thinking_tokens": options.thoughts,
    }
    return {name: [replace(Loop(), **{name: value}) for value in values] for name, values in changes.items()}


def main(options: Options) -> int:
    """Print a Markdown table."""
    counting = LoopWork(CONFIGS[options.config]())
    points = []
    print(f"| what | how many | {' | '.join(STAGES)} | least s | TFLOP | cache GB | GB |")
    print("|---|" + "---:|" * (len(STAGES) + 5))
    for name, loops in rows(options).items():
        for loop in loops:
            stages, memory = counting.count(loop), counting.memory(loop)
            seconds = {stage: least_seconds(work, options) for stage, work in stages.items()}
            tflop = sum(work.flops for work in stages.values()) / 1e12
            value, total = getattr(loop, name), sum(seconds.values())
            points.append(
                {"what": name, "value": value, "seconds": total, "stages": seconds, "tflop": tflop}
                | {"cache": memory.cache, "bytes": memory.total}
            )
            cells = [f"{seconds[stage]:.2f}" for stage in STAGES] + [f"{total:.2f}", f"{tflop:.4g}"]
            cells += [f"{memory.cache / 1e9:.2f}", f"{memory.total / 1e9:.1f}"]
            print(f"| {name} | {value} | {' | '.join(cells)} |", flush=True)
    if options.json:
        write_json(options.json, {"options": asdict(options) | {"json": None}, "points": points})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
