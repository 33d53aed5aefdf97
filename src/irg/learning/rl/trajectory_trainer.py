"""Training whole trajectories by reward: texts by the policy gradient, images as :mod:`.flow_learning` does.

A step thinks and draws first images (or takes those that are given), lets siblings go on from each, and scores every
image. A sibling's advantage comes from the rewards of all its images (:mod:`.credit`). All is done with the weights as
they were before the step. Legend: L text tokens with loss; M tokens of targets; D values per token.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from irg.engine.ops import Write
from irg.learning.gradient_guard import out_of_memory
from irg.learning.recipe import Draw
from irg.learning.rl.advantages import advantages
from irg.learning.rl.credit import Outcome, chosen_groups, outcome_figures
from irg.learning.rl.drawing_trainer import DrawingFigures
from irg.learning.rl.figures import StepFigures, mean, reward_figures
from irg.learning.rl.flow_learning import flow_losses, prepare_targets, velocities_of, window_of
from irg.learning.rl.loss import policy_losses, token_scores
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Judged
from irg.learning.rl.trainer import TEXTS_KEPT, RLTrainer
from irg.learning.rl.trajectories import TrajectoryGroup, first_turns, roll_out_rounds, root_of
from irg.learning.rl.trajectory_packs import TrajectoryPack, learned_trajectories, trajectory_packs
from irg.model.network.unified import UnifiedModel
from irg.randomness import generator

ScoredTrajectories = tuple[list[TrajectoryGroup], list[list[Outcome]], list[Judged]]
"""Trajectories by prompt, what became of them, and the rewards of all first images."""


class TrajectoryTrainer(RLTrainer):
    """One run by reward that trains texts and drawing together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe.drawing.check(self.config.image_stride)

    def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
        """One step; returns what to log."""
        recipe, step, started = self.recipe, self.state.step, time.perf_counter()
        groups, outcomes, roots = self.step_rollouts()
        scored = time.perf_counter()
        judged = [[one.judged(recipe.credit) for one in some] for some in outcomes]
        none = [[False] * len(some) for some in judged]
        values = advantages([[one.total for one in some] for some in judged], none, recipe.advantage)
        malformed = [[one.malformed for one in some] for some in outcomes]
        samples = learned_trajectories(groups, values, malformed, recipe)
        size = -(-len(samples) // recipe.minibatches) or 1
        levels = generator(recipe.seed, Draw.DRAWING, step, 0)
        batches = [
            trajectory_packs(
                samples[start : start + size],
                recipe,
                self.encoder,
                self.loaded.autoencoder,
                lambda: float(torch.randn((), generator=levels)),
                self.loader.feed.attention,
            )
            for start in range(0, len(samples), size)
        ]
        record = trajectory_figures(groups, outcomes) | reward_figures(judged, values)
        flat = [one for some in outcomes for one in some]
        record |= outcome_figures(flat, recipe.credit)
        record["malformed"] = mean([bad for one in flat for bad in one.malformed])
        record["reward_failed"] = mean(
            [one.total is None for one in roots] + [one.total is None for some in judged for one in some]
        )
        record |= self.learn(batches)
        written = sum(len(r.text.ids) + 1 for group in groups for rounds in group.siblings for r in rounds)
        record |= self.speed(started, scored, written, "tokens", record["tokens"])
        self.limits.check(record, self._failure)
        if self.state.step % recipe.log_every == 0:
            self._keep_trajectories(groups, outcomes, values)
        return record | {"stop": self.any_rank(stop())}

    def begin_rollouts(self, step: int) -> Callable[[], ScoredTrajectories]:
        prompts, seeds = self.prompts_of(step, 1 + self.recipe.rollout.samples)
        return self.begin_rounds(prompts, seeds, self.recipe.rollout.temperature, window_of(self.recipe, step))

    def begin_rounds(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        temperature: float,
        window: int | None = None,
        all_roots: bool = False,
    ) -> Callable[[], ScoredTrajectories]:
        """Make and score first turns of prompts, and begin their siblings; what is returned waits for these.

        Args:
            seeds: of each prompt's first turn, then of its siblings.
            window: the first stochastic step of the siblings' images.
            all_roots: go on from right first images, too, however many there are.
        """
        recipe, name = self.recipe, self.profile.name
        how = {"write": Write(recipe.rollout.max_tokens, temperature, logprobs=True), "drawing": recipe.drawing}
        turns = self.begin(first_turns, prompts, [own[0] for own in seeds], **how)()
        roots = self.judge_pairs([(turn, root_of(turn, self.encoder, name)) for turn in turns])
        kept = [number for number, one in enumerate(roots) if one.total is not None]
        kept = kept if all_roots else chosen_groups(roots, recipe.credit)
        prompts, siblings = [turns[number] for number in kept], [seeds[number][1:] for number in kept]
        begun = self.begin(roll_out_rounds, prompts, siblings, **how, rounds=recipe.credit.rounds, window=window)

        def finish() -> ScoredTrajectories:
            groups = begun()
            return groups, self.judge_rounds(groups, [roots[number] for number in kept]), roots

        return finish

    def judge_rounds(self, groups: Sequence[TrajectoryGroup], roots: Sequence[Judged]) -> list[list[Outcome]]:
        """Score every image of every sibling."""
        name = self.profile.name
        pairs = [
            (group.prompt, trajectory)
            for group in groups
            for rounds in group.siblings
            for trajectory in group.trajectories(rounds, name)
        ]
        scored, found = iter(self.judge_pairs(pairs)), []
        for group, root in zip(groups, roots, strict=True):
            outcomes = []
            for rounds in group.siblings:
                judged = [next(scored) if one.drawn is not None else None for one in rounds]
                images = [root, *(one for one in judged if one is not None)]
                wrong = [
                    not one.text.complete or (score is not None and score.malformed)
                    for one, score in zip(rounds, judged, strict=True)
                ]
                rewards = tuple(one.total for one in images)
                outcomes.append(Outcome(rewards, tuple(wrong), rounds[-1].done, images[-1]))
            found.append(outcomes)
        return found

    def new_figures(self) -> StepFigures:
        return TrajectoryFigures()

    # ---- learning

    @torch.no_grad()
    def _score_before(self, packs: Sequence[tuple[int, Any]]) -> None:
        """Noise all packs; score them by the reference, and before the first update where there are several. (Of
        rollouts that were made ahead the engine's own scores are taken.)"""
        for number, own in packs:
            noise = generator(self.recipe.seed, Draw.DRAWING, self.state.step, 1, number)
            if self.ranks.device.type != "cpu":
                own.to(self.ranks.device)
            prepare_targets(own.flow, self.recipe, noise)
            if self.off_policy:
                own.text.old_L = own.text.rollout_L.to(self.ranks.device)
            elif self.recipe.updates > 1:
                own.text.old_L, _, own.flow.old_MD = self._outputs(self.computing, own)
            if self.reference is not None:
                with self.reference.model() as model:
                    own.text.reference_L, _, own.flow.reference_MD = self._outputs(model, own)

    def _outputs(self, model: UnifiedModel, own: TrajectoryPack) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies [L] and velocities [M, D] of a pack, float32."""
        pack = own.pack
        hidden_UC, hidden_GC = model(pack.batch, pack.attend)
        scores = token_scores(model, hidden_UC[pack.loss_rows_L], pack.labels_L, self.recipe.rollout.temperature)
        return *scores, velocities_of(model, own.flow, hidden_GC)

    def _policy_backward(self, pack: Any, divisors: tuple[float, float], figures: StepFigures, number: int) -> None:
        assert isinstance(pack, TrajectoryPack) and isinstance(figures, TrajectoryFigures)
        recipe, text, flow = self.recipe, pack.text, pack.flow
        try:
            logprobs_L, entropy_L, new_MD = self._outputs(self.computing, pack)
            old_L = logprobs_L.detach() if text.old_L is None else text.old_L
            old_MD = flow.old_MD
            if old_MD is None and not self.off_policy:
                old_MD = new_MD.detach()
            device = logprobs_L.device
            advantages_L, weights_L = text.advantages_L.to(device), text.weights_L.to(device)
            scored = policy_losses(logprobs_L, entropy_L, old_L, advantages_L, text.reference_L, recipe.loss)
            drawn = flow_losses(new_MD, old_MD, flow, recipe.drawing)
            loss = recipe.ce_weight * (weights_L * scored.loss_L).sum() / divisors[0]
            loss = loss + recipe.mse_weight * drawn.loss_M.sum() / (divisors[1] or 1)
            loss.backward()
        except torch.OutOfMemoryError:
            raise out_of_memory(pack.pack, self.state.step, number, recipe) from None
        if self.low:
            self.low.collect()
        figures.add(text, scored, loss.detach(), old_L, entropy_L.detach())
        figures.flow.add_targets(drawn)

    # ---- beside the steps

    def evaluate(self) -> dict[str, float]:
        """One trajectory of each of the evaluation's prompts: repair, damage and rewards."""
        recipe, how = self.recipe, self.recipe.evaluate
        prompts, seeds = self.held_out_prompts(2)
        _, outcomes, _ = self.begin_rounds(prompts, seeds, how.temperature, all_roots=True)()
        found = outcome_figures([one for some in outcomes for one in some], recipe.credit)
        figures = {f"held_out/{name}": value for name, value in found.items()}
        return figures | ({"held_out_reward": found["last"]} if "last" in found else {})

    def _keep_trajectories(
        self,
        groups: Sequence[TrajectoryGroup],
        outcomes: Sequence[Sequence[Outcome]],
        values: Sequence[Sequence[float | None]],
    ) -> None:
        rows = [
            (group.prompt.text, rounds, outcome, value)
            for group, some, own in zip(groups, outcomes, values, strict=True)
            for rounds, outcome, value in zip(group.siblings, some, own, strict=True)
        ]
        self.write_texts(
            [
                {
                    "prompt": prompt,
                    "text": "\n\n".join(one.text.text for one in rounds),
                    "rewards": outcome.rewards,
                    "reward": outcome.value(self.recipe.credit),
                    "advantage": value,
                    "reasons": outcome.last.reasons(),
                    "failure": outcome.last.failure,
                }
                for prompt, rounds, outcome, value in rows[:TEXTS_KEPT]
            ]
        )


class TrajectoryFigures(StepFigures):
    """Sums over the packs and updates of a step, of texts and of images."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = DrawingFigures()

    def add_other(self, other: "StepFigures") -> None:
        assert isinstance(other, TrajectoryFigures)
        super().add_other(other)
        self.flow.add_other(other.flow)

    def record(self, recipe: Any) -> dict[str, float]:
        return super().record(recipe) | self.flow.means(recipe.drawing.learning)


def trajectory_figures(groups: Sequence[TrajectoryGroup], outcomes: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """Of a step's rollouts: lengths of texts, texts that were not finished, images after the first."""
    siblings = [rounds for group in groups for rounds in group.siblings]
    texts = [one.text for rounds in siblings for one in rounds]
    return {
        "length": mean([len(text.ids) for text in texts]),
        "unfinished": mean([not text.complete for text in texts]),
        "images": mean([sum(one.drawn is not None for one in rounds) for rounds in siblings]),
    }
