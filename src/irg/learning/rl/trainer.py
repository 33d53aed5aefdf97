"""Training by reward: a step is rollouts, rewards, advantages, packs, and one or several optimizer steps.

All that a supervised run is made of (model, optimizer, guard, checkpoints, log, export) is
:class:`irg.learning.trainer.Trainer`'s; only the step is another. Nothing random is kept: see ``docs/rl.md``.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from irg import files
from irg.engine.ops import Write
from irg.learning import parallel, sampling
from irg.learning.costs import step_flops
from irg.learning.data.packing import Pack, read_images
from irg.learning.gradient_guard import out_of_memory
from irg.learning.optim import rate
from irg.learning.recipe import Draw
from irg.learning.rl.advantages import advantages
from irg.learning.rl.figures import StepFigures, rollout_figures
from irg.learning.rl.limits import LimitGuard
from irg.learning.rl.loss import policy_losses, token_scores
from irg.learning.rl.packs import PolicyPack, learned, policy_packs
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.reference import Reference
from irg.learning.rl.rewards import Judged, Rewards
from irg.learning.rl.rollouts import Group, roll_out
from irg.learning.rl.workers import Make, RolloutWorkers
from irg.learning.setup import adapter_of
from irg.learning.trackers import Trackers
from irg.learning.trainer import Trainer
from irg.model.network.unified import UnifiedModel
from irg.randomness import generator, numpy_generator
from irg.results.trajectory import Trajectory

TEXTS = "texts.jsonl"
TEXTS_KEPT = 4
"""Texts of a logged step that are kept with their rewards."""
_EVALUATION_SEED = 2**32
"""Added to the run's seed for the prompts of the evaluation."""


class RLTrainer(Trainer):
    """One run by reward."""

    recipe: RLRecipe

    def __init__(
        self, recipe: RLRecipe, quiet: bool = False, force: bool = False, ranks: parallel.Ranks | None = None
    ) -> None:
        recipe.prompts.check(recipe.policy == "reflection")
        self.rewards = Rewards(recipe.rewards)
        if ranks is None or ranks.main:  # it alone asks for rewards
            self.rewards.prepare()
        super().__init__(recipe, quiet, force, ranks)
        self.limits = LimitGuard(recipe.limits)
        dtype = getattr(torch, recipe.parallel.precision)
        self.reference = Reference(self.computing, self.ranks, dtype) if recipe.measures_divergence else None
        self._failure = ""  # why a reward failed last
        started = recipe.rollout.workers and self.ranks.main
        self.workers = RolloutWorkers(recipe, self.encoder) if started else None
        self._sent = -1  # the step whose weights the workers have
        self.next_rollouts: Callable[[], Any] | None = None  # gives the next step's rollouts, which workers are making
        self.off_policy = False  # the step's rollouts were made with the weights of the step before
        self.reward_seconds = 0.0  # of the step, that rewards took

    # ---- one step

    def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
        """One step; returns what to log (see :meth:`Trainer.train_step`)."""
        recipe, started = self.recipe, time.perf_counter()
        groups = self.step_rollouts()
        judged = self.judge(groups)
        scored = time.perf_counter()
        values = advantages(
            [[one.total for one in some] for some in judged],
            [_malformed(group, some) for group, some in zip(groups, judged, strict=True)],
            recipe.advantage,
        )
        samples = learned(groups, values, recipe.skip_equal_groups)
        size = -(-len(samples) // recipe.minibatches) or 1
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        attention = self.loader.feed.attention
        batches = [policy_packs(part, recipe, self.encoder.config, attention) for part in parts]
        record = rollout_figures(groups, judged, values)
        record |= self.learn(batches)
        written = sum(len(text.ids) + 1 for group in groups for text in group.texts)
        record |= self.speed(started, scored, written, "tokens", record["tokens"])
        self.limits.check(record, self._failure)
        if self.state.step % recipe.log_every == 0:
            self._keep_texts(groups, judged, values)
        return record | {"stop": self.any_rank(stop())}

    def speed(self, started: float, scored: float, made: int, what: str, trained: float) -> dict[str, float]:
        """What the log says of the times of a step that ends now.

        Args:
            started, scored: when it began, and when its rollouts had their rewards.
            made: how many tokens or images (``what``) were made; trained: tokens that were learned from.
        """
        rollout, learning = scored - started - self.reward_seconds, time.perf_counter() - scored
        record = {"rollout_seconds": rollout, f"rollout_{what}_per_second": made / rollout}
        if self.recipe.rollout.ahead:  # they are made beside
            record = {"wait": rollout}
        record |= {"reward_seconds": self.reward_seconds, "learning_seconds": learning}
        return record | {"learning_tokens_per_second": trained / learning}

    def any_rank(self, stop: bool) -> float:
        """1 if any rank wants to stop, else 0."""
        return float(any(self.ranks.gather(stop)))

    # ---- rollouts

    def step_rollouts(self) -> Any:
        """The rollouts that this step learns from. Those of the next step are begun first, if they are made ahead."""
        self.reward_seconds, step = 0.0, self.state.step
        self.off_policy = self.next_rollouts is not None
        finish = self.next_rollouts or self.begin_rollouts(step)
        self.next_rollouts = self.begin_rollouts(step + 1) if self._goes_ahead(step + 1) else None
        return finish()

    def _goes_ahead(self, step: int) -> bool:
        """Whether the rollouts of a step are made while the step before is learned from. Those of the step after a
        checkpoint never are: a run that goes on from it has no other weights to make them with."""
        return self.recipe.rollout.ahead > 0 and step < self.end and not self.recipe.saves_at(step)

    def begin_rollouts(self, step: int) -> Callable[[], Any]:
        """Begin the rollouts of a step with the weights as they are; what is returned waits for them."""
        prompts, seeds = self.prompts_of(step, self.recipe.rollout.samples)
        return self.begin_texts(prompts, seeds, self.recipe.rollout.temperature)

    def prompts_of(self, step: int, samples: int) -> tuple[list[Prompt], list[list[int]]]:
        """The prompts of a step, and for each so many seeds."""
        recipe = self.recipe
        prompts = recipe.prompts.draw(recipe.seed, step, recipe.rollout.prompts)
        shape = (len(prompts), samples)
        return prompts, numpy_generator(recipe.seed, Draw.ROLLOUT, step).integers(2**63, size=shape).tolist()

    def begin_texts(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> Callable[[], list[Group]]:
        """Begin texts for prompts; see :meth:`begin`."""
        write = Write(self.recipe.rollout.max_tokens, temperature, logprobs=True)
        return self.begin(roll_out, prompts, seeds, write=write)

    def begin(
        self, make: Make, prompts: Sequence[Prompt], seeds: Sequence[Any], **options: Any
    ) -> Callable[[], list[Any]]:
        """Begin rollouts with the weights as they are; what is returned waits for them and gives one result for each
        prompt. Without workers the ranks make them then, a part each. Collective, both."""
        options["at_once"] = self.recipe.rollout.at_once
        if self.recipe.rollout.workers:
            self._send_weights()
            tasks = self.workers.begin(make, prompts, seeds, options) if self.workers else []
            return lambda: self._results(tasks)

        def made() -> list[Any]:
            with self.rollout_model() as model:
                args = (model, self.loaded.autoencoder, self.encoder)
                return self.ranks.spread(prompts, seeds, lambda some, own: make(*args, some, seeds=own, **options))

        return made

    def _results(self, tasks: Sequence[Any]) -> list[Any]:
        """What workers made, on all ranks; and a worker that ended is told on all, or others would wait for ever."""
        told: list[Any] | ValueError | None = None
        if self.workers:
            try:
                told = self.workers.results(tasks)
            except ValueError as error:
                told = error
        found = self.ranks.gather(told)[0]
        if isinstance(found, ValueError):
            raise found
        return cast(list[Any], found)

    @torch.no_grad()
    def _send_weights(self) -> None:
        """Let the workers have the weights of this step, if they don't yet."""
        if self._sent == self.state.step:
            return
        parallel.reshard(self.model)
        dtype, averages, weights = getattr(torch, self.recipe.parallel.precision), self.rollout_averages(), {}
        for name, parameter in self.state.named_weights.items():
            whole = parallel.whole(averages.get(parameter, parameter.detach()))  # all ranks together
            if self.workers:
                weights[name] = whole.to("cpu", None if self.recipe.lora.rank else dtype)
        if self.workers:
            self.workers.load(weights)
        self._sent = self.state.step

    def rollout_averages(self) -> Mapping[Parameter, Tensor]:
        """Averaged weights that rollouts are made with, by parameter; of those left out, the weights as they are."""
        return {}

    @contextmanager
    def rollout_model(self) -> Iterator[UnifiedModel]:
        """The model for the engine, with the weights as they are."""
        self._refresh()
        model = self._plain()
        was_training = model.training
        try:
            yield model
        finally:
            model.train(was_training)

    def _refresh(self) -> None:
        """Let the copy in low precision, if there is one, have the weights as they are."""
        if self.low:
            self.low.refresh()

    def _plain(self) -> UnifiedModel:
        """The model for the engine: sharded weights are gathered."""
        if self.ranks.mesh is None:
            return self.computing
        dtype = getattr(torch, self.recipe.parallel.precision)
        gathered = sampling.averaged_model(self.model, {}, adapter_of(self.recipe), self.ranks, dtype, everywhere=True)
        assert gathered is not None
        return gathered

    def judge(self, groups: Sequence[Group]) -> list[list[Judged]]:
        """The rewards of all texts, by group."""
        name = self.profile.name
        pairs = [(group.prompt, group.trajectory(text, name)) for group in groups for text in group.texts]
        found = iter(self.judge_pairs(pairs))
        return [[next(found) for _ in group.texts] for group in groups]

    def judge_pairs(self, pairs: Sequence[tuple[Prompt, Trajectory]]) -> list[Judged]:
        """The rewards of trajectories, each with its prompt: the main process asks for them. The first failure is a
        warning."""
        started = time.perf_counter()
        columns = [prompt for prompt, _ in pairs], [trajectory for _, trajectory in pairs]
        judged: list[Judged] = self.ranks.gather(self.rewards.judge(*columns) if self.ranks.main else None)[0]
        failures = [one.failure for one in judged if one.failure]
        if failures:
            self._failure, what = failures[0], "images" if self.recipe.policy == "drawing" else "texts"
            warnings.warn(f"cannot score {len(failures)} of {len(pairs)} {what}, such as: {failures[0]}", stacklevel=2)
        self.reward_seconds += time.perf_counter() - started
        return judged

    def judged_rollouts(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Judged]]:
        """The rewards of what the policy makes of prompts."""
        return self.judge(self.begin_texts(prompts, seeds, temperature)())

    # ---- learning

    def learn(self, batches: Sequence[Sequence[Any]]) -> dict[str, float]:
        """Optimizer steps on packs of rollouts, and on the step's supervised packs with each of them."""
        recipe, state = self.recipe, self.state
        factor = rate(state.step, recipe.steps, recipe.optimizer)
        supervised = self._supervised()
        noise = generator(recipe.seed, Draw.NOISE, state.step)
        figures = self.new_figures()
        shares = [self._share(batch) for batch in batches]
        packs = {id(pack): pack for share in shares for pack, _ in share}
        for pack in packs.values():
            read_images(pack.pack, self.loaded.autoencoder, self.config, noise)
        numbers = {id(pack): i for i, pack in enumerate(pack for batch in batches for pack in batch)}
        self._refresh()
        self._score_before([(numbers[key], pack) for key, pack in packs.items()])
        for _ in range(recipe.epochs):
            for batch, share in zip(batches or ((),), shares or ((),), strict=True):
                divisors = self._divisors(batch)
                for number, (pack, counts) in enumerate(share):
                    if counts:
                        self._policy_backward(pack, divisors, figures, number)
                    else:
                        self._policy_backward(pack, (math.inf, math.inf), self.new_figures(), number)
                if supervised:
                    metrics = self.gradients(supervised, recipe.supervised_weight)
                    figures.supervised = metrics.summed(
                        self.ranks, list(supervised.values()), recipe.ce_weight, recipe.mse_weight, False
                    )
                if batch or supervised:
                    figures.updates.append(self.update(factor))
                    self._refresh()
        state.step += 1
        work = [pack.pack.work for batch in batches for pack in batch] * recipe.epochs
        work += [pack.work for pack in supervised.values()] * len(figures.updates)
        flops = [step_flops(self.config, w, recipe.frozen, bool(recipe.lora.rank)) for w in work if w]
        whole = figures.over(self.ranks)
        return whole.record(recipe) | {"lr_factor": factor, "flops": sum(flops)}

    def _share(self, batch: Sequence[Any]) -> list[tuple[Any, bool]]:
        """This rank's packs of a batch, and whether they count. All ranks run as many, for sharded weights are gathered
        by all together: where packs run out, the last one is run again and counts nothing."""
        own = [(pack, True) for pack in batch[self.ranks.rank :: self.ranks.world]]
        most = -(-len(batch) // self.ranks.world)
        return own + [(batch[-1], False)] * (most - len(own))

    def _divisors(self, batch: Sequence[Any]) -> tuple[float, float]:
        """What sums over a pack's tokens of texts and of targets are divided by, so that the mean of all ranks'
        gradients, which FSDP takes, is that of a batch."""
        counts, world = [pack.counts(self.recipe.loss.average) for pack in batch], self.ranks.world
        return sum(texts for texts, _ in counts) / world, sum(targets for _, targets in counts) / world

    def new_figures(self) -> StepFigures:
        """Of a step that begins."""
        return StepFigures()

    def _supervised(self) -> dict[int, Pack]:
        if not self.recipe.imitates:
            return {}
        streams = self.ranks.streams(self.recipe.parallel.accumulate)
        return {stream: self.loader.pack(self.state.step, stream) for stream in streams}

    @torch.no_grad()
    def _score_before(self, packs: Sequence[tuple[int, Any]]) -> None:
        """Log-probabilities of the reference; and before the first update where there are several. (Where there is one,
        they are those that the gradient is taken of. Of rollouts that were made ahead the engine's are taken.)"""
        for _, pack in packs:
            if self.off_policy:
                pack.old_L = pack.rollout_L.to(self.ranks.device)
            elif self.recipe.updates > 1:
                pack.old_L = self._scores(self.computing, pack)[0]
            if self.reference is not None:
                with self.reference.model() as model:
                    pack.reference_L = self._scores(model, pack)[0]

    def _scores(self, model: UnifiedModel, pack: PolicyPack) -> tuple[Tensor, Tensor]:
        on_device = pack.pack if self.ranks.device.type == "cpu" else pack.pack.to(self.ranks.device)
        if on_device.clean_GD is not None:
            on_device.batch.latents_GD = on_device.clean_GD
            on_device.batch.times_G = torch.zeros_like(on_device.normal_G)
        hidden_UC, _ = model(on_device.batch, on_device.attend)
        rows = hidden_UC[on_device.loss_rows_L]
        return token_scores(model, rows, on_device.labels_L, self.recipe.rollout.temperature)

    def _policy_backward(self, pack: Any, divisors: tuple[float, float], figures: StepFigures, number: int) -> None:
        """Add a pack's gradients to those of the batch."""
        assert isinstance(pack, PolicyPack)
        recipe = self.recipe
        try:
            logprobs_L, entropy_L = self._scores(self.computing, pack)
            old_L = logprobs_L.detach() if pack.old_L is None else pack.old_L
            device = logprobs_L.device
            advantages_L, weights_L = pack.advantages_L.to(device), pack.weights_L.to(device)
            scored = policy_losses(logprobs_L, entropy_L, old_L, advantages_L, pack.reference_L, recipe.loss)
            loss = (weights_L * scored.loss_L).sum() / divisors[0]
            loss.backward()
        except torch.OutOfMemoryError:
            raise out_of_memory(pack.pack, self.state.step, number, recipe) from None
        if self.low:
            self.low.collect()
        figures.add(pack, scored, loss.detach(), old_L, entropy_L.detach())

    # ---- beside the steps

    def measured(self) -> dict[str, float]:
        """What is measured after the step that was just taken, if it is due."""
        due = self.recipe.evaluate.every and self.state.step % self.recipe.evaluate.every == 0
        return super().measured() | (self.evaluate() if due else {})

    def held_out_prompts(self, samples: int) -> tuple[list[Prompt], list[list[int]]]:
        """The evaluation's prompts, and for each so many seeds."""
        recipe, how = self.recipe, self.recipe.evaluate
        prompts = (how.prompts or recipe.prompts).draw(recipe.seed + _EVALUATION_SEED, 0, how.count)
        shape = (len(prompts), samples)
        return prompts, numpy_generator(recipe.seed, Draw.EVALUATION).integers(2**63, size=shape).tolist()

    def evaluate(self) -> dict[str, float]:
        """Mean rewards of one text or image for each of the evaluation's prompts; those that failed are left out."""
        how = self.recipe.evaluate
        found_by_prompt = self.judged_rollouts(*self.held_out_prompts(1), how.temperature)
        judged = [one for some in found_by_prompt for one in some if one.total is not None]
        found: dict[str, list[float]] = {"held_out_reward": [one.total for one in judged if one.total is not None]}
        for one in judged:
            for name, value in one.figures().items():
                found.setdefault(name.replace("reward/", "held_out/", 1), []).append(value)
        return {name: sum(values) / max(1, len(values)) for name, values in found.items()}

    def described(self, line: Mapping[str, float]) -> str:
        shown = f"reward {line['reward']:.3f}"
        return shown + "".join(f" {name} {line[name]:.2f}" for name in ("entropy", "length") if name in line)

    def _loop(self, progress: Any, task: Any, trackers: Trackers, signals: list[int]) -> bool:
        if self.state.step == 0 and self.recipe.evaluate.every:
            trackers.log(0, self.evaluate())
        return super()._loop(progress, task, trackers, signals)

    def _keep_texts(
        self, groups: Sequence[Group], judged: Sequence[Sequence[Judged]], values: Sequence[Sequence[float | None]]
    ) -> None:
        """The best and the worst text of a step's first groups, with their rewards and reasons."""
        lines = []
        for group, some, own in list(zip(groups, judged, values, strict=True))[: TEXTS_KEPT // 2]:
            order = sorted(range(len(some)), key=lambda i: some[i].total or 0.0)
            for i in (order[-1], order[0]):
                line: dict[str, Any] = {
                    "prompt": group.prompt.text,
                    "text": group.texts[i].text,
                    "reward": some[i].total,
                }
                lines.append(line | {"advantage": own[i], "reasons": some[i].reasons(), "failure": some[i].failure})
        self.write_texts(lines)

    def write_texts(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep some texts of the step that was just taken."""
        if not self.ranks.main:
            return
        with files.JsonLines(Path(self.recipe.out) / TEXTS) as file:
            for line in lines:
                file.append({"step": self.state.step, **line})

    # ---- checkpoints

    def about(self) -> dict[str, Any]:
        return super().about() | {"limits": self.limits.state()}

    def resume(self) -> Mapping[str, Any] | None:
        about = super().resume()
        if about is not None:
            self.limits.load(about.get("limits", {}))
        return about

    def fit(self) -> Path:
        try:
            return super().fit()
        finally:
            self.rewards.close()
            if self.workers:
                self.workers.close()


def _malformed(group: Group, judged: Sequence[Judged]) -> list[bool]:
    return [not text.complete or one.malformed for text, one in zip(group.texts, judged, strict=True)]
