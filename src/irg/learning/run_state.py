"""What a run has to remember: weights, their average, optimizer moments, the step, the guard, the data streams.

As named tensors (``weight/NAME``, ``average/NAME`` and each moment's) and plain data, the two halves of a checkpoint.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from irg.learning.checkpoints import check, read_about, read_names, read_tensors
from irg.learning.gradient_guard import GradientGuard
from irg.learning.optim import belongs, build_optimizers, from_saved, to_saved
from irg.learning.parallel import Ranks
from irg.learning.recipe import TrainRecipe
from irg.learning.setup import trained
from irg.model.network.unified import UnifiedModel


class RunState:
    """The changing part of a run."""

    def __init__(self, model: UnifiedModel, recipe: TrainRecipe) -> None:
        self.named_weights = trained(model)
        self.weights = list(self.named_weights.values())
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizers = build_optimizers(model, recipe.optimizer, getattr(torch, recipe.parallel.precision))
        self.guard = GradientGuard(recipe.guard)
        self.streams: dict[int, dict[str, Any]] = {}  # of the data streams that this process runs
        self.step = 0

    def averages(self) -> dict[nn.Parameter, Tensor]:
        """The average of each trained parameter."""
        return dict(zip(self.weights, self.average, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averages and moments (sharded where the model is)."""
        found: dict[str, Tensor] = {}
        for (name, weight), average in zip(self.named_weights.items(), self.average, strict=True):
            found[f"weight/{name}"], found[f"average/{name}"] = weight.detach(), average
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(weight, {}).items():
                    found[f"{key}/{name}"] = to_saved(torch.as_tensor(value))
        return found

    def about(self, ranks: Ranks, streams: int, fingerprint: str) -> dict[str, Any]:
        """The plain data. Collective.

        Args:
            streams: data streams of the run, which are packs of a step.
            fingerprint: of the rows.
        """
        states: dict[str, Any] = {}
        for part in ranks.gather({str(stream): state for stream, state in self.streams.items()}):
            states |= part
        return {
            "step": self.step,
            "streams": streams,
            "world": ranks.world,
            "data": [states.get(str(stream), {}) for stream in range(streams)],
            "guard": self.guard.state(),
            "rows": fingerprint,
        }

    @torch.no_grad()
    def load(self, path: Path, ranks: Ranks) -> Mapping[str, Any]:
        """Take a checkpoint's tensors, step and guard; returns its plain data, whose data streams are the caller's.

        Raises:
            ValueError: it is damaged, or other weights were trained.
        """
        about = read_about(path)
        check(path, about, ranks)
        names = read_names(path)
        own = {f"{kind}/{name}" for name in self.named_weights for kind in ("weight", "average")}
        if missing := sorted(own - names.keys()):
            raise ValueError(
                f"checkpoint {path} lacks {missing[0]} and {len(missing) - 1} more: other weights were trained"
            )
        tensors: dict[str, Tensor] = {}
        for (name, weight), average in zip(self.named_weights.items(), self.average, strict=True):
            tensors[f"weight/{name}"], tensors[f"average/{name}"] = weight.detach(), average
        for key, (shape, dtype) in names.items():
            owner = self.named_weights.get(key.partition("/")[2])
            if key not in tensors and owner is not None:
                whole = shape == owner.shape
                tensors[key] = torch.zeros_like(owner, dtype=dtype) if whole else torch.zeros(shape, dtype=dtype)
        read_tensors(path, tensors, ranks)
        self._take_moments(tensors)
        self.step = int(about["step"])
        self.guard.load(about["guard"])
        return about

    def _take_moments(self, tensors: Mapping[str, Tensor]) -> None:
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
