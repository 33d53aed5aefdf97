"""Every combination of a recipe's choices trains a step or is refused in one clear line, the same by the dry run and at
the start."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch

from irg.learning import plan
from irg.learning.combinations import Run, check, problems
from irg.learning.data.loader import attention_of
from irg.learning.plan import make_plan
from irg.learning.recipe import Images, Lora, Mixture, Optimizer, Parallel, Samples, TrainRecipe
from irg.learning.trainer import Trainer, train
from irg.model.network.flex_attention import FlexAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention

Make = Callable[..., TrainRecipe]
KINDS = {
    "adamw": Optimizer(lr=1e-3),
    "adamw8bit": Optimizer(kind="adamw8bit", lr=1e-3, eps=1e-8),
    "muon": Optimizer(kind="muon", lr=1e-3),
}
BASES = (None, "bfloat16", "float32", "nf4")
CHOICES = list(product(KINDS, BASES, ("float32", "bfloat16"), (False, True)))


@pytest.fixture
def recipe(small_recipe: Make) -> Make:
    """A recipe of one step by its choices."""

    def make(kind: str, base: Any, precision: Any, stream: bool, **changes: Any) -> TrainRecipe:
        fields: dict[str, Any] = {
            "steps": 1,
            "mixture": Mixture(initial_full=1.0, improving_full=1.0),
            "optimizer": KINDS[kind],
            "lora": Lora(rank=0 if base is None else 2, base=base or "float32"),
            "parallel": Parallel(precision=precision),
            "stream": stream,
            "validate_every": 1,
            "validation_rows": 2,
            "noise_copies": 1,
        }
        return small_recipe(**fields | changes)

    return make


@pytest.fixture(autouse=True)
def one_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dry run refuses does not depend on how many packs it makes to see how they come out."""
    monkeypatch.setattr(plan, "PACKS_MADE", 1)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its optimizer's update, for minutes."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize(("kind", "base", "precision", "stream"), CHOICES)
def test_a_step_or_a_refusal(recipe: Make, kind: str, base: Any, precision: Any, stream: bool) -> None:
    if kind == "adamw8bit" or base == "nf4":
        pytest.importorskip("torchao")
    made = recipe(kind, base, precision, stream)
    refused = []
    if kind == "muon" and base is not None:
        refused.append("muon trains whole matrices, not adapters")
    if base == "float32" and precision == "bfloat16":
        refused.append("lora.base float32 computes in float32")
    if refused:
        found = problems(Run(made, 1, False))
        assert found == make_plan(made).problems and len(found) == len(refused)
        for line, problem in zip(refused, found, strict=True):
            assert line in problem and "\n" not in problem
        with pytest.raises(ValueError, match=refused[0]):
            train(made, quiet=True)
        return
    assert make_plan(made).problems == []
    trainer = Trainer(made, quiet=True)
    before = [p.detach().clone() for p in trainer.state.weights]
    record = trainer.train_step()
    assert record["skipped"] == 0 and any((a != b).any() for a, b in zip(before, trainer.state.weights, strict=True))
    assert all(value > 0 for value in trainer.validate().values())


@pytest.mark.parametrize(
    ("changes", "processes", "sharded", "line"),
    [
        ({"optimizer": KINDS["muon"]}, 2, True, "muon needs whole matrices"),
        ({"optimizer": KINDS["muon"]}, 1, True, "muon needs whole matrices"),
        ({"parallel": Parallel(replicas=2)}, 1, False, "parallel.replicas 2 does not divide the 1 processes"),
        ({"parallel": Parallel(replicas=2)}, 3, True, "parallel.replicas 2 does not divide the 3 processes"),
        ({"parallel": Parallel(attention="flex")}, 1, False, "flex cannot train on a CPU"),
        ({"conversations": {"direct": ("c",)}}, 1, False, "conversations are streamed"),
        ({"images": Images(latents="sample")}, 1, False, "images.latents sample draws latents anew"),
        ({"data": (), "conversations": {"direct": ("c",)}, "stream": True, "validate_every": 1}, 1, False, "in data"),
        ({"samples": Samples(every=1, prompts=("p",), settings={"hight": 3})}, 1, False, "hight"),
    ],
)
def test_what_is_refused(small_recipe: Make, changes: dict[str, Any], processes: int, sharded: bool, line: str) -> None:
    made = small_recipe(**changes)
    (problem,) = problems(Run(made, processes, sharded))
    assert line in problem and "\n" not in problem
    assert problem in make_plan(made, gpus=processes).problems or (sharded and processes == 1)
    with pytest.raises(ValueError, match=line.replace(".", r"\.")):
        check(Run(made, processes, sharded))


@pytest.mark.parametrize("device", ["mps", "xpu:0", "cpu:1", "gpu"])
def test_other_devices(small_recipe: Make, device: str) -> None:
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N, got"):
        small_recipe(device=device)


def test_what_is_not_refused(small_recipe: Make) -> None:
    assert problems(Run(small_recipe(parallel=Parallel(replicas=2, precision="bfloat16")), 4, True)) == []
    assert problems(Run(small_recipe(device="cuda", parallel=Parallel(attention="flex")), 8, True)) == []


def test_attention_fits_the_heads(small_recipe: Make) -> None:
    """The kernel for a GPU takes no heads of fewer than 16 values: found there, as nothing on a CPU compiles it."""
    cuda, flex = torch.device("cuda"), small_recipe(device="cuda", parallel=Parallel(attention="flex"))
    assert attention_of(small_recipe(device="cuda"), cuda, 16) is attention_of(flex, cuda, 16) is FlexAttention
    assert attention_of(small_recipe(device="cuda"), cuda, 8) is SharedPrefixAttention
    with pytest.raises(ValueError, match="heads of 16 values or more, this model's have 8: set"):
        attention_of(flex, cuda, 8)
