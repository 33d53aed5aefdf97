"""Seconds and memory of BAGEL-7B-sized IRG, stage by stage, beside the machine's roofline: ``python bench/gpu_7b.py``.

Random weights of the full size are made on the device itself; images are 1024 x 1024 with 50 time points, thinking
texts are forced to 300 tokens. Modes direct, think and irg run in every memory mode that fits. The roofline of a stage
is the larger of counted FLOPs over the matrix rate, and counted bytes over the copy rate, both measured here first
(formulas: ``work.py``). A memory mode that fails (no torchao, out of memory) is reported and passed over.
"""

import gc
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn

from engine import replayed, word_tokenizer
from irg.engine.engine import Engine
from irg.engine.events import RequestFailed
from irg.engine.settings import IMPROVING, DrawSettings
from irg.model.network.autoencoder import Autoencoder, build_autoencoder
from irg.model.network.config import CONFIGS, ModelConfig
from irg.model.network.unified import UnifiedModel
from irg.model.placement.devices import device_map
from irg.model.placement.kv_cache_size import request_slots
from irg.model.placement.memory_plan import MemoryMode, quantization_of
from irg.model.placement.offload import offload_layers
from irg.model.weights.initialize import narrower
from irg.model.weights.quantize import QuantizedLinear, allocate_quantized, fill_quantized, require_library
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.protocols.base import Job
from irg.reasoning.protocols.irg import IRG
from irg.reasoning.settings import Mode, Settings
from straight import Ids
from work import STAGES, Counted, CountingRunner, Work

# seconds an image at 1024 x 1024 that others report, printed below a table of the full size
PUBLIC = (
    ("IRG paper (arXiv 2509.06945), BAGEL, 50 points", "think 29.8, loop 60.6; 28.2 and 29.4 GB"),
    ("vLLM-Omni BAGEL (#1903), 50 steps, guidance 4.0 / 1.5, one GPU, not named", "19.04; 27.2 GiB"),
    ("the same on two GPUs", "Ulysses 13.9; ring and Cache-DiT 8.72"),
    ("SenseNova-U1 8B-MoT, H100", "21.18; with TeaCache 9.73"),
)


@dataclass
class GpuOptions:
    """Time direct, think and irg with random weights of BAGEL-7B's size, with the roofline beside it."""

    config: Literal["bagel_7b", "mini", "tiny"] = "bagel_7b"
    """Sizes of the network."""
    narrow: int = 1
    """Divide its widths by this."""
    size: int = 1024
    """Height and width of the images."""
    num_timesteps: int = 50
    """Points of the time grid."""
    thinking_tokens: int = 300
    """Of every text."""
    memory_modes: tuple[MemoryMode, ...] = ("bf16", "int8", "int4", "fp8")
    """How the weights are kept."""
    modes: tuple[Mode, ...] = ("direct", "think", "irg")
    """Ways of reasoning."""
    repeats: int = 2
    """Runs of each mode; the fastest counts. A short one warms up before."""
    requests: int = 1
    """That run together."""
    rounds: int = 1
    """Of the loop."""
    compile: bool = False
    """Write texts and draw by compiled functions; the warm-up compiles."""
    device: str = "cuda"
    """cuda, cuda:1 or cpu."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations and of what is not quantized."""
    json: Path | None = None
    """Write all numbers to this file."""


# ------------------------------------------------------------------------------------------------------- the machine

SUSTAINED_SECONDS = 2.0


@dataclass(frozen=True)
class Machine:
    """What was measured of the device: FLOP/s of a large matrix product, bytes/s of a large copy, and FLOP/s of
    products for seconds on end, when the card's power is limited."""

    name: str
    flops: float
    bandwidth: float
    sustained: float = 0.0

    def seconds(self, work: Work) -> float:
        """The least time for some work."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


def is_missing(device: torch.device) -> bool:
    """Whether there is no such device, which is told, with advice."""
    missing = device.type == "cuda" and not torch.cuda.is_available()
    if missing:
        print("no CUDA device: run this on a GPU, or a small network with --config tiny --device cpu", file=sys.stderr)
    return missing


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Best of several: a square matrix product, and a copy (each byte is read and written)."""
    big = device.type == "cuda"
    side, numbers = (8192, 1 << 30) if big else (512, 1 << 23)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = _fastest(lambda: torch.mm(a, b), device, 20 if big else 3)
    source = torch.zeros(numbers, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device, 20 if big else 3)
    name = torch.cuda.get_device_name(device) if big else platform.machine()
    times, c = (max(1, int(SUSTAINED_SECONDS / product)) if big else 1), torch.empty_like(a)

    def for_seconds() -> None:
        for _ in range(times):
            torch.mm(a, b, out=c)

    sustained = _fastest(for_seconds, device, 0) / times
    return Machine(name, 2 * side**3 / product, 2 * numbers / copy, 2 * side**3 / sustained)


def _fastest(call: Any, device: torch.device, times: int) -> float:
    best = float("inf")
    for _ in range(times + 2):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


# --------------------------------------------------------------------------------------------------------- the model


@torch.no_grad()
def random_networks(
    config: ModelConfig, memory_mode: MemoryMode, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[UnifiedModel, Autoencoder]:
    """Networks with random weights, made where they will be; no more than one weight exists twice at a time."""
    if (kind := quantization_of(memory_mode)) is not None:
        require_library(kind)
    layers = [torch.device("cpu") if memory_mode == "offload" else device] * config.decoder.num_hidden_layers
    where = device_map(layers, device)
    with torch.device("meta"):
        model, autoencoder = UnifiedModel(config), build_autoencoder(config.autoencoder)
    if kind is not None:
        allocate_quantized(model, kind, where)
    for name, module in model.named_modules():
        _randomize(module, device, where(name), dtype)
    for module in autoencoder.modules():
        _randomize(module, device, device, dtype)
    if memory_mode == "offload":
        offload_layers(model, device)
    return model.eval(), autoencoder.eval()


def _randomize(module: nn.Module, made_on: torch.device, device: torch.device, dtype: torch.dtype) -> None:
    """Weights that keep activations near unit size; norms of one, biases of zero. A GPU makes those of its host, too:
    in seconds, not minutes."""
    if isinstance(module, QuantizedLinear):
        outputs, inputs = module.qdata.shape
        inputs *= 2 if module.kind == "int4" else 1
        fill_quantized(module, torch.empty(outputs, inputs, dtype=dtype, device=device).normal_(0, inputs**-0.5))
    leaves = [(module._parameters, name, tensor) for name, tensor in module._parameters.items()]
    leaves += [(module._buffers, name, tensor) for name, tensor in module._buffers.items()]  # type: ignore[misc]
    for store, name, old in leaves:
        if old is None or not old.is_meta:
            continue
        tensor = torch.empty(old.shape, dtype=dtype, device=made_on)
        if old.ndim > 1:
            tensor.normal_(0, (old.numel() / old.shape[0]) ** -0.5)
        else:
            tensor.fill_(0.0 if name in ("bias", "latent_mean") else 1.0)
        tensor = tensor.to(device)
        store[name] = nn.Parameter(tensor, requires_grad=False) if isinstance(old, nn.Parameter) else tensor


# ------------------------------------------------------------------------------------------------------------ stages


@dataclass
class Stages:
    """Seconds and peak bytes by stage; a stage inside another is counted apart from it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    peak: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything the device does inside belongs to ``name``."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
            if self.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(self.device)
                self.peak[self._open[-1]] = max(self.peak[self._open[-1]], peak)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._since = time.perf_counter()


class StagedRunner(CountingRunner):
    """Tells when the autoencoder works."""

    stages: Stages

    def stage(self, name: str) -> Any:
        return self.stages.stage(name)


# --------------------------------------------------------------------------------------------------------- measuring


@dataclass
class Result:
    """One run of a reasoning mode in a memory mode."""

    memory_mode: str
    mode: str
    total: float
    seconds: dict[str, float]
    peak: dict[str, int]
    work: dict[str, Work]
    reserved: int  # most that PyTorch's allocator held, of the whole run
    cache: int = 0  # bytes of keys and values in the end


@dataclass(frozen=True)
class Asked:
    """A request with the paper's settings, and its texts, which are given."""

    tokenizer: TextTokenizer
    job: Job
    texts: list[Ids]


def ask(options: GpuOptions, config: ModelConfig, mode: Mode, points: int) -> Asked:
    """A system prompt of 120 words, a prompt of 40, texts of as many as the options say; a word is a token."""
    vocabulary = config.decoder.vocab_size
    tokenizer = word_tokenizer(vocabulary, config.special)
    special = set(vars(config.special).values())
    usable = [token for token in range(vocabulary) if token not in special]
    system, prompt = (tokenizer.decode(usable[first : first + count]) for first, count in ((5, 120), (50, 40)))
    settings = Settings(
        mode=mode,
        rounds=options.rounds,
        height=options.size,
        width=options.size,
        temperature=0.0,
        max_think_tokens=options.thinking_tokens,
        initial=DrawSettings(num_timesteps=points),
        improving=DrawSettings.from_dict(IMPROVING.to_dict() | {"num_timesteps": points}),
    )
    text = tuple(usable[i % len(usable)] for i in range(options.thinking_tokens))
    job = Job(prompt, system, settings, options.size, options.size)
    return Asked(tokenizer, job, [text] * (1 + options.rounds))


def new_runner(networks: tuple[UnifiedModel, Autoencoder], options: GpuOptions) -> StagedRunner:
    """A runner with an empty cache."""
    gc.collect()
    if networks[0].device.type == "cuda":
        torch.cuda.empty_cache()
    runner = StagedRunner(*networks)
    runner.accelerate(1, options.compile)
    return runner


def run(
    runner: StagedRunner,
    options: GpuOptions,
    memory_mode: MemoryMode,
    mode: Mode,
    points: int,
    stages_of: type[Stages] = Stages,
) -> Result:
    """One run; the cache keeps its size from run to run."""
    config, device = runner.config, runner.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    runner.stages = stages_of(device)
    runner.counted = Counted()
    asked = ask(options, config, mode, points)
    engine = Engine(runner, asked.tokenizer, speculative=False)  # every text is the same: all of it could be drafted
    engine.scheduler.clock = runner.stages.stage  # type: ignore[method-assign]  # waits for the device
    session = engine.session()
    writes, looks = options.rounds * (mode == "irg") + (mode != "direct"), options.rounds * (mode == "irg")
    slots = request_slots(config, 170, options.thinking_tokens, writes, looks, options.size, options.size)
    synchronize(device)
    started = time.perf_counter()
    for index in range(options.requests):
        session.add(replayed(IRG().program(asked.job), asked.texts), seed=index, expected_slots=slots)
    for event in session:
        if isinstance(event, RequestFailed):
            raise event.error
    synchronize(device)
    total = time.perf_counter() - started
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    stages = runner.stages
    counted = runner.counted.stages
    return Result(memory_mode, mode, total, stages.seconds, stages.peak, counted, reserved, runner.cache.nbytes)


def measure(
    options: GpuOptions, config: ModelConfig, memory_mode: MemoryMode, device: torch.device
) -> Iterator[Result]:
    """All reasoning modes in one memory mode."""
    networks = random_networks(config, memory_mode, device, getattr(torch, options.dtype))
    for mode in options.modes:
        runner = new_runner(networks, options)
        run(runner, options, memory_mode, mode, points=3)
        runs = [run(runner, options, memory_mode, mode, options.num_timesteps) for _ in range(options.repeats)]
        yield min(runs, key=lambda result: result.total)


def row(result: Result, machine: Machine) -> str:
    """A line of the table: total, each stage with its least time, peak memory."""
    cells = []
    for stage in STAGES:
        least = machine.seconds(result.work[stage])
        cells.append(f"{result.seconds[stage]:.2f} ({least:.2f})" if result.work[stage].flops else "-")
    least = sum(machine.seconds(work) for work in result.work.values())
    peak = max(result.peak.values())
    memory = f"{peak / 1e9:.1f} / {result.reserved / 1e9:.1f}" if peak else "-"
    flops = sum(work.flops for work in result.work.values())
    cells += [f"{result.total:.2f} ({least:.2f})", f"{100 * least / result.total:.0f} %", f"{flops / 1e12:.3g}", memory]
    return f"| {result.memory_mode} | {result.mode} | {' | '.join(cells)} |"


def main(options: GpuOptions) -> int:
    """Print the machine's rates and a Markdown table."""
    device = torch.device(options.device)
    if is_missing(device):
        return 2
    config = narrower(CONFIGS[options.config](), options.narrow)
    machine = measure_machine(device, getattr(torch, options.dtype))
    print(
        f"{machine.name}, torch {torch.__version__}: {machine.flops / 1e12:.3g} TFLOP/s in {options.dtype} products "
        f"({machine.sustained / 1e12:.3g} for seconds on end), {machine.bandwidth / 1e9:.4g} GB/s copying"
    )
    print(
        f"{options.config} at 1/{options.narrow} width, {options.requests} request(s), {options.size} x "
        f"{options.size}, {options.num_timesteps} time points, texts of {options.thinking_tokens} tokens"
    )
    if options.compile:
        print("compiled")
    print("seconds (least by the roofline); peak memory in GB: allocated / reserved by PyTorch\n")
    print("| memory | mode | prefill | decode | denoise | autoencoder | total | of roofline | TFLOP | peak |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    results: list[Result] = []
    for memory_mode in options.memory_modes:
        try:
            for result in measure(options, config, memory_mode, device):
                results.append(result)
                print(row(result, machine), flush=True)
        except (ValueError, torch.OutOfMemoryError) as error:
            print(f"| {memory_mode} | {' '.join(str(error).split())[:150]} |", flush=True)
    if (options.config, options.narrow, options.size) == ("bagel_7b", 1, 1024):
        print("\n| reported by others | s, memory |\n|---|---|")
        print("\n".join(f"| {who} | {what} |" for who, what in PUBLIC))
    if options.json:
        report = {"machine": asdict(machine), "options": asdict(options) | {"json": None}}
        rows = [asdict(result) for result in results]
        options.json.write_text(json.dumps(report | {"results": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(GpuOptions, description=__doc__)))
