"""How far each memory mode is from bf16: ``python bench/memory_modes.py --model mini`` (or ``mid``).

Every mode runs the same IRG requests with the texts that bf16 writes, so that images can be compared: PSNR of the
first and of the improved image, 8 bits a channel. Texts are compared greedily, token by token: at how many places of
bf16's own texts a mode would have chosen the same token, and how many texts are the same when it writes alone.
Offload and two devices change no number by design; offload is run to show it.
"""

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from engine import Case, Ids, Options, build_case, replayed
from irg.engine.decode import TextDecoder
from irg.engine.engine import Engine
from irg.engine.events import ImageDone, RequestFailed, TextDone
from irg.engine.ops import Operation, Program, Write
from irg.engine.request import Request
from irg.engine.runner import Runner
from irg.model.placement.memory_plan import MemoryMode, quantization_of
from irg.model.placement.offload import offload_layers
from irg.model.weights.quantize import quantize
from irg.reasoning.protocols.irg import IRG

MEMORY_MODES: tuple[MemoryMode, ...] = ("float32", "int8", "int4", "fp8", "offload")


@dataclass
class MemoryModeOptions:
    """Compare each memory mode's images and texts with bf16's."""

    model: str = "mini"
    """mini, mid (random weights, 512 wide, 12 layers), tiny (a test), or a model folder."""
    prompts: int = 4
    """How many requests."""
    num_timesteps: int = 11
    """Points of the time grid, of both images."""
    size: int | None = None
    """Height and width of the images; default: the model's own."""
    thinking_tokens: int = 40
    """At most, of a text (a trained model ends its own)."""
    memory_modes: tuple[MemoryMode, ...] = MEMORY_MODES
    """Which ones, against bf16."""
    threads: int | None = None
    """Of torch; default: its own choice."""


@dataclass
class Outcome:
    """What one memory mode made of the requests."""

    texts: list[list[Ids]]
    images: list[list[Image.Image]]
    choices: list[list[Ids]]  # the greedy token at every place of the given texts
    megabytes: float
    seconds: float


def case_on(memory_mode: MemoryMode, options: MemoryModeOptions) -> Case:
    """The requests with a model in a memory mode; the weights are the same for all."""
    dtype: Any = "float32" if memory_mode == "float32" else "bfloat16"
    asked = Options(
        model=options.model,
        concurrent=options.prompts,
        num_timesteps=options.num_timesteps,
        dtype=dtype,
        thinking_tokens=options.thinking_tokens if options.model in ("mid", "tiny") else None,
    )
    case = build_case(asked)
    jobs = [
        replace(job, settings=replace(job.settings, temperature=0.0, max_think_tokens=options.thinking_tokens))
        for job in case.jobs
    ]
    if options.size is not None:
        jobs = [replace(job, height=options.size, width=options.size) for job in jobs]
    if (kind := quantization_of(memory_mode)) is not None:
        quantize(case.model, kind)
    if memory_mode == "offload":
        offload_layers(case.model, "cpu")
    return replace(case, jobs=jobs, texts=None)


def run(case: Case, given: list[list[Ids]] | None) -> Outcome:
    """Run all requests, with the given texts or the model's own."""
    held = {t.data_ptr(): t.nbytes for t in (*case.model.parameters(), *case.model.buffers())}
    started = time.perf_counter()
    engine = Engine(Runner(case.model, case.autoencoder), case.tokenizer)
    engine.scheduler.decoder = decoder = _Watching(engine.runner, engine.scheduler.prefiller, engine.scheduler.drafter)
    session = engine.session()
    for i, job in enumerate(case.jobs):
        session.add(replayed(IRG().program(job), given[i] if given else None), seed=i)
    texts: list[list[Ids]] = [[] for _ in case.jobs]
    images: list[list[Image.Image]] = [[] for _ in case.jobs]
    for event in session:
        if isinstance(event, TextDone):
            texts[event.request].append(event.ids)
        elif isinstance(event, ImageDone):
            images[event.request].append(event.image)
        elif isinstance(event, RequestFailed):
            raise event.error
    seconds = time.perf_counter() - started
    alone = texts if given is None else _written_alone(case)
    choices = [decoder.seen.get(i, []) for i in range(len(case.jobs))]
    return Outcome(alone, images, choices, sum(held.values()) / 1e6, seconds)


def _written_alone(case: Case) -> list[list[Ids]]:
    """First texts, written greedily without help."""
    engine = Engine(Runner(case.model, case.autoencoder), case.tokenizer)
    session = engine.session()
    for i, job in enumerate(case.jobs):
        session.add(_until_first_text(IRG().program(job)), seed=i)
    texts: list[list[Ids]] = [[] for _ in case.jobs]
    for event in session:
        if isinstance(event, TextDone):
            texts[event.request].append(event.ids)
    return texts


def _until_first_text(program: Program) -> Program:
    value: Any = None
    while True:
        op: Operation = program.send(value)
        value = yield op
        if isinstance(op, Write):
            return


class _Watching(TextDecoder):
    """Notes the model's own token, the likeliest, even where the text is given."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: dict[int, list[Ids]] = {}

    def _take(self, request: Request, token: int) -> None:
        self.seen.setdefault(request.index, []).append((token,))
        super()._take(request, token)


def psnr(one: Image.Image, two: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit images; infinite for equal ones."""
    error = np.square(np.asarray(one, np.float64) - np.asarray(two, np.float64)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def row(memory_mode: MemoryMode, outcome: Outcome, base: Outcome) -> str:
    """A line of the table: medians over requests, shares over all places."""
    pairs = list(zip(outcome.images, base.images, strict=True))
    first, second = (np.median([psnr(a[k], b[k]) for a, b in pairs]) for k in (0, 1))
    places = [x == y for a, b in zip(outcome.choices, base.choices, strict=True) for x, y in zip(a, b, strict=False)]
    same = [a[0] == b[0] for a, b in zip(outcome.texts, base.texts, strict=True)]
    told = [f"{value:.1f}" if np.isfinite(value) else "equal" for value in (first, second)]
    texts = f"{100 * np.mean(places):.1f} % of {len(places)} | {sum(same)} of {len(same)}"
    return f"| {memory_mode} | {outcome.megabytes:.1f} | {told[0]} | {told[1]} | {texts} | {outcome.seconds:.1f} |"


def main(options: MemoryModeOptions) -> int:
    """Print a Markdown table."""
    if options.threads:
        torch.set_num_threads(options.threads)
    base_case = case_on("bf16", options)
    base = run(base_case, None)
    print(f"{options.model}: {options.prompts} requests, {options.num_timesteps} time points, against bf16 (CPU)")
    print("| memory | weights MB | PSNR first dB | PSNR improved dB | same token | same first text | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(row("bf16", base, base), flush=True)
    for memory_mode in options.memory_modes:
        print(row(memory_mode, run(case_on(memory_mode, options), base.texts), base), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(MemoryModeOptions, description=__doc__)))
