"""Training the flow head by reward (DiffusionNFT): a step draws images with the old policy, scores them, and moves the
policy towards the good ones and away from the bad ones.

The old policy is the run's average of weights (``ema``), which checkpoints keep and the run exports. Its decay by step
is that of any run; with ``ema: 0`` it is the policy as it was before the step.

Legend: G latent tokens of a pack, M those of targets; D values per token.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from irg.learning import sampling
from irg.learning.data.packing import Pack
from irg.learning.gradient_guard import out_of_memory
from irg.learning.objective import flow_targets
from irg.learning.parallel import Ranks
from irg.learning.recipe import Draw
from irg.learning.rl.advantages import advantages
from irg.learning.rl.drawings import DrawingPack, DrawnGroup, draw_groups, drawing_packs, learned_drawings
from irg.learning.rl.figures import StepFigures, reward_figures
from irg.learning.rl.nft import nft_losses
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rewards import Judged
from irg.learning.rl.trainer import RLTrainer
from irg.learning.setup import adapter_of
from irg.model.network.unified import UnifiedModel
from irg.randomness import generator, numpy_generator


class DrawingTrainer(RLTrainer):
    """One run by reward that trains drawing."""

    def __init__(self, recipe: RLRecipe, quiet: bool = False, force: bool = False, ranks: Ranks | None = None) -> None:
        super().__init__(recipe, quiet, force, ranks)
        recipe.drawing.check(self.config.image_stride)

    def train_step(self, stop: Callable[[], bool] = bool) -> dict[str, float]:
        """One step; returns what to log."""
        recipe, step = self.recipe, self.state.step
        started = time.perf_counter()
        prompts = recipe.prompts.draw(recipe.seed, step, recipe.rollout.prompts)
        shape = (len(prompts), recipe.rollout.samples)
        seeds = numpy_generator(recipe.seed, Draw.ROLLOUT, step).integers(2**63, size=shape)
        groups = self.draw(prompts, seeds.tolist())
        drawn = time.perf_counter()
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
        record |= {
            "rollout_seconds": drawn - started,
            "reward_seconds": scored - drawn,
            "learning_seconds": time.perf_counter() - scored,
            "rollout_images_per_second": seeds.size / (drawn - started),
        }
        self.limits.check(record, self._failure)
        return record | {"stop": float(stop())}

    def old_policy(self) -> UnifiedModel:
        """The model with the average of weights; what is not trained is shared, not copied."""
        dtype = getattr(torch, self.recipe.parallel.precision)
        averages = self.state.averages()
        model = sampling.averaged_model(self.model, averages, adapter_of(self.recipe), self.ranks, dtype)
        assert model is not None
        return model.eval()

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> list[DrawnGroup]:
        """Images for prompts by the old policy."""
        how = self.recipe.rollout
        autoencoder = self.loaded.autoencoder
        return draw_groups(
            self.old_policy(), autoencoder, self.encoder, prompts, self.recipe.drawing, seeds, how.at_once
        )

    def judge_drawings(self, groups: Sequence[DrawnGroup]) -> list[list[Judged]]:
        """The rewards of all images, by group."""
        pairs = [(group.prompt, one) for group in groups for one in group.trajectories(self.profile.name)]
        found = iter(self.judge_pairs(pairs))
        return [[next(found) for _ in group.drawings] for group in groups]

    def judged_rollouts(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[Judged]]:
        return self.judge_drawings(self.draw(prompts, seeds))

    def new_figures(self) -> StepFigures:
        return DrawingFigures()

    @torch.no_grad()
    def _score_before(self, batches: Sequence[Sequence[Any]]) -> None:
        """Noise all packs, and let the old policy predict their velocities before the first update."""
        noise = generator(self.recipe.seed, Draw.DRAWING, self.state.step, 1)
        old = self.old_policy()
        for own in (pack for batch in batches for pack in batch):
            if self.ranks.device.type != "cpu":
                own.pack, own.optimality_M = own.pack.to(self.ranks.device), own.optimality_M.to(self.ranks.device)
            pack = own.pack
            own.velocity_GD = noised(pack, noise, self.recipe.timestep_shift)
            own.old_MD = velocities(old, own)

    def _policy_backward(self, pack: Any, divisors: tuple[float, float], figures: StepFigures, number: int) -> None:
        assert isinstance(pack, DrawingPack) and pack.old_MD is not None and pack.velocity_GD is not None
        assert isinstance(figures, DrawingFigures)
        try:
            new_MD = velocities(self.computing, pack)
            velocity_MD = pack.velocity_GD[pack.pack.target_rows_M]
            loss_M = nft_losses(new_MD, pack.old_MD, velocity_MD, pack.optimality_M, self.recipe.drawing.beta)
            loss = loss_M.sum() / divisors[1]
            loss.backward()
        except torch.OutOfMemoryError:
            raise out_of_memory(pack.pack, self.state.step, number, self.recipe) from None
        figures.add_drawings(pack, new_MD.detach(), float(loss.detach()))


def noised(pack: Pack, noise: torch.Generator, shift: float) -> Tensor:
    """Noise a pack's targets; returns noise - image of all latent tokens [G, D]."""
    assert pack.clean_GD is not None
    noise_GD = torch.randn(pack.clean_GD.shape, generator=noise).to(pack.clean_GD.device)
    flow = flow_targets(pack.clean_GD, noise_GD, pack.normal_G, shift)
    pack.batch.latents_GD, pack.batch.times_G = flow.noisy_GD, flow.times_G
    return flow.velocity_GD


def velocities(model: UnifiedModel, own: DrawingPack) -> Tensor:
    """Velocities that a model predicts for a noised pack's targets, float32 [M, D]."""
    pack = own.pack
    _, hidden_GC = model(pack.batch, pack.attend)
    rows, batch = pack.target_rows_M, pack.batch
    assert hidden_GC is not None and batch.latents_GD is not None and batch.times_G is not None
    return model.velocity(hidden_GC[rows], batch.latents_GD[rows], batch.times_G[rows]).to(torch.float32)


class DrawingFigures(StepFigures):
    """Sums over the packs and updates of a step: tokens are those of targets."""

    def add_drawings(self, pack: DrawingPack, new_MD: Tensor, loss: float) -> None:
        """Add a pack after its backward pass."""
        assert pack.old_MD is not None
        self.add_velocities(pack, new_MD, pack.old_MD)
        self.losses.append(loss)
        self.tokens += pack.pack.tokens

    def add_velocities(self, pack: DrawingPack, new_MD: Tensor, old_MD: Tensor) -> None:
        """Add what is said of a pack's velocities."""
        assert pack.velocity_GD is not None
        velocity_MD = pack.velocity_GD[pack.pack.target_rows_M]
        self._sum("old_gap", (new_MD - old_MD).square().mean(dim=-1))
        self._sum("rollout_mse", (new_MD - velocity_MD).square().mean(dim=-1))
        self.chosen += len(new_MD)

    def _sum(self, name: str, values_M: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values_M.sum())

    def means(self) -> dict[str, float]:
        """Of the velocities."""
        return {name: value / max(1, self.chosen) for name, value in self.sums.items()}

    def record(self, recipe: Any) -> dict[str, float]:
        """Without what is of texts alone."""
        of_texts = ("entropy", "rollout_gap", "clipped", "ratio_gap")
        return {name: value for name, value in super().record(recipe).items() if name not in of_texts}
