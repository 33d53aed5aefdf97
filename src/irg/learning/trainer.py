"""The training loop: pack, noise, score, step, average, log, checkpoint, sample.

State is small and plain (:mod:`.run_state`); everything random comes from generators of (seed, purpose, step, data
stream). A resumed run is bit-identical to an uninterrupted one on the same machine. One process or many: see
:mod:`.parallel`.
"""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from irg import files
from irg.learning import combinations, parallel, sampling
from irg.learning.checkpoints import Writer, latest, remove_unfinished
from irg.learning.costs import peak_flops, step_flops
from irg.learning.data.loader import build_loader
from irg.learning.data.packing import Pack, read_images
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.export import export
from irg.learning.gradient_guard import out_of_memory
from irg.learning.low_precision import LowPrecisionCopy
from irg.learning.metrics import Metrics, summary
from irg.learning.objective import Losses, detail_weights, flow_targets, losses, total
from irg.learning.optim import rate, update_average
from irg.learning.recipe import Draw, TrainRecipe
from irg.learning.resume_check import check_recipe, check_start, check_streams, same_rows
from irg.learning.run_state import RunState
from irg.learning.setup import adapter_of, build, start_folder, training_config
from irg.learning.trackers import Trackers
from irg.learning.validation import Validation
from irg.model.network.unified import UnifiedModel
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.randomness import generator
from irg.reasoning.prompts import BAGEL_PROFILE

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait: the list grows instead, and is looked at between steps. A second one ends the block at
    once, by KeyboardInterrupt."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield signals
        return

    def ask(number: int, _: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt

    usual = {number: signal.signal(number, ask) for number in INTERRUPTS}
    try:
        yield signals
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class Trainer:
    """One stage of training."""

    def __init__(
        self, recipe: TrainRecipe, quiet: bool = False, force: bool = False, ranks: parallel.Ranks | None = None
    ) -> None:
        """``force``: go on even where the folder's run was made with another recipe or number of packs a step."""
        self.recipe, self.force = recipe, force
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        self.ranks = ranks or parallel.join(recipe.device, recipe.parallel)
        combinations.check(combinations.Run(recipe, self.ranks.world, self.ranks.mesh is not None))
        self.quiet = quiet or not self.ranks.main
        self.folder, self.out = start_folder(recipe, self.ranks), Path(recipe.out)
        self.tokenizer = TextTokenizer.from_folder(self.folder)
        self.loaded = build(recipe, self.folder, self.ranks)
        self.config, self.model = self.loaded.config, self.loaded.model
        self.tokenizer.check(self.config, self.folder)
        self.profile: Profile = read_profile(self.folder) or BAGEL_PROFILE
        reading = training_config(self.config, recipe.images)
        self.encoder = TrajectoryEncoder(reading, self.tokenizer, self.profile)
        self.loader = build_loader(recipe, self.encoder, self.loaded.autoencoder, self.ranks, quiet)
        self.validation = Validation(
            self.loader.held_out(), reading, recipe.tokens_per_pack, self.loader.feed.attention
        )
        self.state = RunState(self.model, recipe)
        # adapters compute in the dtype of the weights under them
        low = recipe.parallel.precision == "bfloat16" and self.ranks.mesh is None and not recipe.lora.rank
        self.low = LowPrecisionCopy(self.model) if low else None
        self.writer = Writer(self.out, self.ranks, recipe.keep)
        self.peak = peak_flops(self.ranks.device)

    @property
    def end(self) -> int:
        """The step after which the run is over."""
        return self.recipe.stop_after or self.recipe.steps

    @property
    def streams(self) -> int:
        """Data streams of the run: packs in a step, over all ranks."""
        return self.ranks.world * self.recipe.parallel.accumulate

    @property
    def computing(self) -> UnifiedModel:
        """The model that computes: the one that is trained, or its copy in low precision."""
        return self.low.model if self.low else self.model

    def _target_weights(self, pack: Pack) -> Tensor | None:
        """Weights of a pack's target tokens in the flow loss, if they are not all alike."""
        if not self.recipe.detail_weight or pack.clean_GD is None or pack.image_of_target_M is None:
            return None
        clean_MD = pack.clean_GD[pack.target_rows_M]
        return detail_weights(
            clean_MD, pack.image_of_target_M, self.config.latent_patch_size, self.recipe.detail_weight
        )

    # ---- one step

    def score(self, pack: Pack, noise: torch.Generator, shift: float) -> Losses:
        """Noise a pack and score it."""
        read_images(pack, self.loaded.autoencoder, self.config, noise, self.recipe.images.latents == "sample")
        velocity = None
        if pack.clean_GD is not None:
            noise_GD = torch.randn(pack.clean_GD.shape, generator=noise)
            flow = flow_targets(pack.clean_GD, noise_GD.to(pack.clean_GD.device), pack.normal_G, shift)
            pack.batch.latents_GD, pack.batch.times_G, velocity = flow.noisy_GD, flow.times_G, flow.velocity_GD
        rows = (pack.loss_rows_L, pack.labels_L, pack.target_rows_M)
        return losses(self.computing, pack.batch, pack.attend, velocity, *rows)

    def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
        """One optimizer step; returns what to log. ``stop`` is called when it is done: if any rank's is true, all
        end after it (``record["stop"]``)."""
        recipe, state = self.recipe, self.state
        started = time.perf_counter()
        packs = {n: self.loader.pack(state.step, n) for n in self.ranks.streams(recipe.parallel.accumulate)}
        waited = time.perf_counter() - started
        metrics = self.gradients(packs)
        factor = rate(state.step, recipe.steps, recipe.optimizer)
        norm, accepted = self.update(factor)
        state.step += 1
        budget = recipe.tokens_per_pack * len(packs)
        return metrics.summed(self.ranks, list(packs.values()), recipe.ce_weight, recipe.mse_weight, stop()) | {
            "grad_norm": norm,
            "lr_factor": factor,
            "skipped": float(not accepted),
            "fill": sum(p.tokens for p in packs.values()) / budget,
            "wait": waited,
            "flops": sum(
                step_flops(self.config, p.work, recipe.frozen, bool(recipe.lora.rank)) for p in packs.values() if p.work
            ),
        }

    def update(self, factor: float) -> tuple[float, bool]:
        """Clip the gradients and take an optimizer step, at ``factor`` x the recipe's rates, unless the guard refuses
        them; they are gone then. Returns their norm before, and whether the step was taken."""
        recipe, state = self.recipe, self.state
        norm = parallel.clipped(state.weights, recipe.optimizer.clip)()
        accepted = state.guard.accepts(norm)
        if accepted:
            for optimizer in state.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                optimizer.step()
            update_average(parallel.local(state.average), parallel.local(state.weights), self._decay())
        for p in state.weights:
            p.grad = None
        return norm, accepted

    def gradients(self, packs: Mapping[int, Pack], weight: float = 1.0) -> Metrics:
        """Run packs (by data stream) forward and backward; their gradients are those of ``weight`` x the mean over all
        ranks' tokens.

        Raises:
            ValueError: the device ran out of memory; the message says on which pack, and what to lower.
        """
        counts = torch.tensor([[len(p.labels_L), len(p.target_rows_M)] for p in packs.values()])
        texts, targets = self.ranks.sum(counts.sum(0).to(self.ranks.device)).tolist()
        metrics = Metrics(self.ranks.device)
        if self.low:
            self.low.refresh()
        for stream, pack in packs.items():
            try:
                self._backward(pack, stream, (texts, targets), metrics, weight)
            except torch.OutOfMemoryError:
                raise out_of_memory(pack, self.state.step, stream, self.recipe) from None
            if self.low:
                self.low.collect()
            self.state.streams[stream] = pack.state
        return metrics

    def _backward(
        self, pack: Pack, stream: int, divisors: tuple[float, float], metrics: Metrics, weight: float
    ) -> None:
        recipe = self.recipe
        if self.ranks.device.type != "cpu":
            pack = pack.to(self.ranks.device)
        noise = generator(recipe.seed, Draw.NOISE, self.state.step, stream)
        scored = self.score(pack, noise, recipe.timestep_shift)
        loss, _, _ = total(
            scored, recipe.ce_weight, recipe.mse_weight, divisors=divisors, mse_weights_M=self._target_weights(pack)
        )
        # FSDP averages gradients over ranks; the divisors are already those of all of them.
        scale = weight * self.ranks.world
        (loss * scale if scale != 1 else loss).backward()
        metrics.add(pack, scored)

    def _decay(self) -> float:
        """With warm-up the averages of early steps are not the (random) start."""
        step, ema = self.state.step, self.recipe.ema
        return min(ema, (1 + step) / (10 + step)) if self.recipe.ema_warmup else ema

    # ---- beside the steps

    def measured(self) -> dict[str, float]:
        """What is measured on held-out rows after the step that was just taken, if it is due."""
        due = self.recipe.validate_every and self.state.step % self.recipe.validate_every == 0
        return self.validate() if due else {}

    def validate(self) -> dict[str, float]:
        """Errors of the held-out rows (:mod:`.validation`), with the weights after the step that was just taken."""
        if self.low:
            self.low.refresh()

        def score(pack: Pack, number: int) -> Losses:
            return self.score(pack.to(self.ranks.device), generator(self.recipe.seed, Draw.VALIDATION, number), 1.0)

        result = self.validation.measure(score)
        parallel.reshard(self.model)
        return result

    def sample(self, trackers: Trackers) -> None:
        """Draw the fixed prompts with the averaged weights. A failure is a warning: it never ends the run."""
        step, recipe, problem = self.state.step, self.recipe, None
        try:
            dtype = getattr(torch, recipe.parallel.precision)
            averages = self.state.averages()
            model = sampling.averaged_model(self.model, averages, adapter_of(recipe), self.ranks, dtype)
            if model is not None:
                outputs = sampling.draw(model, self.loaded, self.tokenizer, self.profile, recipe.samples)
                sampling.save(outputs, self.out / "samples" / f"step-{step:08d}", step, trackers)
        except Exception as error:
            problem = sampling.failure(error, step)
        for found in self.ranks.gather(problem):  # the others wait here for the main process
            if found and self.ranks.main:
                warnings.warn(found, stacklevel=2)

    # ---- the loop

    def fit(self) -> Path:
        """Train to the end, resuming from the newest checkpoint in ``out``; returns the exported model folder (the
        adapter's, where adapters are trained and not merged)."""
        check_recipe(self.recipe, self.out, self.ranks, self.force)
        check_start(self.folder, self.out, self.ranks, self.force)
        self.resume()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with (
            Progress(*columns, disable=self.quiet) as progress,
            Trackers(self.out, self.recipe.trackers, asdict(self.recipe), self.ranks.main) as trackers,
        ):
            task = progress.add_task("training", total=self.end, completed=self.state.step)
            with deferred_interrupts() as signals:
                interrupted = self._loop(progress, task, trackers, signals)
                self.save()
            if (problem := self.writer.wait()) is not None:
                raise problem
            if interrupted:
                raise KeyboardInterrupt
        return export(self.recipe, self.folder, self.loaded, self.state, self.profile, self.ranks)

    def _loop(self, progress: Progress, task: Any, trackers: Trackers, signals: list[int]) -> bool:
        recipe, state = self.recipe, self.state
        started = time.perf_counter()
        sums: dict[str, list[float]] = {}
        while state.step < self.end:
            record = self.train_step(lambda: bool(signals))
            stop = record.pop("stop")
            for key, value in record.items():
                sums.setdefault(key, []).append(value)
            if state.step % recipe.log_every == 0 or state.step == self.end or stop:
                line = summary(sums, time.perf_counter() - started, self.ranks.device, self.peak)
                line |= self.measured()
                trackers.log(state.step, line)
                progress.update(task, description=self.described(line))
                started, sums = time.perf_counter(), {}
            progress.update(task, completed=state.step)
            if stop:
                return state.step < self.end
            if recipe.saves_at(state.step):
                self.save()  # before sampling: whatever happens there costs no step
            if recipe.samples.due(state.step):
                self.sample(trackers)
        return False

    def described(self, line: Mapping[str, float]) -> str:
        """A line of the log for the progress bar."""
        return f"loss {line['loss']:.3f} ce {line['ce']:.3f} mse {line['mse']:.3f}"

    # ---- checkpoints

    def about(self) -> dict[str, Any]:
        """The plain data of a checkpoint."""
        return self.state.about(self.ranks, self.streams, self.loader.fingerprint)

    def save(self) -> None:
        """Begin a checkpoint; the oldest ones go when it is whole."""
        self.writer.save(self.state.step, self.state.tensors(), self.about())

    def resume(self) -> Mapping[str, Any] | None:
        """Load the newest checkpoint of ``out``, if there is one; returns its plain data.

        Raises:
            ValueError: it is damaged, or was made with other rows or packs a step (unless forced).
        """
        if (found := latest(self.out)) is None:
            return None
        check_streams(found, self.streams, self.ranks.world, self.force, self.quiet)
        about = self.state.load(found, self.ranks)
        same = same_rows(about, self.loader.fingerprint, found, self.force, self.quiet)
        states = about["data"] if same else []
        self.loader.resume(states)
        mine = self.ranks.streams(self.recipe.parallel.accumulate)
        self.state.streams = {stream: state for stream, state in enumerate(states) if stream in mine}
        return about


def train(recipe: TrainRecipe, quiet: bool = False, force: bool = False, trainer: type[Trainer] = Trainer) -> Path:
    """Run a recipe to its end with a trainer of its kind and return the exported model folder.

    Raises:
        ValueError: the recipe, the data, the checkpoints or the device's memory do not do, or another run is at work in
            the folder.
    """
    ranks = parallel.join(recipe.device, recipe.parallel)
    with warnings.catch_warnings(), only_run(Path(recipe.out), ranks):
        warnings.filterwarnings("always", message="cannot ")
        try:
            return trainer(recipe, quiet, force, ranks).fit()
        except torch.OutOfMemoryError:  # packs have a message of their own
            raise ValueError(
                "out of memory outside a pack (setting up, optimizer): shard over more GPUs, set optimizer.kind to "
                "adamw8bit, or use adapters (lora.rank)"
            ) from None


@contextmanager
def only_run(out: Path, ranks: parallel.Ranks) -> Iterator[None]:
    """Hold the lock of a run's folder, rid of what a kill has left there; the main process does it for all.

    Raises:
        ValueError: another run holds it.
    """
    refusal, problem = f"another run is at work in {out}: wait for its end, or choose another --out", None
    with ExitStack() as held:
        if ranks.main:
            try:
                held.enter_context(files.locked(out / ".lock", refusal))
                remove_unfinished(out)
            except ValueError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{out} can't be written: {error}"
        if found := ranks.gather(problem)[0]:
            raise ValueError(found)
        yield
