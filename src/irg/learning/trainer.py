"""The training loop: pack, noise, score, step, average, log, checkpoint, resume.

State is small and plain: weights, average, optimizer moments, the step number and where each lane's data stands;
everything random is drawn from generators seeded with (seed, step, lane). A resumed run is bit-identical to an
uninterrupted one on the same machine. One process or many: see :mod:`.parallel`.
"""

import math
import signal
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from irg.learning import parallel
from irg.learning.checkpoints import Writer, latest, read_about, read_names, read_tensors
from irg.learning.costs import peak_flops, step_flops
from irg.learning.data.packing import Pack, assemble
from irg.learning.data.packs import build_packs, encode
from irg.learning.export import merged, write_model
from irg.learning.gradient_guard import Watch, out_of_memory
from irg.learning.low_precision import Shadow
from irg.learning.metrics import Metrics, memory_gb
from irg.learning.modes import write
from irg.learning.objective import Losses, flow_targets, losses, total
from irg.learning.optim import belongs, build_optimizers, from_saved, rate, to_saved, update_average
from irg.learning.recipe import TrainRecipe
from irg.learning.resume_check import check_lanes, check_recipe, same_rows
from irg.learning.samples import draw
from irg.learning.setup import PARTS, adapter_of, build, trained, training_config
from irg.learning.trackers import Trackers
from irg.model.weights.adapter_files import save_adapter
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.reasoning.settings import Settings, with_options
from irg.sequence.layout import lay_out
from irg.sequence.parts import Target, Text

__all__ = ["PARTS", "Trainer", "train"]

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def unbroken() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait: the list grows instead, and whoever runs in the block looks at it between steps."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield asked
        return
    usual = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in INTERRUPTS}
    try:
        yield asked
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class Trainer:
    """One stage of training."""

    def __init__(self, recipe: TrainRecipe, quiet: bool = False, force: bool = False) -> None:
        """``force``: go on even where the folder's run was made with another recipe or number of packs a step."""
        self.recipe, self.force = recipe, force
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        self.ranks = parallel.join(recipe.device, recipe.parallel)
        self.quiet = quiet or not self.ranks.main
        self.folder, self.out = Path(recipe.model), Path(recipe.out)
        self.loaded = build(recipe, self.ranks)
        self.config, self.model = self.loaded.config, self.loaded.model
        self.tokenizer = TextTokenizer.from_file(self.folder / "tokenizer.json")
        self.profile: Profile = read_profile(self.folder) or BAGEL_PROFILE
        reading = training_config(self.config, recipe.images)
        self.data, self.packer = build_packs(
            recipe, reading, self.tokenizer, self.profile, self.loaded.autoencoder, self.ranks, quiet
        )
        self.held_out = [] if self.data is None else self.data.held.tolist()
        self.optimizers = build_optimizers(self.model, recipe.optimizer, getattr(torch, recipe.parallel.precision))
        self.named_weights = trained(self.model)
        self.weights = list(self.named_weights.values())
        low = recipe.parallel.precision == "bfloat16" and self.ranks.mesh is None
        self.shadow = Shadow(self.model) if low else None
        self.average = [p.detach().clone() for p in self.weights]
        self.watch = Watch(recipe.guard)
        self.writer = Writer(self.out, self.ranks, recipe.keep)
        self.lane_states: dict[int, dict[str, Any]] = {}
        self.peak = peak_flops(self.ranks.device)
        self.step = 0

    @property
    def end(self) -> int:
        """The step after which the run is over."""
        return self.recipe.stop_after or self.recipe.steps

    @property
    def lanes(self) -> int:
        """Packs in a step, over all ranks."""
        return self.ranks.world * self.recipe.parallel.accumulate

    # ---- one step

    def score(self, pack: Pack, generator: torch.Generator) -> Losses:
        """Noise a pack and score it."""
        return self._noised_and_scored(pack, generator, self.recipe.timestep_shift)

    def _noised_and_scored(self, pack: Pack, generator: torch.Generator, shift: float) -> Losses:
        encode(pack, self.loaded.autoencoder, self.config, generator, self.recipe.images.latents == "sample")
        velocity = None
        if pack.clean_GD is not None:
            noise = torch.randn(pack.clean_GD.shape, generator=generator)
            flow = flow_targets(pack.clean_GD, noise.to(pack.clean_GD.device), pack.normal_G, shift)
            pack.batch.latents_GD, pack.batch.times_G, velocity = flow.noisy_GD, flow.times_G, flow.velocity_GD
        model = self.shadow.twin if self.shadow else self.model
        return losses(model, pack.batch, pack.attend, velocity, pack.loss_rows_L, pack.labels_L, pack.target_rows_M)

    def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
        """One optimizer step; returns what to log. ``stop`` is asked when it is done: if any rank's says yes, all
        end after it (``record["stop"]``)."""
        recipe, step = self.recipe, self.step
        started = time.perf_counter()
        packs = {lane: self.packer.pack(step, lane) for lane in self.ranks.lanes(recipe.parallel.accumulate)}
        waited = time.perf_counter() - started
        metrics = self.gradients(packs)
        norm = parallel.clipped(self.weights, recipe.optimizer.clip)()
        factor = rate(step, recipe.steps, recipe.optimizer)
        admitted = self.watch.admits(norm)
        if admitted:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                optimizer.step()
            update_average(parallel.local(self.average), parallel.local(self.weights), self._decay())
        for p in self.weights:
            p.grad = None
        self.step += 1
        budget = recipe.tokens_per_pack * len(packs)
        return metrics.summed(self.ranks, list(packs.values()), recipe.ce_weight, recipe.mse_weight, stop()) | {
            "grad_norm": norm,
            "lr_factor": factor,
            "skipped": float(not admitted),
            "fill": sum(p.tokens for p in packs.values()) / budget,
            "wait": waited,
            "flops": sum(
                step_flops(self.config, p.work, recipe.frozen, bool(recipe.lora.rank)) for p in packs.values() if p.work
            ),
        }

    def gradients(self, packs: Mapping[int, Pack]) -> Metrics:
        """Run packs (by lane) forward and backward; their gradients are those of the mean over all ranks' tokens.

        Raises:
            ValueError: the device ran out of memory; the message says on which pack, and what to lower.
        """
        counts = torch.tensor([[len(p.labels_L), len(p.target_rows_M)] for p in packs.values()], dtype=torch.float64)
        texts, targets = self.ranks.sum(counts.sum(0).to(self.ranks.device)).tolist()
        metrics = Metrics(self.ranks.device)
        if self.shadow:
            self.shadow.refresh()
        for lane, pack in packs.items():
            try:
                self._backward(pack, lane, (texts, targets), metrics)
            except torch.OutOfMemoryError:
                raise out_of_memory(pack, self.step, lane, self.recipe) from None
            if self.shadow:
                self.shadow.collect()
            self.lane_states[lane] = pack.state
        return metrics

    def _backward(self, pack: Pack, lane: int, divisors: tuple[float, float], metrics: Metrics) -> None:
        recipe = self.recipe
        if self.ranks.device.type != "cpu":
            pack = pack.to(self.ranks.device)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step + lane * 7_919_000_003)
        scored = self.score(pack, generator)
        loss, _, _ = total(scored, recipe.ce_weight, recipe.mse_weight, divisors=divisors)
        # FSDP averages gradients over ranks; the divisors are already those of all of them.
        (loss * self.ranks.world if self.ranks.world > 1 else loss).backward()
        metrics.add(pack, scored)

    def _decay(self) -> float:
        """With warm-up the averages of early steps are not the (random) start."""
        return min(self.recipe.ema, (1 + self.step) / (10 + self.step)) if self.recipe.ema_warmup else self.recipe.ema

    # ---- validation: does the image listen to its text?

    @torch.no_grad()
    def validate(self, level: float = 0.9) -> dict[str, float]:
        """Velocity error of held-out images at one high noise level: with the thinking, without it, and with another
        row's thinking.

        A falling loss hides a condition that is ignored; the gap between these three does not.
        """
        result: dict[str, float] = {}
        if self.shadow:
            self.shadow.refresh()  # the step that was just taken counts
        normal = math.log(level / (1 - level))
        for name in ("with", "without", "shuffled"):
            pack = self._probe(name, normal).to(self.ranks.device)
            scored = self._noised_and_scored(pack, torch.Generator().manual_seed(99), shift=1.0)
            result[f"val/mse@{level}/{name}"] = scored.mse_MD.mean().item()
        return result

    def _probe(self, thinking: str, normal: float) -> Pack:
        """A validation pack: mode ``initial_full`` with the right thinking, none, or the next row's."""
        assert self.data is not None
        samples = [list(write("initial_full", self.data.trajectory(row))) for row in self.held_out]
        if thinking == "without":
            samples = [[p for p in sample if not (isinstance(p, Text) and p.loss)] for sample in samples]
        elif thinking == "shuffled":
            texts = [next(p for p in sample if isinstance(p, Text) and p.loss) for sample in samples]
            turned = texts[1:] + texts[:1]
            samples = [
                [other if isinstance(p, Text) and p.loss else p for p in sample]
                for sample, other in zip(samples, turned, strict=True)
            ]
        layouts = [lay_out(sample, self.config.grammar) for sample in samples]
        parts = [p for sample in samples for p in sample]
        latents = [self.data.latents(p.content) for p in parts if isinstance(p, Target)]
        return assemble(layouts, parts, [], latents, lambda: normal)

    # ---- the loop

    def fit(self) -> Path:
        """Train to the end, resuming from the newest checkpoint in ``out``; returns the exported model folder (the
        adapter's, where adapters are trained and not merged)."""
        with_options(Settings(), dict(self.recipe.samples.settings))  # a mistake there is told now
        check_recipe(self.recipe, self.out, self.ranks, self.force)
        self.resume()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with (
            Progress(*columns, disable=self.quiet) as progress,
            Trackers(self.out, self.recipe.trackers, asdict(self.recipe), self.ranks.main) as trackers,
        ):
            task = progress.add_task("training", total=self.end, completed=self.step)
            with unbroken() as asked:
                interrupted = self._loop(progress, task, trackers, asked)
                self.save()
            if (problem := self.writer.wait()) is not None:
                raise problem
            if interrupted:
                raise KeyboardInterrupt
        return self.export()

    def _loop(self, progress: Progress, task: Any, trackers: Trackers, asked: list[int]) -> bool:
        recipe = self.recipe
        started = time.perf_counter()
        sums: dict[str, list[float]] = {}
        while self.step < self.end:
            record = self.train_step(lambda: bool(asked))
            stop = record.pop("stop")
            for key, value in record.items():
                sums.setdefault(key, []).append(value)
            if self.step % recipe.log_every == 0 or self.step == self.end or stop:
                line = self._line(sums, time.perf_counter() - started)
                if recipe.validate_every and self.step % recipe.validate_every == 0:
                    line |= self.validate()
                trackers.log(self.step, line)
                progress.update(task, description=f"loss {line['loss']:.3f} ce {line['ce']:.3f} mse {line['mse']:.3f}")
                started, sums = time.perf_counter(), {}
            if recipe.samples.every and self.step % recipe.samples.every == 0:
                self._samples(trackers)
            progress.update(task, completed=self.step)
            if stop:
                return self.step < self.end
            if self.step % recipe.save_every == 0:
                self.save()
        return False

    def _line(self, sums: dict[str, list[float]], seconds: float) -> dict[str, float]:
        """Means since the last line, and rates; steps skipped since then, rows refused so far."""
        line = {key: sum(values) / len(values) for key, values in sums.items()}
        line |= {key: sum(sums[key]) / len(sums["loss"]) for key in sums if key.startswith("n/")}  # no entry means none
        line |= {"skipped": sum(sums["skipped"])} | {key: sums[key][-1] for key in sums if key == "rejected"}
        flops = line.pop("flops") * len(sums["flops"]) / seconds
        line |= {"tokens_per_second": sum(sums["tokens"]) / seconds, "step_seconds": seconds / len(sums["loss"])}
        line |= {"tflops": flops / 1e12, "memory_gb": memory_gb(self.ranks.device)}
        return line | ({"mfu": flops / self.peak} if self.peak else {})

    # ---- state

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors (sharded where the model is)."""
        state: dict[str, Tensor] = {}
        for (name, weight), average in zip(self.named_weights.items(), self.average, strict=True):
            state[f"weight/{name}"], state[f"average/{name}"] = weight.detach(), average
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(weight, {}).items():
                    state[f"{key}/{name}"] = to_saved(torch.as_tensor(value))
        return state

    def save(self) -> None:
        """Begin a checkpoint; the oldest ones go when it is whole."""
        mine = {str(lane): state for lane, state in self.lane_states.items()}
        lanes: dict[str, Any] = {}
        for part in self.ranks.gather(mine):
            lanes |= part
        about = {
            "step": self.step,
            "lanes": self.lanes,
            "world": self.ranks.world,
            "data": [lanes.get(str(lane), {}) for lane in range(self.lanes)],
            "watch": self.watch.state(),
            "rows": self.packer.seal,
        }
        self.writer.save(self.step, self.state(), about)

    @torch.no_grad()
    def resume(self) -> None:
        """Load the newest checkpoint of ``out``, if there is one.

        Raises:
            ValueError: it is damaged, or was made with another number of packs a step (unless forced).
        """
        found = latest(self.out)
        if found is None:
            return
        about = read_about(found)
        check_lanes(about, self.lanes, self.ranks.world, found, self.force, self.quiet)
        names = read_names(found)
        own = {f"{kind}/{name}" for name in self.named_weights for kind in ("weight", "average")}
        if missing := sorted(own - names.keys()):
            raise ValueError(
                f"checkpoint {found} lacks {missing[0]} and {len(missing) - 1} more: other weights were trained"
            )
        tensors: dict[str, Tensor] = {}
        for (name, weight), average in zip(self.named_weights.items(), self.average, strict=True):
            tensors[f"weight/{name}"], tensors[f"average/{name}"] = weight.detach(), average
        for key, (shape, dtype) in names.items():
            weight_or_none = self.named_weights.get(key.partition("/")[2])
            if key not in tensors and weight_or_none is not None:
                whole = shape == weight_or_none.shape
                tensors[key] = (
                    torch.zeros_like(weight_or_none, dtype=dtype) if whole else torch.zeros(shape, dtype=dtype)
                )
        read_tensors(found, tensors, self.ranks)
        self._take_moments(tensors)
        self.step = int(about["step"])
        self.watch.load(about["watch"])
        same = same_rows(about, self.packer.seal, found, self.force, self.quiet)
        places = about["data"] if same else []
        self.packer.resume(places)
        for lane, state in enumerate(places):
            if lane in self.ranks.lanes(self.recipe.parallel.accumulate):
                self.lane_states[lane] = state

    def _take_moments(self, tensors: dict[str, Tensor]) -> None:
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind not in ("weight", "average"):
                moments[name][kind] = value
        for name, weight in self.named_weights.items():
            owner = next(o for o in self.optimizers if any(weight is q for g in o.param_groups for q in g["params"]))
            if belongs(owner, moments[name]):  # or a forced change of optimizer.kind begins anew
                held = {kind: from_saved(owner, weight, kind, t) for kind, t in moments[name].items()}
                owner.state[weight].update(held)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model has its averaged weights."""
        with parallel.resharded(self.model):
            current = [p.detach().clone() for p in self.weights]
            _put(self.weights, self.average)
        try:
            yield
        finally:
            with parallel.resharded(self.model):
                _put(self.weights, current)

    def _samples(self, trackers: Trackers) -> None:
        """Draw the fixed prompts with the averaged weights. All ranks draw: sharded weights are gathered by all."""
        with self.averaged():
            images = draw(self.loaded, self.tokenizer, self.profile, self.recipe.samples)
        self.model.train()
        if self.ranks.main:
            folder = self.out / "samples" / f"step-{self.step:08d}"
            for name, output in images.items():
                try:
                    output.save(folder / name, overwrite=True)
                except (OSError, ValueError) as error:  # a full disk must not end the run
                    warnings.warn(f"cannot write {folder / name}: {error}; training goes on", stacklevel=2)
                trackers.image(self.step, f"sample/{name}", output.image)

    @torch.no_grad()
    def export(self) -> Path:
        """Write the averaged weights: ``out/model``, a folder that every command takes, and with adapters
        ``out/adapter``. Returns the model's folder, or the adapter's if nothing is merged."""
        adapter = adapter_of(self.recipe)
        dtype = torch.bfloat16 if self.recipe.parallel.precision == "bfloat16" else None
        averages = self._gathered(dict(zip(self.named_weights, self.average, strict=True)), None if adapter else dtype)
        folder = self.out / ("model" if adapter is None or self.recipe.lora.merge else "adapter")
        others = {} if adapter else self._gathered(self._untrained(), dtype)
        if self.ranks.main:
            if adapter is not None:
                save_adapter(self.out / "adapter", adapter, averages)
            if folder.name == "model":
                weights = averages | others if adapter is None else merged(self.folder, adapter, averages)
                write_model(folder, self.folder, self.loaded, weights, self.profile, dtype)
        self.ranks.barrier()
        return folder

    def _gathered(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Whole tensors in the main process's memory; the others help to put them together and keep none."""
        held: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            whole = parallel.whole(tensor.detach())
            if self.ranks.main:
                held[name] = whole.to("cpu", dtype)
        return held

    def _untrained(self) -> dict[str, Tensor]:
        """Tensors of the model that no optimizer touches."""
        with parallel.resharded(self.model):
            return {n: t for n, t in self.model.state_dict().items() if n not in self.named_weights}


@torch.no_grad()
def _put(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(parallel.local(weights), parallel.local(values), strict=True):
        weight.copy_(value)


def train(recipe: TrainRecipe, quiet: bool = False, force: bool = False) -> Path:
    """Run a recipe to its end and return the exported model folder.

    Raises:
        ValueError: the recipe, the data, the checkpoints or the device's memory do not do.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="cannot write")
        try:
            return Trainer(recipe, quiet, force).fit()
        except torch.OutOfMemoryError:  # packs have a message of their own
            raise ValueError(
                "out of memory outside a pack (setting up, optimizer, samples): shard over more GPUs, set "
                "optimizer.kind to adamw8bit, use adapters (lora.rank), or set samples.every to 0"
            ) from None
