"""The loop at BAGEL-7B's size in the engine and the straight way, on a GPU: ``python bench/gpu_straight.py``.

The straight way is ``straight.py``: contexts concatenated and deeply copied, guidance one pass after the other, texts
prefilled again. Random weights, the same given texts and noise, few time points; the straight way looks at the images
that the engine drew, so that later latents can be compared, too. Both alternate in one process, after a warm-up.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
import tyro
from PIL import Image
from torch import Tensor

from engine import TOLERANCE, replayed
from gpu_7b import Asked, GpuOptions, StagedRunner, Stages, ask, is_missing, new_runner, random_networks, synchronize
from irg.engine.engine import Engine
from irg.engine.events import ImageDone, RequestFailed, TextDone
from irg.model.network.config import CONFIGS
from irg.model.weights.initialize import narrower
from irg.reasoning.protocols.irg import IRG
from straight import Ids, Straight
from work import STAGES, Counted


@dataclass
class StraightOptions(GpuOptions):
    """Time the loop in the engine and the straight way, with random weights of BAGEL-7B's size."""

    num_timesteps: int = 10
    """Points of the time grid."""
    thinking_tokens: int = 100
    """Of every text."""


@dataclass
class Run:
    """What one side gave, and what it took: seconds, and of a GPU the most bytes allocated, by stage."""

    side: Literal["engine", "straight"]
    total: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    texts: list[Ids] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    def timed(self, device: torch.device, do: Callable[[Stages], None]) -> "Run":
        """Do it, between two moments at which the device is idle."""
        stages = Stages(device)
        gc.collect()
        synchronize(device)
        started = time.perf_counter()
        do(stages)
        synchronize(device)
        self.total, self.seconds, self.peak = time.perf_counter() - started, stages.seconds, stages.peak
        return self


def by_engine(runner: StagedRunner, asked: Asked) -> Run:
    """The request in the engine."""
    run = Run("engine")

    def do(stages: Stages) -> None:
        runner.stages, runner.counted = stages, Counted()
        engine = Engine(runner, asked.tokenizer, speculative=False)
        engine.scheduler.clock = stages.stage  # type: ignore[method-assign]
        session = engine.session()
        session.add(replayed(IRG().program(asked.job), asked.texts), seed=0)
        for event in session:
            if isinstance(event, RequestFailed):
                raise event.error
            if isinstance(event, TextDone):
                run.texts.append(event.ids)
            elif isinstance(event, ImageDone):
                run.latents.append(event.latents)
                run.images.append(event.image)

    return run.timed(runner.model.device, do)


def straight(runner: StagedRunner, asked: Asked, shown: Sequence[Image.Image]) -> Run:
    """The request the straight way, on the same networks."""
    run = Run("straight")
    way = Straight(runner.model, runner.autoencoder, asked.tokenizer)

    def do(stages: Stages) -> None:
        way.clock = stages.stage  # type: ignore[method-assign]
        result = way.run(asked.job, 0, asked.texts, shown)
        run.texts, run.latents, run.images = result.texts, result.latents, result.images

    return run.timed(runner.model.device, do)


def both(runner: StagedRunner, asked: Asked) -> tuple[Run, Run]:
    """One run of each: straight, engine."""
    ours = by_engine(runner, asked)
    return straight(runner, asked, ours.images), ours


def apart(one: Run, two: Run) -> list[float]:
    """The largest difference of each turn's latents."""
    pairs = zip(one.latents, two.latents, strict=True)
    return [float((a.float().cpu() - b.float().cpu()).abs().max()) for a, b in pairs]


def table(way: Run, ours: Run) -> str:
    """Markdown: seconds by stage, their ratio, the most memory."""
    rows = [(name, way.seconds[name], ours.seconds[name]) for name in STAGES] + [("total", way.total, ours.total)]
    lines = ["| s | straight | engine | ratio |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {a:.3g} | {b:.3g} | {a / b if b else 0:.2f}x |" for name, a, b in rows]
    peaks = [max(side.peak.values()) / 1e9 for side in (way, ours)]
    return "\n".join([*lines, f"| GB | {peaks[0]:.1f} | {peaks[1]:.1f} | {peaks[0] / (peaks[1] or 1):.2f}x |"])


def main(options: StraightOptions) -> int:
    """Print a Markdown table of the fastest runs; 1 where the sides do not agree in float32."""
    device = torch.device(options.device)
    if is_missing(device):
        return 2
    config = narrower(CONFIGS[options.config](), options.narrow)
    networks = random_networks(config, "bf16", device, getattr(torch, options.dtype))
    runner = new_runner(networks, options)
    both(runner, ask(options, config, "irg", points=2))  # warms up
    asked = ask(options, config, "irg", options.num_timesteps)
    pairs = [both(runner, asked) for _ in range(options.repeats)]
    same = all(way.texts == ours.texts for way, ours in pairs)
    differences = [max(turn) for turn in zip(*(apart(*pair) for pair in pairs), strict=True)]
    largest = float(max(latent.abs().max() for latent in pairs[0][1].latents))
    fastest = [min(side, key=lambda run: run.total) for side in zip(*pairs, strict=True)]
    print(table(*fastest))
    print(
        f"texts {'equal' if same else 'DIFFERENT'}; latents, at most {largest:.2g}, differ by turn by at most "
        + ", ".join(f"{difference:.2g}" for difference in differences)
    )
    if options.json:
        bare = [asdict(replace(run, latents=[], images=[], texts=[])) for pair in pairs for run in pair]
        report = {"options": asdict(options) | {"json": None}, "texts_equal": same, "largest_latent": largest}
        options.json.write_text(json.dumps(report | {"differences": differences, "runs": bare}, indent=1) + "\n")
    return int(not same or (options.dtype == "float32" and max(differences) > TOLERANCE))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(StraightOptions, description=__doc__)))
