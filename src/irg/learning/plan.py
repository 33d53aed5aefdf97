"""``irg train --dry-run``: what a recipe would do, need and cost, and what is wrong with it, before a GPU is rented.

Nothing is trained and no weight is read: the model is built without memory, the rows are read for a few packs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, models

from irg.learning import combinations
from irg.learning.costs import Work, forward_again, memory_bytes, step_flops, work_of
from irg.learning.data.loader import PackLoader, row_sources
from irg.learning.data.rows import Rejections
from irg.learning.data.samples import SampleBuilder, TrajectoryEncoder, grids_of
from irg.learning.data.stream import Feed
from irg.learning.modes import MODES, EncodedImage, EncodedTrajectory, write
from irg.learning.recipe import TrainRecipe
from irg.learning.resume_check import differences, message
from irg.learning.setup import adapter_of, check_trainable, freeze, quantize, trained, training_config
from irg.model.network.config import CONFIGS, ModelConfig, tiny
from irg.model.network.lora import add_adapters
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.unified import UnifiedModel
from irg.model.weights.config_files import read_config
from irg.model.weights.folders import is_model_folder, model_folder
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.sequence.layout import TokenLayout, lay_out

T = TypeVar("T")
PACKS_MADE = 8  # packs that are made to see how they come out
NOMINAL = {"prompt": 60, "thinking": 300, "reflection": 500}  # tokens, where there are no rows to look at
ASSUMED_MFU, ASSUMED_PEAK = 0.4, 989e12  # for hours: 40 % of an H100
H100_MEMORY = 80e9


def checked_tokenizer(folder: Path, config: ModelConfig) -> TextTokenizer:
    """A folder's tokenizer.

    Raises:
        ValueError: it has none, or one of another model.
    """
    tokenizer = TextTokenizer.from_folder(folder)
    tokenizer.check(config, folder)
    return tokenizer


class GuessingTokenizer(TextTokenizer):
    """For a model known by its sizes alone: a token for every four letters."""

    def __init__(self) -> None:
        super().__init__(Tokenizer(models.BPE()))

    def encode(self, text: str) -> tuple[int, ...]:
        """As many zeros as the text may have tokens."""
        return (0,) * (len(text) // 4 + 1)


@dataclass
class Plan:
    """What a dry run found out. ``problems`` are mistakes; ``notes`` are not."""

    recipe: TrainRecipe
    gpus: int
    parameters: int = 0
    trained: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    samples_per_pack: dict[str, float] = field(default_factory=dict)
    tokens_per_pack: float = 0.0
    longest: int = 0
    rejected: int = 0
    flops: float = 0.0  # of a step, all GPUs
    recomputed: float = 0.0  # done again to save memory, besides
    memory: dict[str, float] = field(default_factory=dict)  # bytes a GPU
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def streams(self) -> int:
        """Packs a step."""
        return self.gpus * self.recipe.parallel.accumulate

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The result of an action, or a problem."""
        try:
            return action()
        except ValueError as error:
            self.problems.append(" ".join(str(error).split()))
            return None


def make_plan(recipe: TrainRecipe, gpus: int | None = None) -> Plan:
    """Look a recipe over. ``gpus``: how many it is meant for; default 1 on a CPU or with adapters, else 8."""
    plan = Plan(recipe, gpus or (1 if recipe.device == "cpu" or recipe.lora.rank else 8))
    if (opened := open_model(plan)) is None:
        return plan
    work = imitation_work(plan, opened)
    adapters = bool(recipe.lora.rank)
    plan.flops = plan.streams * step_flops(opened.config, work, recipe.frozen, adapters)
    shards = 1 if adapters or plan.gpus == 1 else max(1, plan.gpus // recipe.parallel.replicas)
    plan.memory = memory_bytes(opened.config, work, plan.parameters, plan.trained, shards, recipe)
    plan.recomputed = forward_again(opened.config, work, recipe) * plan.streams
    _check_memory(plan)
    return plan


def _check_memory(plan: Plan) -> None:
    """A problem where a GPU has too little memory: this machine's, or an H100 where it has none."""
    here = torch.cuda.is_available()
    has = torch.cuda.get_device_properties(0).total_memory if here else H100_MEMORY
    if plan.recipe.device != "cpu" and (needed := sum(plan.memory.values())) > has:
        plan.problems.append(
            f"about {needed / 1e9:.0f} GB a GPU are needed, {'the one here' if here else 'an H100'} has "
            f"{has / 1e9:.0f} GB: more GPUs (they share the weights), parallel.recompute full, a lower "
            "tokens_per_pack, optimizer.kind adamw8bit, or adapters (lora.rank)"
        )


@dataclass(frozen=True)
class Opened:
    """What a dry run has of the model: how it reads images, and its texts. ``tokenizer`` is None where it can't be
    used."""

    config: ModelConfig
    tokenizer: TextTokenizer | None
    profile: Profile


def open_model(plan: Plan) -> Opened | None:
    """Check the recipe's settings and its model, and count weights; None where there is nothing to go on with."""
    recipe = plan.recipe
    known = None if is_model_folder(recipe.model) else CONFIGS.get(recipe.model)
    folder = None if known else plan.attempt(lambda: model_folder(recipe.model, download=False))
    config = known() if known else plan.attempt(lambda: read_config(folder)) if folder else None
    _check_settings(plan)
    if config is None:
        return None
    if folder is None:
        plan.notes.append(f"{recipe.model} is known by its sizes alone: no weights checked, tokens guessed")
    _model(plan, config, folder)
    reading = plan.attempt(lambda: training_config(config, recipe.images))
    if reading is None:
        return None
    tokenizer = GuessingTokenizer() if folder is None else plan.attempt(lambda: checked_tokenizer(folder, config))
    profile: Profile | None = None if folder is None else plan.attempt(lambda: read_profile(folder))
    return Opened(reading, tokenizer, profile or BAGEL_PROFILE)


def imitation_work(plan: Plan, opened: Opened) -> Work:
    """The work of a supervised pack: of some that are made of the rows, or else of nominal ones."""
    work = _packs(plan, opened.config, opened.tokenizer, opened.profile) if opened.tokenizer is not None else None
    return work or _nominal(plan, opened.config)


def _check_settings(plan: Plan) -> None:
    recipe = plan.recipe
    sharded = plan.gpus > 1 or (recipe.parallel.precision == "bfloat16" and recipe.device != "cpu")
    if recipe.optimizer.warmup > recipe.steps:
        plan.notes.append(f"optimizer.warmup {recipe.optimizer.warmup} is longer than the run: {recipe.steps} steps")
    plan.problems += combinations.problems(combinations.Run(recipe, plan.gpus, sharded))
    if changed := plan.attempt(lambda: differences(recipe, Path(recipe.out))):
        plan.problems.append(message(Path(recipe.out), changed))


def _model(plan: Plan, config: ModelConfig, folder: Path | None) -> None:
    """Count weights, and hold the files' headers against the configuration."""
    recipe = plan.recipe
    with torch.device("meta"):
        model = UnifiedModel(config)
    if folder is not None:
        plan.attempt(lambda: check_trainable(folder))
    plan.parameters = sum(p.numel() for p in model.parameters())
    if (adapter := adapter_of(recipe)) is not None:
        plan.attempt(lambda: add_adapters(model, adapter, 0))
        if recipe.lora.base == "nf4":
            plan.attempt(lambda: quantize(UnifiedModel(tiny()), adapter))
    plan.attempt(lambda: freeze(model, recipe.frozen))
    plan.trained = sum(p.numel() for p in (plan.attempt(lambda: trained(model)) or {}).values())


def _packs(plan: Plan, config: ModelConfig, tokenizer: TextTokenizer, profile: Profile) -> Work | None:
    """Make a few packs; the mean of their sizes."""
    recipe = plan.recipe
    rejections = Counted(Path("not written"))

    def loader() -> PackLoader:
        builder = SampleBuilder(recipe, config, TrajectoryEncoder(config, tokenizer, profile))
        feed = Feed(recipe, row_sources(recipe), builder, rejections, plan.streams, PackedAttention, complete=False)
        return PackLoader(feed, ahead=False)

    source = plan.attempt(loader)
    if source is None:
        return None
    plan.rows = {name: rows.rows for name, rows in source.sources.items()}
    made = plan.attempt(lambda: [source.pack(step) for step in range(PACKS_MADE)])
    plan.rejected = rejections.count
    plan.problems += [f"rows are rejected, such as {rejections.first}"] if rejections.first else []
    if made is None:
        return None
    counts = Counter[str]()
    for pack in made:
        counts.update(pack.modes)
    plan.samples_per_pack = {mode: counts[mode] / PACKS_MADE for mode in MODES if counts[mode]}
    plan.tokens_per_pack = sum(pack.tokens for pack in made) / PACKS_MADE
    plan.longest = max(pack.longest for pack in made)
    total = sum((pack.work for pack in made if pack.work), Work())
    return Work(*(value // PACKS_MADE for value in vars(total).values()))


class Counted(Rejections):
    """Counts broken rows and keeps the first."""

    first: str = ""
    listed = ""

    def add(self, row: Any) -> None:
        """Count a row."""
        self.count += 1
        self.first = self.first or str(row)


def _nominal(plan: Plan, config: ModelConfig) -> Work:
    """The sizes of a full pack of the mixture's samples, by nominal lengths and the largest square images."""
    recipe, side = plan.recipe, config.vae_resize.max_size
    plan.notes.append(
        f"no packs could be made: they are guessed, images of {side} x {side} pixels, "
        + ", ".join(f"{name} {n} tokens" for name, n in NOMINAL.items())
    )
    texts = {name: (0,) * n for name, n in NOMINAL.items()}
    image = EncodedImage(None, *grids_of(side, side, config))
    one = EncodedTrajectory(system=(0,) * 90, prompt=texts["prompt"], thinking=texts["thinking"], image=image)
    two = replace(one, reflection=texts["reflection"], improved=image)
    weights = {mode: weight for mode, weight in recipe.mixture.weights().items() if weight}
    layouts: dict[str, TokenLayout] = {
        mode: lay_out(write(mode, two if mode.startswith("improving") else one), config.grammar)
        for mode in MODES
        if mode in weights
    }
    lengths = {mode: len(layout) for mode, layout in layouts.items()}
    counts = _filled(recipe.tokens_per_pack, lengths, weights, recipe.mixture.mandatory)
    plan.samples_per_pack = {mode: counts[mode] for mode in MODES if mode in counts}
    plan.tokens_per_pack = sum(n * lengths[mode] for mode, n in counts.items())
    plan.longest = max(lengths.values())
    if not plan.rows and plan.longest > min(recipe.max_tokens_per_sample, recipe.tokens_per_pack):
        plan.notes.append(
            f"guessed samples of {plan.longest} tokens are more than max_tokens_per_sample or tokens_per_pack"
        )
    elif not plan.rows and plan.tokens_per_pack > recipe.tokens_per_pack:
        plan.notes.append(
            f"a guessed sample of every mandatory mode is {plan.tokens_per_pack:,.0f} tokens together, more than "
            f"tokens_per_pack {recipe.tokens_per_pack}"
        )
    total = dict.fromkeys(vars(Work()), 0.0)
    for mode, n in counts.items():
        for name, value in vars(work_of([layouts[mode]])).items():
            total[name] += n * value
    return Work(**{name: round(value) for name, value in total.items()})


def _filled(
    budget: int, lengths: Mapping[str, int], weights: Mapping[str, float], mandatory: Sequence[str]
) -> dict[str, float]:
    """Samples of each mode in a full pack: one of each mandatory mode at least, the others by their weights."""
    counts = dict[str, float]()
    while True:
        others = [mode for mode in weights if mode not in counts]
        room = budget - sum(n * lengths[mode] for mode, n in counts.items())
        scale = max(0.0, room / sum(weights[mode] * lengths[mode] for mode in others)) if others else 0.0
        if not (short := [mode for mode in others if mode in mandatory and weights[mode] * scale < 1]):
            return counts | {mode: weights[mode] * scale for mode in others}
        counts |= dict.fromkeys(short, 1.0)


def report(plan: Plan, more: Sequence[str] = ()) -> str:
    """The plan, to be read; ``more`` lines about what is planned besides."""
    import yaml

    recipe = plan.recipe
    seconds = (plan.flops + plan.recomputed) / plan.gpus / (ASSUMED_MFU * ASSUMED_PEAK)
    total = sum(plan.memory.values())
    resolved = _plain(asdict(recipe))
    lines = ["# recipe, resolved", yaml.safe_dump(resolved, sort_keys=False, width=120).rstrip(), "", "# plan"]
    lines += [
        f"GPUs: {plan.gpus}, packs a step: {plan.streams}",
        f"parameters: {plan.parameters:,}, trained: {plan.trained:,} ({plan.trained / max(1, plan.parameters):.2%})",
    ]
    if plan.rows:
        lines.append(f"rows: {', '.join(f'{n:,} {name}' for name, n in plan.rows.items())}")
    if plan.samples_per_pack:
        fill = plan.tokens_per_pack / recipe.tokens_per_pack
        lines.append(f"tokens per pack: {plan.tokens_per_pack:,.0f} of {recipe.tokens_per_pack:,} ({fill:.1%} full)")
        lines.append(f"longest sample: {plan.longest:,} tokens")
        lines += [f"samples per step, {mode}: {n * plan.streams:.1f}" for mode, n in plan.samples_per_pack.items()]
    lines += more
    if plan.memory:
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in plan.memory.items() if size > 5e7)
        lines.append(f"memory per GPU, estimated: {total / 1e9:.1f} GB ({parts})")
        lines.append(f"floating-point operations per step: {plan.flops:.3e}")
    if plan.memory and recipe.device != "cpu":
        again = ", with what parallel.recompute does again" if plan.recomputed else ""
        hours = seconds * recipe.steps * plan.gpus / 3600
        lines.append(
            f"at an assumed {ASSUMED_MFU:.0%} of an H100's bfloat16 peak: {seconds:.1f} s a step, {hours:,.0f} GPU "
            f"hours for {recipe.steps:,} steps{again} (reading images not counted)"
        )
    lines += [f"note: {note}" for note in plan.notes] + [f"PROBLEM: {problem}" for problem in plan.problems]
    return "\n".join([*lines, "no problems found" if not plan.problems else ""]).rstrip()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
