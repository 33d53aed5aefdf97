"""How much faster the engine is than the straight way of running IRG: ``python bench/engine.py --model mini``.

Both run the same requests on the same weights in the same process, in alternating order. Before anything is timed,
their outputs are compared: equal texts, equal latents. See ``bench/README.md``.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from irg.engine import phase_clock
from irg.engine.engine import Engine
from irg.engine.events import ImageDone, TextDone
from irg.engine.ngram_drafter import MAX_DRAFT_TOKENS
from irg.engine.ops import Operation, Program, Write
from irg.engine.runner import Runner
from irg.engine.settings import IMPROVING, DrawSettings
from irg.model.network.autoencoder import Autoencoder, CompactConfig, build_autoencoder
from irg.model.network.config import DecoderConfig, ModelConfig, VitConfig, tiny
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import load_model
from irg.model.weights.folders import model_folder
from irg.model.weights.initialize import random_model
from irg.model.weights.profile import read_profile
from irg.model.weights.tokenizer import SPECIAL_NAMES, TextTokenizer
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.reasoning.protocols.base import Job
from irg.reasoning.protocols.irg import IRG
from irg.reasoning.settings import Settings, with_options
from irg.sequence.images import ResizeRule
from irg.sequence.special import SpecialTokens
from process import peak_memory, processor
from straight import Ids, Result, Straight

STAGES = ("prefill", "decode", "denoise", "vae")
TOLERANCE = 1e-4  # of latents, float32
PROMPTS = (
    "a photo of three red apples left of a bus",
    "a photo of a cat",
    "a photo of two dogs",
    "a photo of a blue car and a yellow bird",
    "a photo of a clock above a chair",
    "a photo of four bananas",
    "a photo of a green umbrella",
    "a photo of a pizza right of a book",
)
TARGETS: dict[str, dict[str, float]] = {  # straight / engine, by model and "stage at load"
    "mini": {"one total": 1.5, "many total": 2.5, "many tokens/s": 4.0},
    "mid": {"one total": 1.15, "many total": 1.5},
}


@dataclass
class Options:
    """Time the engine against the straight way of running one IRG request and several concurrent ones."""

    model: str = "mini"
    """mini (the bundled model), mid (random weights, 512 wide, 12 layers), tiny (a test), or a model folder."""
    concurrent: int = 8
    """Requests in flight at a time in the second measurement."""
    repeats: int = 5
    """Runs of each side; the order alternates."""
    thinking_tokens: int | None = None
    """Force every text to this many tokens; default: the model's own greedy text, 100 for random weights."""
    num_timesteps: int | None = None
    """Points of the time grid; default: the model's own setting, 21 for random weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = None
    """Of torch; default: its own choice."""
    processor_time: bool = False
    """Measure seconds of the processor, not the clock: on a busy machine."""
    compile: bool = False
    """Compile the engine's writing and drawing; a run that is not measured waits for it."""
    json: Path | None = None
    """Write all numbers to this file."""


@dataclass
class Case:
    """A model and what it is asked."""

    name: str
    model: UnifiedModel
    autoencoder: Autoencoder
    tokenizer: TextTokenizer
    jobs: list[Job]
    texts: list[list[Ids]] | None  # forced, for each job and turn
    draft_texts: tuple[str, ...] = ()  # what the model brings for speculative decoding
    compiled: bool = False  # the engine's functions

    def forced(self, index: int) -> list[Ids] | None:
        """The forced texts of a job."""
        return None if self.texts is None else self.texts[index]


# ------------------------------------------------------------------------------------------------------- what is run


def mid(vocab_size: int = 8192) -> ModelConfig:
    """A model between irg-mini and the real one: 256 x 256 pixels are 256 latent tokens."""
    return ModelConfig(
        decoder=DecoderConfig(vocab_size, 512, 1408, 12, 8, 4),
        vit=VitConfig(384, 1152, 6, 6, patch_size=16, image_size=256),
        autoencoder=CompactConfig(),
        special=SpecialTokens(0, 1, 2, 3),
        max_latent_size=16,
        vit_max_num_patch_per_side=16,
        vae_resize=ResizeRule(256, 256, 16),
        vit_resize=ResizeRule(256, 224, 16),
    )


def word_tokenizer(vocab_size: int, special: SpecialTokens) -> TextTokenizer:
    """A vocabulary of numbered words, one token each, for models with random weights."""
    names = dict(zip(vars(special).values(), SPECIAL_NAMES, strict=True))
    words = {names.get(token, f"w{token}"): token for token in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w4"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer)


def random_case(name: str, config: ModelConfig, size: int, options: Options) -> Case:
    """Random weights and random words; texts of a fixed length."""
    model = random_model(config, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = build_autoencoder(config.autoencoder).eval()
    tokenizer = word_tokenizer(config.decoder.vocab_size, config.special)
    random = np.random.default_rng(0)
    special = set(vars(config.special).values())
    usable = np.array([token for token in range(config.decoder.vocab_size) if token not in special])

    def words(count: int) -> Ids:
        return tuple(random.choice(usable, count).tolist())

    points = options.num_timesteps or 21
    length = 100 if options.thinking_tokens is None else options.thinking_tokens
    settings = Settings(
        height=size,
        width=size,
        temperature=0.0,
        max_think_tokens=length + 1,
        initial=DrawSettings(num_timesteps=points),
        improving=replace(IMPROVING, num_timesteps=points),
    )
    system = tokenizer.decode(words(40))
    jobs = [Job(tokenizer.decode(words(20)), system, settings, size, size) for _ in range(options.concurrent)]
    texts = [[words(length) for _ in range(settings.rounds + 1)] for _ in jobs]
    return Case(name, model, autoencoder, tokenizer, jobs, texts)


def folder_case(options: Options) -> Case:
    """A trained model with its own settings and, unless a length is asked for, its own texts."""
    folder = model_folder(options.model)
    loaded = load_model(folder)
    tokenizer = TextTokenizer.from_file(folder / "tokenizer.json")
    profile = read_profile(folder) or BAGEL_PROFILE
    size = loaded.config.vae_resize.max_size
    given = Settings.from_dict({"height": size, "width": size} | profile.settings)
    changes = {"temperature": 0.0, "stop_when_done": False, "critic": "self"}  # the paper's loop, as straight.py's
    if points := options.num_timesteps:
        changes |= {"num_timesteps": points, "improve_num_timesteps": points}
    settings = with_options(given, changes)
    height, width = settings.height or size, settings.width or size
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.concurrent)]
    texts = None
    if (length := options.thinking_tokens) is not None:
        settings = replace(settings, max_think_tokens=length + 1)
        ids = tokenizer.encode(" ".join(PROMPTS) * (1 + length // len(PROMPTS)))[:length]
        texts = [[tokenizer.encode(tokenizer.decode(ids))] * (settings.rounds + 1)] * len(prompts)
    jobs = [Job(prompt, profile.system_prompt, settings, height, width) for prompt in prompts]
    return Case(options.model, loaded.model, loaded.autoencoder, tokenizer, jobs, texts, profile.draft_texts)


def build_case(options: Options) -> Case:
    """The case that the options ask for, in the wanted dtype.

    Raises:
        ValueError: there is no such model.
    """
    if options.model == "mid":
        case = random_case("mid", mid(), 256, options)
    elif options.model == "tiny":
        case = random_case("tiny", tiny(), 64, options)
    else:
        case = folder_case(options)
    dtype = getattr(torch, options.dtype)
    return replace(case, model=case.model.to(dtype), autoencoder=case.autoencoder.to(dtype))


# ------------------------------------------------------------------------------------------------------ the two sides


@dataclass
class Run:
    """One timed run of one side: seconds in all and by stage, tokens written, memory above the loaded model."""

    total: float
    stages: dict[str, float]
    tokens: int
    peak_bytes: int | None
    results: list[Result] = field(repr=False, default_factory=list)


class TimedRunner(Runner):
    """Knows how long it has encoded images, which the engine counts as part of its prefill."""

    encoding = 0.0

    def read_latents(self, pixels_B3HW: Tensor, eps: Tensor | None = None) -> Tensor:
        started = time.perf_counter()
        latents = super().read_latents(pixels_B3HW, eps)
        self.encoding += time.perf_counter() - started
        return latents


def replayed(program: Program, texts: Sequence[Ids] | None) -> Program:
    """The same program with its texts given."""
    given = iter(texts or ())
    value: Any = None
    while True:
        try:
            op: Operation = program.send(value)
        except StopIteration as stop:
            return stop.value
        if isinstance(op, Write) and texts is not None:
            op = replace(op, forced=next(given))
        value = yield op


def run_engine(case: Case, count: int) -> Run:
    """The first ``count`` jobs at once, through a fresh engine."""
    results = [Result() for _ in range(count)]
    with peak_memory() as peak:
        started = time.perf_counter()
        runner = TimedRunner(case.model, case.autoencoder)
        runner.accelerate(MAX_DRAFT_TOKENS + 1, case.compiled)
        engine = Engine(runner, case.tokenizer, case.draft_texts)
        session = engine.session()
        for i in range(count):
            session.add(replayed(IRG().program(case.jobs[i]), case.forced(i)), seed=i)
        for event in session:
            if isinstance(event, TextDone):
                results[event.request].texts.append(event.ids)
            elif isinstance(event, ImageDone):
                results[event.request].latents.append(event.latents)
                results[event.request].images.append(event.image)
        total = time.perf_counter() - started
    stages = dict(engine.seconds)
    stages["prefill"] -= runner.encoding
    stages["vae"] += runner.encoding
    return Run(total, stages, _tokens(results), peak(), results)


def run_straight(case: Case, count: int, shown: Sequence[Sequence[Image.Image]] | None = None) -> Run:
    """The first ``count`` jobs one after the other, the straight way."""
    with peak_memory() as peak:
        started = time.perf_counter()
        way = Straight(case.model, case.autoencoder, case.tokenizer)
        results = [way.run(case.jobs[i], i, case.forced(i), shown[i] if shown else None) for i in range(count)]
        total = time.perf_counter() - started
    return Run(total, dict(way.seconds), _tokens(results), peak(), results)


def _tokens(results: Sequence[Result]) -> int:
    return sum(len(ids) for result in results for ids in result.texts)


# -------------------------------------------------------------------------------------------- comparing and measuring


@dataclass(frozen=True)
class Agreement:
    """How far the two sides' outputs are apart. Latents of later turns are compared after looking at equal images."""

    same_texts: bool
    latents: float
    gray_levels: int

    def holds(self, dtype: str) -> bool:
        """Whether the sides may be called equal. A rounding may lift a pixel over one gray level's edge."""
        return self.same_texts and (dtype != "float32" or (self.latents <= TOLERANCE and self.gray_levels <= 1))


def compare(case: Case) -> Agreement:
    """Run all jobs on both sides and compare what they give."""
    ours = run_engine(case, len(case.jobs)).results
    theirs = run_straight(case, len(case.jobs), [result.images for result in ours]).results
    pairs = list(zip(ours, theirs, strict=True))
    latents = [(a, b) for one, two in pairs for a, b in zip(one.latents, two.latents, strict=True)]
    images = [(a, b) for one, two in pairs for a, b in zip(one.images, two.images, strict=True)]
    return Agreement(
        same_texts=all(one.texts == two.texts for one, two in pairs),
        latents=max(float((a.float() - b.float()).abs().max()) for a, b in latents),
        gray_levels=max(int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()) for a, b in images),
    )


def measure(case: Case, count: int, repeats: int) -> dict[str, list[Run]]:
    """Both sides ``repeats`` times, in alternating order."""
    sides: dict[str, Callable[[Case, int], Run]] = {"straight": run_straight, "engine": run_engine}
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    if case.compiled:
        run_engine(case, count)
    for repeat in range(repeats):
        for side in sorted(sides, reverse=repeat % 2 == 0):
            runs[side].append(replace(sides[side](case, count), results=[]))
            print(f"  {count} at a time, {side}: {runs[side][-1].total:.2f} s", file=sys.stderr, flush=True)
    return runs


@dataclass(frozen=True)
class Row:
    """A line of the table: medians and minima (maxima for a rate) of both sides."""

    name: str
    straight: float
    straight_best: float
    engine: float
    engine_best: float
    rate: bool = False  # more is better

    @property
    def ratio(self) -> float:
        """How many times better the engine is, by medians."""
        better, worse = (self.engine, self.straight) if self.rate else (self.straight, self.engine)
        return better / worse if worse else float("nan")


def rows_of(runs: dict[str, list[Run]]) -> list[Row]:
    """Total, stages, tokens per second of decoding, peak memory in MB."""

    def row(name: str, value: Callable[[Run], float], rate: bool = False) -> Row:
        best = max if rate else min
        values = [[value(run) for run in runs[side]] for side in ("straight", "engine")]
        (a, a_best), (b, b_best) = ((statistics.median(v), best(v)) for v in values)
        return Row(name, a, a_best, b, b_best, rate)

    rows = [row("total", lambda run: run.total)]
    rows += [row(stage, lambda run, stage=stage: run.stages[stage]) for stage in STAGES]  # type: ignore[misc]
    rows.append(row("other", lambda run: run.total - sum(run.stages.values())))
    rows.append(row("tokens/s", lambda run: run.tokens / max(run.stages["decode"], 1e-9), rate=True))
    if all(run.peak_bytes is not None for side in runs.values() for run in side):
        rows.append(row("peak MB", lambda run: (run.peak_bytes or 0) / 2**20))
    return rows


def table(title: str, rows: Sequence[Row], targets: dict[str, float]) -> str:
    """A Markdown table: median (best) of each side, the ratio, the target."""
    lines = [f"| {title} | straight | engine | ratio | target |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        target = targets.get(row.name)
        verdict = "" if target is None else f"{target:g}x {'reached' if row.ratio >= target else 'missed'}"
        cells = [f"{row.straight:.3g} ({row.straight_best:.3g})", f"{row.engine:.3g} ({row.engine_best:.3g})"]
        lines.append(f"| {row.name} | {cells[0]} | {cells[1]} | {row.ratio:.2f}x | {verdict} |")
    return "\n".join(lines)


def machine(options: Options) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": options.dtype,
    }


def main(options: Options) -> int:
    """Compare, measure, print; the exit code is 1 when the two sides do not agree."""
    if options.processor_time:
        time.perf_counter = phase_clock.perf_counter = time.process_time  # of both sides' stages, too
    if options.threads:
        torch.set_num_threads(options.threads)
    case = build_case(options)
    case.compiled = options.compile
    about = machine(options)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    job, parameters = case.jobs[0], sum(p.numel() for p in case.model.parameters())
    steps = [draw.num_timesteps - 1 for draw in (job.settings.initial, job.settings.improving)]
    print(
        f"{case.name}: {parameters / 1e6:.1f} M parameters, {job.height} x {job.width} pixels, {steps[0]} + {steps[1]} "
        f"steps, {options.repeats} runs of each side"
    )
    agreement = compare(case)
    verdict = "agree" if agreement.holds(options.dtype) else "DO NOT AGREE"
    print(
        f"outputs {verdict}: texts {'equal' if agreement.same_texts else 'DIFFERENT'}, latents within "
        f"{agreement.latents:.1e}, pixels within {agreement.gray_levels} of 255\n"
    )
    if not agreement.holds(options.dtype):
        return 1
    report: dict[str, Any] = {"machine": about, "options": asdict(options) | {"json": None}, "loads": {}}
    for count in dict.fromkeys((1, options.concurrent)):
        load = "one" if count == 1 else "many"
        targets = {key.split(" ", 1)[1]: v for key, v in TARGETS.get(case.name, {}).items() if key.startswith(load)}
        runs = measure(case, count, options.repeats)
        rows = rows_of(runs)
        print(table("1 request, seconds" if count == 1 else f"{count} requests at once, seconds", rows, targets) + "\n")
        report["loads"][count] = {
            "rows": [asdict(row) | {"ratio": row.ratio, "target": targets.get(row.name)} for row in rows],
            "runs": {side: [asdict(run) for run in done] for side, done in runs.items()},
        }
    if options.json:
        report["agreement"] = asdict(agreement)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
