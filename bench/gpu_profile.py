"""Where a GPU's time goes at BAGEL-7B's size, by stage: ``python bench/gpu_profile.py``.

A short loop (few time points, short texts) runs under PyTorch's profiler after a warm-up. For each stage of the engine:
how often it ran, milliseconds once, the share of them in which no kernel ran (the GPU waited for its host), kernels
launched, and the kernels that took most of the time. The profiler slows the host: idle shares are upper limits.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from gpu_7b import GpuOptions, Stages, is_missing, new_runner, random_networks, run
from irg.model.network.config import CONFIGS
from irg.model.weights.initialize import narrower
from work import STAGES


@dataclass
class ProfileOptions(GpuOptions):
    """Profile a short loop with random weights of BAGEL-7B's size."""

    num_timesteps: int = 4
    """Points of the time grid."""
    thinking_tokens: int = 12
    """Of every text."""
    top: int = 8
    """Kernels that are named."""


class NamedStages(Stages):
    """Names the stages in the profile."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name), record_function(f"stage {name}"):
            yield


@dataclass
class Busy:
    """One stage."""

    times: int = 0
    kernels: Counter[str] = field(default_factory=Counter)  # microseconds by name
    launched: int = 0

    @property
    def seconds(self) -> float:
        """Of all kernels; they run one after the other."""
        return self.kernels.total() / 1e6


def by_stage(events: Sequence[Any]) -> dict[str, Busy]:
    """Kernels by the innermost stage in which the host launched them: its clock need not be the GPU's."""
    stages, spans = dict[str, Busy](), list[tuple[float, float, str]]()
    host = [event for event in events if event.device_type == DeviceType.CPU]
    for event in host:
        if event.name.startswith("stage "):
            name = event.name.removeprefix("stage ")
            spans.append((event.time_range.start, event.time_range.end, name))
            stages.setdefault(name, Busy()).times += 1
    for event in host:
        inside = [span for span in spans if span[0] <= event.time_range.start <= span[1]] if event.kernels else []
        if inside:
            stage = stages[max(inside)[2]]
            stage.launched += len(event.kernels)
            for kernel in event.kernels:
                stage.kernels[kernel.name] += kernel.duration
    _add_replayed(stages, events)
    return stages


def _add_replayed(stages: dict[str, Busy], events: Sequence[Any]) -> None:
    """Count the kernels that no operation of the host launched: CUDA graphs replay them, which only decoding has."""
    on_device = [e for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith("stage ")]
    microseconds, decode = Counter[str](), stages.setdefault("decode", Busy())
    for event in on_device:
        microseconds[event.name] += event.time_range.elapsed_us()
    for stage in stages.values():
        microseconds.subtract(stage.kernels)
    decode.kernels.update(+microseconds)
    decode.launched += len(on_device) - sum(stage.launched for stage in stages.values())


def main(options: ProfileOptions) -> int:
    """Print what each stage does."""
    device = torch.device(options.device)
    if is_missing(device):
        return 2
    config = narrower(CONFIGS[options.config](), options.narrow)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for memory_mode in options.memory_modes:
        networks = random_networks(config, memory_mode, device, getattr(torch, options.dtype))
        runner = new_runner(networks, options)
        for _ in range(2):
            run(runner, options, memory_mode, "irg", options.num_timesteps)
        with profile(activities=activities) as profiler:
            result = run(runner, options, memory_mode, "irg", options.num_timesteps, NamedStages)
        stages = by_stage(profiler.events() or [])
        print(f"\n{memory_mode}{', compiled' if options.compile else ''}: {result.total:.2f} s")
        for name in STAGES:
            stage, seconds = stages.get(name, Busy()), result.seconds[name]
            times = max(1, stage.times)
            idle = f"{100 * (1 - stage.seconds / seconds):.0f} % idle" if stage.launched and seconds else "no kernels"
            often = [f"{key[:60]} {value / 1e3:.1f} ms" for key, value in stage.kernels.most_common(options.top)]
            print(
                f"- {name}: {times} times, {1e3 * seconds / times:.2f} ms each, {idle}, "
                f"{stage.launched / times:.0f} kernels each"
            )
            print("".join(f"    {line}\n" for line in often), end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ProfileOptions, description=__doc__)))
