"""Combinations of a recipe's choices that can't work: one table, for ``--dry-run`` and for the start of a run.

What a single field may hold is checked by the recipe's own classes (:mod:`.recipe`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from irg.learning.recipe import TrainRecipe
from irg.learning.trackers import check as check_trackers
from irg.reasoning.settings import Settings, with_options


@dataclass(frozen=True)
class Run:
    """A recipe and how it is started. ``sharded``: the weights are, by FSDP."""

    recipe: TrainRecipe
    processes: int
    sharded: bool

    @property
    def adapters(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.recipe.lora.rank > 0


def _draws(recipe: TrainRecipe) -> bool:
    return getattr(recipe, "policy", None) == "drawing"


def _workers(recipe: TrainRecipe) -> int:
    return getattr(getattr(recipe, "rollout", None), "workers", 0)


def _has_ray() -> bool:
    return find_spec("ray") is not None


RULES: tuple[tuple[Callable[[Run], bool], str], ...] = (  # (applies to, message with the fields of Run)
    (
        lambda r: r.recipe.optimizer.kind == "muon" and r.sharded,
        "optimizer.kind muon needs whole matrices: use adamw with several processes or in bfloat16 on a GPU",
    ),
    (
        lambda r: r.recipe.optimizer.kind == "muon" and r.adapters,
        "optimizer.kind muon trains whole matrices, not adapters: use adamw with lora.rank, or set lora.rank to 0",
    ),
    (
        lambda r: r.recipe.optimizer.kind == "adamw8bit" and find_spec("torchao") is None,
        "optimizer.kind adamw8bit needs torchao: pip install 'irg[quant]'",
    ),
    (
        lambda r: r.adapters and r.recipe.lora.base == "nf4" and find_spec("torchao") is None,
        "lora.base nf4 needs torchao: pip install 'irg[quant]'",
    ),
    (
        lambda r: r.adapters and r.recipe.lora.base == "float32" and r.recipe.parallel.precision == "bfloat16",
        "lora.base float32 computes in float32: set parallel.precision to float32, or lora.base to bfloat16",
    ),
    (
        lambda r: r.processes % r.recipe.parallel.replicas > 0,
        "parallel.replicas {recipe.parallel.replicas} does not divide the {processes} processes; torchrun starts them",
    ),
    (
        lambda r: r.recipe.parallel.attention == "flex" and r.recipe.device == "cpu",
        "parallel.attention flex cannot train on a CPU: set it to auto, shared or dense",
    ),
    (
        lambda r: bool(r.recipe.conversations) and not r.recipe.stream,
        "conversations are streamed: set stream to true",
    ),
    (
        lambda r: r.recipe.images.latents == "sample" and not r.recipe.stream,
        "images.latents sample draws latents anew for every pack, rows in memory have theirs encoded once: set stream "
        "to true, or images.latents to mean",
    ),
    (
        lambda r: _draws(r.recipe) and r.recipe.parallel.precision == "bfloat16" and not r.adapters,
        "policy drawing holds its old policy in float32: set parallel.precision to float32, or train adapters "
        "(lora.rank)",
    ),
    (
        lambda r: _workers(r.recipe) > 0 and not _has_ray(),
        "rollout.workers needs ray: pip install 'irg[scale]'",
    ),
    (
        lambda r: r.recipe.validate_every > 0 and not r.recipe.data,
        "validate_every measures one-turn trajectories: name some in data, or set it to 0",
    ),
)


def problems(run: Run) -> list[str]:
    """What can't work, a line each."""
    found = [message.format(**vars(run)) for applies, message in RULES if applies(run)]
    for check in (
        lambda: check_trackers(run.recipe.trackers),
        lambda: with_options(Settings(), dict(run.recipe.samples.settings)),
    ):
        try:
            check()
        except ValueError as error:
            found.append(" ".join(str(error).split()))
    return found


def check(run: Run) -> None:
    """Refuse what can't work.

    Raises:
        ValueError: something can't; the message has it all.
    """
    if found := problems(run):
        raise ValueError("; ".join(found))
