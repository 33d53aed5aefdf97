"""The dry run, the recipes that ship, and what a step is said to cost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from irg import recipes
from irg.cli.main import main
from irg.learning.costs import forward_flops, step_flops, work_of
from irg.learning.objective import cross_entropy
from irg.learning.parallel import join
from irg.learning.plan import make_plan, report
from irg.learning.recipe import Lora, Mixture, Optimizer, Parallel, TrainRecipe
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rewards import Rewards
from irg.learning.setup import start_folder
from irg.learning.trainer import train
from irg.model.network.config import bagel_7b, tiny
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder, token_batch
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.folders import BUNDLED
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Patches, Text

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "data")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_recipes_can_be_read(path: Path, own_plugins: None) -> None:
    by_reward = recipes.peek(path, "kind") == "rl"
    recipe = recipes.load(RLRecipe if by_reward else TrainRecipe, path)
    assert recipe.steps > 0
    if isinstance(recipe, RLRecipe):
        Rewards(recipe.rewards)


def test_the_papers_numbers() -> None:
    one, two = (recipes.load(TrainRecipe, ROOT / "recipes" / f"irg-7b-stage{n}.yaml") for n in (1, 2))
    assert one.mixture == Mixture(
        *(0.5, 0.5, 1.0, 0.5, 0.5, 1.0),
        mandatory=("initial_full", "improving_full", "initial_thinking_generation", "improving_thinking_generation"),
    )
    assert two.mixture == Mixture(initial_full=1.0, improving_full=1.0, mandatory=("initial_full", "improving_full"))
    assert (one.steps, one.optimizer.warmup, two.steps, two.optimizer.warmup) == (2000, 500, 30000, 0)
    for recipe in (one, two):
        o = recipe.optimizer
        assert (o.kind, o.lr, o.betas, o.eps, o.clip, o.cooldown) == ("adamw", 2e-5, (0.9, 0.95), 1e-15, 1.0, 0)
        assert not recipe.ema_warmup
        assert (recipe.ema, recipe.ce_weight, recipe.mse_weight, recipe.timestep_shift) == (0.995, 1.0, 1.0, 4.0)
        assert (recipe.tokens_per_pack, recipe.max_tokens_per_sample, recipe.frozen) == (40_000, 32_768, ())
        assert (recipe.images.vae_min, recipe.images.vae_max) == (512, 1024)
        assert (recipe.images.vit_min, recipe.images.vit_max) == (378, 980)
        assert (recipe.dropout.text, recipe.dropout.vit, recipe.dropout.vae) == (0.0, 0.0, 0.3)
    assert two.model == one.out + "/model"


def test_a_plan_from_sizes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """7 B + 7 B on eight GPUs, without a weight or a row on this machine: the numbers, and what is missing."""
    code = main(["train", str(ROOT / "recipes" / "irg-7b-stage1.yaml"), "--dry-run", "--gpus", "8", "--model", "bagel_7b"])  # fmt: skip # noqa: E501
    out = capsys.readouterr().out
    assert code == 2
    assert "parameters: 14,607,260,128, trained: 14,575,018,464 (99.78%)" in out
    assert "PROBLEM: data: data/irgl/first is not there: no such file or folder" in out
    assert "tokens_per_pack: 40000" in out and "samples per step, improving_full: 8.0" in out
    assert "memory per GPU, estimated: " in out


@pytest.fixture
def planned(folder: Path, rows: Path, tmp_path: Path) -> Callable[..., TrainRecipe]:
    def make(**changes: Any) -> TrainRecipe:
        base = {"model": str(folder), "data": (str(rows),), "out": str(tmp_path / "run"), "steps": 4}
        return TrainRecipe(**base | {"mixture": Mixture(initial_full=1.0, improving_full=1.0), "tokens_per_pack": 200} | changes)  # type: ignore[arg-type]  # fmt: skip # noqa: E501

    return make


def test_a_plan_from_rows(planned: Callable[..., TrainRecipe]) -> None:
    plan = make_plan(planned())
    assert plan.problems == [] and plan.rows == {"one-turn": 3, "two-turn": 3}
    assert 0.8 * 200 < plan.tokens_per_pack <= 200 and plan.trained == plan.parameters - 2 * 64 * 32
    assert plan.samples_per_pack.keys() == {"initial_full", "improving_full"}
    assert "no problems found" in report(plan)


def test_guessed_packs_hold_a_sample_of_every_mandatory_mode() -> None:
    stage_1 = recipes.load(TrainRecipe, ROOT / "recipes" / "irg-7b-stage1.yaml")
    plan = make_plan(replace(stage_1, model="bagel_7b", data=("nowhere",)), gpus=8)
    assert all(plan.samples_per_pack[mode] >= 1 for mode in stage_1.mixture.mandatory)
    assert abs(plan.tokens_per_pack - 40_000) < 1
    small = make_plan(replace(stage_1, model="bagel_7b", data=("nowhere",), tokens_per_pack=20_000), gpus=8)
    assert any("a guessed sample of every mandatory mode is" in note for note in small.notes)
    assert small.problems == ["data: nowhere is not there: no such file or folder"]


def test_more_memory_than_a_gpu_has_is_a_problem_and_hours_count_what_is_done_again() -> None:
    stage_1 = replace(
        recipes.load(TrainRecipe, ROOT / "recipes" / "irg-7b-stage1.yaml"), model="bagel_7b", data=("nowhere",)
    )
    assert not any("GB a GPU are needed" in problem for problem in make_plan(stage_1, gpus=8).problems)
    plain = make_plan(replace(stage_1, parallel=replace(stage_1.parallel, recompute="none")), gpus=8)
    (problem,) = (problem for problem in plain.problems if "GB a GPU are needed" in problem)
    assert "an H100 has 80 GB" in problem or torch.cuda.is_available()
    assert plain.recomputed == 0
    full = make_plan(stage_1, gpus=8)
    assert 1.30 < (full.flops + full.recomputed) / plain.flops < 1.35  # three forwards become four, but for the head
    assert "with what parallel.recompute does again" in report(full)


def test_a_plan_names_every_mistake(planned: Callable[..., TrainRecipe]) -> None:
    recipe = planned(
        optimizer=Optimizer(kind="muon", warmup=9),
        frozen=("nose",),
        lora=Lora(rank=2, targets=("nothing",)),
        data=("nowhere",),
    )
    first = make_plan(recipe, gpus=2)
    assert "warmup 9 is longer than the run: 4 steps" in first.notes[0]
    problems = " | ".join(first.problems)
    changed = planned(out=str(Path(recipe.out).with_name("held")))
    train(replace(changed, steps=1), quiet=True)
    more = planned(
        out=changed.out,
        seed=3,
        stream=True,
        parallel=Parallel(accumulate=4, attention="flex", precision="bfloat16"),
        optimizer=Optimizer(kind="muon"),
    )
    problems += " | ".join(make_plan(more).problems)
    problems += " | ".join(make_plan(planned(validate_every=1, validation_rows=3)).problems)
    problems += " | ".join(make_plan(planned(tokens_per_pack=20)).problems)
    for what in (
        "holds a run with another recipe (different: ",
        "one-turn has 3 rows in 3 pieces, too few for 4 packs",
        "flex cannot train on a CPU",
        "or in bfloat16",
        "leaves no one-turn row",
        "is fit to be used (3 were tried)",
        "more than tokens_per_pack 20",
        "muon needs whole",
        "unknown part 'nose'",
        "called 'nothing'",
        "nowhere is not there",
    ):
        assert what in problems


# --------------------------------------------------------------------------------------------------------------- costs


def test_operations_are_those_that_torch_counts(tiny_loaded: LoadedModel) -> None:
    """Forward of one sample; attention counted by visible pairs, so compared apart (dense attention does all pairs)."""
    model, config = tiny_loaded.model, tiny_loaded.config
    layout = lay_out([Text((1, 2, 3), loss=True), Latents((2, 2)), Patches((2, 2))], config.grammar)
    order = StreamOrder.of([layout])
    batch = token_batch([layout], order, torch.zeros(4, config.vit.patch_values), torch.zeros(4, config.latent_values), torch.zeros(4))  # fmt: skip # noqa: E501
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden_UC, _ = model(batch, PackedAttention([layout], order))
        cross_entropy(model, hidden_UC[:4], torch.zeros(4, dtype=torch.long))
    ours = forward_flops(config, work_of([layout]))
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    times = 4 * 2 * (256 * 32 + 32 * 32)  # the time embedding's MLP, which we leave out
    vit_attention = 4.0 * 4 * 4 * config.vit.hidden_size
    assert ours["und"] + ours["gen"] + ours["head"] + ours["vit"] - vit_attention == counted - times


def test_frozen_parts_cost_less() -> None:
    work = work_of([lay_out([Text((1,) * 50, loss=True), Latents((4, 4))], tiny().grammar)])
    parts = forward_flops(tiny(), work)
    whole = step_flops(tiny(), work)
    assert whole == 3 * sum(parts.values())
    assert step_flops(tiny(), work, ("und",)) == whole - parts["und"]
    assert step_flops(tiny(), work, adapters=True) == 2 * sum(parts.values()) + parts["attention"]
    assert bagel_7b().decoder.hidden_size == 3584


def test_logits_in_chunks(tiny_loaded: LoadedModel) -> None:
    """The same losses and gradients as all at once."""
    model = tiny_loaded.model
    labels = torch.arange(50) % 260
    results = []
    for limit in (1 << 26, 260 * 7):
        hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        ce = cross_entropy(model, hidden, labels, limit)
        results.append((ce.detach(), *torch.autograd.grad(ce.sum(), (hidden, model.language_model.lm_head.weight))))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_a_quantized_folder_is_refused_before_the_first_step(
    planned: Callable[..., TrainRecipe], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    convert(folder, tmp_path / "int8", Conversion(quantize="int8"))
    recipe = planned(model=str(tmp_path / "int8"), lora=Lora(rank=2))
    with pytest.raises(ValueError, match="quantized to int8 and can't be trained"):
        train(recipe, quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"])
    assert any("quantized to int8" in problem for problem in make_plan(recipe).problems)


def test_a_bundled_model_by_name(planned: Callable[..., TrainRecipe]) -> None:
    """Its own configuration and tokenizer count, not the sizes that its name also stands for."""
    plan = make_plan(planned(model="mini"))
    assert not any("sizes alone" in note for note in plan.notes)
    assert start_folder(planned(model="mini"), join("cpu", Parallel())) == BUNDLED / "mini"
    with pytest.raises(ValueError, match="unknown model 'nowhere'"):
        train(planned(model="nowhere"), quiet=True)
