"""How many kernels a step of drawing and a token of text launch: ``python bench/kernels.py --model mini``.

Counted by PyTorch's profiler: on a GPU what ran on it, on a CPU the operations without others inside that compute or
copy something. A launch takes the host some microseconds, whatever it computes, so few are wanted.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch._inductor import config as inductor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from engine import Options as CaseOptions
from engine import build_case
from irg.engine.denoise import Denoiser
from irg.engine.engine import Engine
from irg.engine.ngram_drafter import MAX_DRAFT_TOKENS
from irg.engine.ops import Draw, Program, Say
from irg.engine.runner import Runner
from irg.engine.settings import IMPROVING, DrawSettings
from irg.files import write_json

# operations that move or compute nothing
FREE = (
    *(
        "alias",
        "as_strided",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "item",
        "lift_fresh",
        "narrow",
    ),
    *("permute", "reshape", "resize_", "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "t"),
    *("transpose", "unbind", "unflatten", "unfold", "unsqueeze", "view", "_reshape_alias", "_local_scalar_dense"),
    *("lift_fresh", "is_nonzero", "resolve_conj", "resolve_neg", "result_type"),
)
STEPS = 6


@dataclass
class Options:
    """Count kernels."""

    model: str = "mini"
    """mini, mid, tiny (random weights), or a model folder."""
    device: str = "cpu"
    """cpu or cuda."""
    requests: int = 1
    """That draw together."""
    size: int = 0
    """Height and width; default: the model's."""
    compile: bool = False
    """Compile writing and drawing."""
    top: int = 8
    """Kernels that are named."""
    json: Path | None = None
    """Write all numbers to this file."""


def kernels(call: Callable[[], Any], device: torch.device) -> Counter[str]:
    """The kernels of a call, by name."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        call()
        if cuda:
            torch.cuda.synchronize(device)
    events = profiler.events() or []
    if cuda:
        return Counter(event.name for event in events if event.device_type == DeviceType.CUDA)
    names = [event.name for event in events if not event.cpu_children]
    fused = ["fused" for name in names if "cpp_fused" in name]
    leaves = [name.removeprefix("aten::") for name in names if name.startswith("aten::")]
    return Counter([*fused, *(name for name in leaves if name not in FREE)])


def drawing(size: int) -> Program:
    """An image with both kinds of guidance."""
    system = yield Say((5, 6, 7))
    prompt = yield Say((8, 9, 10, 11))
    settings = DrawSettings.from_dict(IMPROVING.to_dict() | {"num_timesteps": STEPS + 1, "cfg_text_scale": 4.0})
    return (yield Draw(size, size, settings, prompt.handles, system.handles))


def count(options: Options) -> dict[str, Counter[str]]:
    """Kernels of a flow step of all images, and of a token of text."""
    case, device = (
        build_case(CaseOptions(options.model, options.requests, num_timesteps=STEPS)),
        torch.device(options.device),
    )
    runner = Runner(case.model.to(device), case.autoencoder.to(device))
    if options.compile:
        inductor.cpp.enable_kernel_profile = True  # or the profiler does not see a CPU's fused kernels
    runner.accelerate(MAX_DRAFT_TOKENS + 1, options.compile)
    counted: list[Counter[str]] = []
    step = Denoiser.step

    def profiled(self: Denoiser, requests: Any) -> None:
        counted.append(kernels(lambda: step(self, requests), device))

    Denoiser.step = profiled  # type: ignore[method-assign]
    try:
        size = options.size or case.jobs[0].height
        Engine(runner).run([(drawing(size), seed) for seed in range(options.requests)])
    finally:
        Denoiser.step = step  # type: ignore[method-assign]
    contexts = [runner.cache.new() for _ in range(options.requests)]
    for _ in range(2):  # the first time allocates
        token = kernels(lambda: runner.feed(contexts, [[5]] * options.requests), device)
    return {"flow step": counted[-1], "token": token}


def main(options: Options) -> int:
    """Print the counts and the most frequent kernels."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: --device cpu counts operations", file=sys.stderr)
        return 2
    result = count(options)
    print(f"{options.requests} request(s) of {options.model} on {options.device}")
    for what, names in result.items():
        often = ", ".join(f"{name} {n}" for name, n in names.most_common(options.top))
        print(f"{what}: {names.total()} kernels ({often})")
    if options.json:
        write_json(options.json, {"options": asdict(options) | {"json": None}, "kernels": result})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
