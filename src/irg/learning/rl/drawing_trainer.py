"""Training the flow head by reward: a step draws images with the old policy, scores them, and moves the policy towards
the good ones and away from the bad ones.

With DiffusionNFT the old policy is the run's average of weights (``ema``), which checkpoints keep and the run exports.
Its decay by step is that of any run; with ``ema: 0`` it is the policy as it was before the step. With Flow-GRPO it
always is that. Where rollouts are made ahead, the average that drew them is kept until they are learned from.

Legend: G latent tokens of a pack, M those of targets; D values per token.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from irg.learning import sampling
from irg.learning.gradient_guard import out_of_memory
from irg.learning.parallel import Ranks
from irg.learning.recipe import Draw
from irg.learning.rl.advantages import advantages
from irg.learning.rl.drawings import DrawingPack, DrawnGroup, draw_groups, drawing_packs, learned_drawings
from irg.learning.rl.figures import StepFigures, reward_figures
from irg.learning.rl.flow_learning import FlowLosses, flow_losses, prepare_targets, velocities, window_of
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rewards import Judged
from irg.learning.rl.trainer import RLTrainer
from irg.learning.setup import adapter_of
from irg.model.network.unified import UnifiedModel
from irg.randomness import generator


class DrawingTrainer(RLTrainer):
    """One run by reward that trains drawing."""

    def __init__(self, recipe: RLRecipe, quiet: bool = False, force: bool = False, ranks: Ranks | None = None) -> None:
        super().__init__(recipe, quiet, force, ranks)
        recipe.drawing.check(self.config.image_stride)
        self._drew: Mapping[Parameter, Tensor] = {}  # the averages that drew what is learned from off-policy

    def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
        """One step; returns what to log."""
        recipe, step, started = self.recipe, self.state.step, time.perf_counter()
        groups = self.step_rollouts()
        judged = self.judge_drawings(groups)
        scored = time.perf_counter()
        malformed = [[one.malformed for one in some] for some in judged]
        values = advantages([[one.total for one in some] for some in judged], malformed, recipe.advantage)
        samples = learned_drawings(groups, values, recipe.skip_equal_groups)
        size = -(-len(samples) // recipe.minibatches) or 1
        levels = generator(recipe.seed, Draw.DRAWING, step, 0)
        batches = [
            drawing_packs(
                samples[start : start + size],
                recipe,
                self.encoder.config,
                lambda: float(torch.randn((), generator=levels)),
                self.loader.feed.attention,
            )
            for start in range(0, len(samples), size)
        ]
        record = reward_figures(judged, values) | self.learn(batches)
        drawn = sum(len(group.drawings) for group in groups)
        record |= self.speed(started, scored, drawn, "images", record["tokens"])
        self.limits.check(record, self._failure)
        return record | {"stop": self.any_rank(stop())}

    @property
    def draws_itself(self) -> bool:
        """Rollouts are drawn with the weights as they are, not with their average."""
        return self.recipe.drawing.learning == "flow-grpo"

    def rollout_averages(self) -> Mapping[Parameter, Tensor]:
        return {} if self.draws_itself else self.state.averages()

    @contextmanager
    def rollout_model(self) -> Iterator[UnifiedModel]:
        yield self.old_policy()

    def old_policy(self) -> UnifiedModel:
        """The model that drew what is learned from: with the average of weights, or as it is. What is not trained is
        shared, not copied."""
        dtype = getattr(torch, self.recipe.parallel.precision)
        averages = self._drew if self.off_policy else self.rollout_averages()
        model = sampling.averaged_model(
            self.model, averages, adapter_of(self.recipe), self.ranks, dtype, everywhere=True
        )
        assert model is not None
        return model.eval()

    def begin_rollouts(self, step: int) -> Callable[[], list[DrawnGroup]]:
        prompts, seeds = self.prompts_of(step, self.recipe.rollout.samples)
        return self.begin_drawings(prompts, seeds, window_of(self.recipe, step))

    def begin_drawings(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], window: int | None = None
    ) -> Callable[[], list[DrawnGroup]]:
        """Begin images for prompts by the old policy, from step ``window`` on with stochastic steps; see
        :meth:`begin`."""
        return self.begin(draw_groups, prompts, seeds, how=self.recipe.drawing, window=window)

    def judge_drawings(self, groups: Sequence[DrawnGroup]) -> list[list[Judged]]:
        """The rewards of all images, by group."""
        pairs = [(group.prompt, one) for group in groups for one in group.trajectories(self.profile.name)]
        found = iter(self.judge_pairs(pairs))
        return [[next(found) for _ in group.drawings] for group in groups]

    def judged_rollouts(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Judged]]:
        return self.judge_drawings(self.begin_drawings(prompts, seeds)())

    def new_figures(self) -> StepFigures:
        return DrawingFigures()

    @torch.no_grad()
    def _score_before(self, packs: Sequence[tuple[int, Any]]) -> None:
        """Prepare all packs, and let the old policy and the reference predict their velocities before the first update.
        (Where the policy itself drew and there is one update, the old velocities are those that the gradient is taken
        of; where it drew ahead, the sampler's densities take their place.)"""
        known = self.draws_itself and (self.off_policy or self.recipe.updates == 1)
        old = None if known else self.old_policy()
        for number, own in packs:
            noise = generator(self.recipe.seed, Draw.DRAWING, self.state.step, 1, number)
            if self.ranks.device.type != "cpu":
                own.to(self.ranks.device)
            prepare_targets(own, self.recipe, noise)
            if old is not None:
                own.old_MD = velocities(old, own)
            if self.reference is not None:
                with self.reference.model() as model:
                    own.reference_MD = velocities(model, own)
        del old  # it holds the averages of before
        self._drew = {}
        if self.next_rollouts is not None and not self.draws_itself:
            self._drew = {weight: average.clone() for weight, average in self.state.averages().items()}

    def _policy_backward(self, pack: Any, divisors: tuple[float, float], figures: StepFigures, number: int) -> None:
        assert isinstance(pack, DrawingPack) and isinstance(figures, DrawingFigures)
        try:
            new_MD = velocities(self.computing, pack)
            old_MD = pack.old_MD
            if old_MD is None and not self.off_policy:
                old_MD = new_MD.detach()
            scored = flow_losses(new_MD, old_MD, pack, self.recipe.drawing)
            loss = scored.loss_M.sum() / divisors[1]
            loss.backward()
        except torch.OutOfMemoryError:
            raise out_of_memory(pack.pack, self.state.step, number, self.recipe) from None
        if self.low:
            self.low.collect()
        figures.add_drawings(pack, scored, float(loss.detach()))


class DrawingFigures(StepFigures):
    """Sums over the packs and updates of a step: tokens are those of targets."""

    def add_drawings(self, pack: DrawingPack, scored: FlowLosses, loss: float) -> None:
        """Add a pack after its backward pass."""
        self.add_targets(scored)
        self.losses.append(loss)
        self.tokens += pack.pack.tokens

    def add_targets(self, scored: FlowLosses) -> None:
        """Add what is said of a pack's targets."""
        for name, values_M in scored.figures_M.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values_M.sum())
        self.chosen += len(scored.loss_M)
        self.ratio_gap = max(self.ratio_gap, scored.ratio_gap)

    def means(self, learning: str) -> dict[str, float]:
        """Of the targets."""
        found = {name: value / max(1, self.chosen) for name, value in self.sums.items()}
        return found | ({"flow_ratio_gap": self.ratio_gap} if learning == "flow-grpo" else {})

    def record(self, recipe: RLRecipe) -> dict[str, float]:
        """Without what is of texts alone."""
        of_texts = ("entropy", "rollout_gap", "clipped", "ratio_gap")
        whole = {name: value for name, value in super().record(recipe).items() if name not in of_texts}
        return whole | self.means(recipe.drawing.learning)
