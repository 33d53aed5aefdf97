"""Rollouts in processes of their own, apart from those that learn: ``rollout.workers``, by Ray.

A worker holds the whole model with the weights that it was last sent. Prompts are handed out in parts of
``rollout.at_once``, which are what an engine runs together, so the number of workers changes nothing, not one bit.
With ``rollout.ahead`` they make the rollouts of the next step while a step is learned from.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.parallel import Ranks
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import RLRecipe
from irg.learning.setup import build
from irg.model.weights.folders import model_folder

Make = Callable[..., list[Any]]
"""A function of :mod:`.rollouts`, :mod:`.drawings` or :mod:`.trajectories`: of a model, an autoencoder, an encoder,
prompts and, by name, seeds and options; one result for each prompt."""


class RolloutWorker:
    """What runs in a worker's process."""

    def __init__(self, recipe: RLRecipe, encoder: TrajectoryEncoder, threads: int) -> None:
        torch.set_num_threads(threads)  # as the learner has: rounding depends on it
        plain = replace(recipe, parallel=replace(recipe.parallel, replicas=1, recompute="none", compile=False))
        ranks = Ranks(device=torch.device(torch.device(recipe.device).type))
        loaded = build(plain, model_folder(recipe.model), ranks)
        self.model, self.autoencoder, self.encoder = loaded.model, loaded.autoencoder, encoder
        if not recipe.lora.rank:  # the weights under adapters are as they are held
            self.model.to(getattr(torch, recipe.parallel.precision))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights that are trained, by name."""
        unknown = self.model.load_state_dict(dict(weights), strict=False).unexpected_keys
        assert not unknown, unknown

    def make(
        self, make: Make, prompts: Sequence[Prompt], seeds: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """Rollouts of some prompts."""
        return make(self.model, self.autoencoder, self.encoder, prompts, seeds=seeds, **options)


class RolloutWorkers:
    """The workers of a run, as the main process sees them."""

    def __init__(self, recipe: RLRecipe, encoder: TrajectoryEncoder) -> None:
        """Start them; ``RAY_ADDRESS`` says in which cluster, by default in one on this machine.

        Raises:
            ValueError: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise ValueError("rollout.workers needs ray: pip install 'irg[scale]'") from None
        self._ray, self._starts = ray, not ray.is_initialized()
        if self._starts:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(include_dashboard=False, log_to_driver=False)
        gpus = int(torch.device(recipe.device).type == "cuda")
        actor = ray.remote(num_cpus=1, num_gpus=gpus)(RolloutWorker)
        if Path(recipe.model).exists():  # workers may be in another folder
            recipe = replace(recipe, model=str(Path(recipe.model).resolve()))
        threads = torch.get_num_threads()
        self._workers = [actor.remote(recipe, encoder, threads) for _ in range(recipe.rollout.workers)]
        self._at_once = recipe.rollout.at_once
        self._loading = list[Any]()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Send all of them the weights that are trained. A worker does what it is asked for in turn: rollouts that were
        begun before are still made with the weights before."""
        sent = self._ray.put(dict(weights))
        self._loading = [worker.load.remote(sent) for worker in self._workers]

    def begin(
        self, make: Make, prompts: Sequence[Prompt], seeds: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """Begin rollouts of prompts; :meth:`results` waits for them."""
        tasks = []
        for number, start in enumerate(range(0, len(prompts), self._at_once)):
            part = slice(start, start + self._at_once)
            worker = self._workers[number % len(self._workers)]
            tasks.append(worker.make.remote(make, prompts[part], seeds[part], dict(options)))
        return tasks

    def results(self, tasks: Sequence[Any]) -> list[Any]:
        """The rollouts that were begun, one result for each prompt.

        Raises:
            ValueError: a worker ended.
        """
        try:
            self._ray.get(self._loading)  # which would otherwise fail unseen
            found: list[list[Any]] = self._ray.get(list(tasks))
        except self._ray.exceptions.RayActorError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"a rollout worker ended ({reason}); start the run again to go on") from error
        return [result for results in found for result in results]

    def close(self) -> None:
        """End them."""
        for worker in self._workers:
            self._ray.kill(worker)
        if self._starts:
            self._ray.shutdown()
