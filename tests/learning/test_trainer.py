"""Training from a folder to a folder, on a model of a few thousand weights."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trajectory_rows import write_shards

from irg.learning.checkpoints import checkpoints, latest
from irg.learning.parallel import Ranks
from irg.learning.plan import make_plan
from irg.learning.recipe import Dropout, Mixture, Optimizer, Parallel, TrainRecipe
from irg.learning.setup import PARTS, freeze, trained
from irg.learning.trainer import Trainer, deferred_interrupts, only_run, train
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import LoadedModel, load_model
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline

from .conftest import records, small_recipe_of, start_folder
from .runs import identical, log, weights

Make = Callable[..., TrainRecipe]


@pytest.fixture
def recipe(small_recipe: Make) -> Make:
    """A small recipe with some fields changed."""
    return small_recipe


@pytest.fixture(scope="module")
def trained_once(
    tmp_path_factory: pytest.TempPathFactory, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer
) -> TrainRecipe:
    """The recipe of an uninterrupted run."""
    place = tmp_path_factory.mktemp("trained")
    write_shards(records(), place / "rows", rows_per_shard=4)
    made = small_recipe_of(start_folder(place / "start", tiny_loaded, tiny_tokenizer), place / "rows", place / "run")
    train(made, quiet=True)
    return made


@pytest.fixture
def finished(trained_once: TrainRecipe, tmp_path: Path) -> Path:
    """An uninterrupted run, to read and to change."""
    return Path(shutil.copytree(trained_once.out, tmp_path / "whole"))


def test_a_run_goes_on_from_the_weights_it_started_from(recipe: Make, tmp_path: Path) -> None:
    made = recipe(steps=2, stop_after=1)
    train(made, quiet=True)
    (line,) = [json.loads(line) for line in (tmp_path / "run/sessions.jsonl").read_text().splitlines()]
    assert len(line["fingerprint"]) == 64 and line["device"] == "cpu" and line["versions"]["torch"] == torch.__version__
    file = Path(made.model) / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="are not those that the run in"):
        train(replace(made, stop_after=None), quiet=True)
    train(replace(made, stop_after=None), quiet=True, force=True)


# ---------------------------------------------------------------------------------------------------------------- learn


def test_detail_weight_changes_what_is_learned_not_what_is_logged(recipe: Make, tmp_path: Path) -> None:
    plain, weighed = tmp_path / "plain", tmp_path / "weighed"
    train(recipe(out=str(plain), steps=1, log_every=1), quiet=True)
    train(recipe(out=str(weighed), steps=1, log_every=1, detail_weight=4.0), quiet=True)
    assert log(plain)[0]["mse"] == log(weighed)[0]["mse"]
    assert not identical(plain / "model", weighed / "model")
    with pytest.raises(ValueError, match="detail_weight must not be negative, got -1"):
        recipe(out=str(plain), detail_weight=-1.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_learns_its_rows_by_heart(recipe: Make, tmp_path: Path, kind: str) -> None:
    optimizer = Optimizer(kind=kind, lr=5e-3, muon_lr=2e-2)  # type: ignore[arg-type]
    train(
        recipe(steps=16, optimizer=optimizer, mixture=Mixture(initial_full=1.0), dropout=Dropout(vae=0.0), ema=0.5),
        quiet=True,
    )
    lines = log(tmp_path / "run")
    first, last = lines[0], lines[-1]
    assert last["ce"] < 0.5 * first["ce"]
    assert sum(line["mse"] for line in lines[-8:]) < 0.8 * sum(line["mse"] for line in lines[:8])
    assert [line["step"] for line in lines] == list(range(1, 17))


def test_the_log(finished: Path) -> None:
    lines = log(finished)
    assert [line["lr_factor"] for line in lines] == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    for line in lines:
        assert {"loss", "ce", "mse", "grad_norm", "tokens", "tokens_per_second", "n/initial_full"} <= line.keys()
        assert line["loss"] == pytest.approx(line["ce"] + line["mse"], abs=1e-5)
        assert line["skipped"] == 0.0


def test_losses_have_weights(recipe: Make, tmp_path: Path) -> None:
    train(recipe(steps=1, ce_weight=0.25, mse_weight=2.0), quiet=True)
    (line,) = log(tmp_path / "run")
    assert line["loss"] == pytest.approx(0.25 * line["ce"] + 2.0 * line["mse"], abs=1e-5)


def test_a_step_that_explodes_is_skipped(recipe: Make) -> None:
    trainer = Trainer(recipe(), quiet=True)
    with torch.no_grad():
        trainer.model.llm2vae.bias[0] = float("inf")
    before = [p.detach().clone() for p in trainer.state.weights]
    record = trainer.train_step()
    assert (record["skipped"], trainer.state.step) == (1.0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.state.weights, strict=True))


def test_the_average(recipe: Make) -> None:
    """After n steps it warms up as (1 + n) / (10 + n), up to the recipe's number."""
    trainer = Trainer(recipe(ema=0.15), quiet=True)
    start = trainer.state.weights[0].detach().clone()
    trainer.train_step()
    after_one = trainer.state.weights[0].detach().clone()
    expected = 0.1 * start + 0.9 * after_one
    assert torch.allclose(trainer.state.average[0], expected, atol=1e-6)
    trainer.train_step()
    assert torch.allclose(trainer.state.average[0], 0.15 * expected + 0.85 * trainer.state.weights[0], atol=1e-6)


def test_the_papers_average_has_no_warm_up(recipe: Make) -> None:
    trainer = Trainer(recipe(ema=0.995, ema_warmup=False), quiet=True)
    start = trainer.state.weights[0].detach().clone()
    trainer.train_step()
    assert torch.allclose(trainer.state.average[0], 0.995 * start + 0.005 * trainer.state.weights[0], atol=1e-7)


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(recipe: Make, tmp_path: Path) -> None:
    """It is written beside the training, which goes on changing the weights."""
    trainer = Trainer(recipe(), quiet=True)
    wanted = {name: tensor.clone() for name, tensor in trainer.state.tensors().items()}
    trainer.save()
    for tensor in (*trainer.state.weights, *trainer.state.average):
        tensor.detach().add_(1.0)
    assert trainer.writer.wait() is None
    found = weights(tmp_path / "run" / "checkpoints" / "step-00000000")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("part", PARTS)
def test_what_is_frozen_stays(recipe: Make, folder: Path, part: str) -> None:
    out = train(recipe(steps=2, frozen=(part,)), quiet=True)
    before, after = weights(folder), weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    belongs: dict[str, Callable[[str], bool]] = {
        "vit_model": lambda name: name.startswith("vit_model."),
        "connector": lambda name: name.startswith("connector."),
        "und": lambda name: (
            name == "language_model.model.norm.weight" or (".model.layers." in name and "moe_gen" not in name)
        ),
        "gen": lambda name: (
            "moe_gen" in name or name.startswith(("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed."))
        ),
        "embed_tokens": lambda name: "embed_tokens" in name,
    }
    assert not any(belongs[part](name) for name in changed)
    for other in PARTS:
        assert other == part or any(belongs[other](name) for name in changed), other
    assert not any("pos_embed.pos_embed" in name for name in changed)


def test_every_weight_of_the_decoder_and_the_flow_head_belongs_to_one_part(tiny_loaded: LoadedModel) -> None:
    """Without both experts, the word embeddings and the reader, the language head alone is left."""
    model = UnifiedModel(tiny_loaded.config)
    freeze(model, PARTS)
    assert list(trained(model)) == ["language_model.lm_head.weight"]


def test_unknown_parts_cannot_be_frozen(recipe: Make) -> None:
    with pytest.raises(ValueError, match="frozen: unknown part 'vit'; the parts are vit_model"):
        Trainer(recipe(frozen=("vit",)), quiet=True)


# ---------------------------------------------------------------------------------------------------------- interrupted


class Stopped(Exception):
    """A crash."""


def crash(trainer: Trainer, step: int, error: type[BaseException] = Stopped) -> None:
    """Run until a step begins, then die."""
    healthy = trainer.train_step

    def train_step(stop: Any = bool) -> dict[str, float]:
        if trainer.state.step == step:
            trainer.writer.wait()
            raise error
        return healthy(stop)

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(error):
        trainer.fit()


@pytest.mark.parametrize("step", [1, 3])
def test_resumed_is_uninterrupted(recipe: Make, tmp_path: Path, finished: Path, step: int) -> None:
    """Bit for bit: weights, average, moments. A crash falls back to the last checkpoint (or the start)."""
    crash(Trainer(recipe(), quiet=True), step)
    check_resumed(recipe(), finished)


def test_resumed_is_uninterrupted_by_muon(recipe: Make, tmp_path: Path) -> None:
    made = recipe(optimizer=Optimizer(kind="muon", lr=1e-3, warmup=2, cooldown=2))
    train(replace(made, out=str(tmp_path / "whole")), quiet=True)
    crash(Trainer(made, quiet=True), 5)
    check_resumed(made, tmp_path / "whole")


def check_resumed(recipe: TrainRecipe, whole: Path) -> None:
    assert identical(whole / "model", train(recipe, quiet=True))
    found, wanted = latest(Path(recipe.out)), latest(whole)
    assert found is not None and wanted is not None and identical(found, wanted)


def test_a_half_written_checkpoint_is_no_checkpoint(recipe: Make, tmp_path: Path, finished: Path) -> None:
    crash(Trainer(recipe(), quiet=True), 5)
    newest = latest(tmp_path / "run")
    assert newest is not None
    half, deleted = newest.with_name("step-00000007.part"), newest.with_name("step-00000001")
    shutil.copytree(newest, half)
    (half / "state.json").write_text('{"step": 5')
    shutil.copytree(newest, deleted)
    (deleted / "state.json").unlink()
    folder = train(recipe(), quiet=True)
    assert identical(finished / "model", folder)
    assert not half.exists() and not deleted.exists()


def test_a_damaged_checkpoint_is_named(recipe: Make, tmp_path: Path, finished: Path) -> None:
    """... and deleting it resumes from the one before."""
    crash(Trainer(recipe(), quiet=True), 5)
    damaged = tmp_path / "run" / "checkpoints" / "step-00000004"
    (shard,) = damaged.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    for broken, told in ((content, "bytes have changed"), (content[:1000], "bytes have changed"), (None, "No such")):
        shard.unlink()
        if broken is not None:
            shard.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"step-00000004 is damaged .*{told}.*delete it"):
            train(recipe(), quiet=True)
    shutil.rmtree(damaged)
    assert identical(finished / "model", train(recipe(), quiet=True))


def test_ctrl_c_waits_for_the_step(
    recipe: Make, tmp_path: Path, finished: Path, request: pytest.FixtureRequest
) -> None:
    """A step is whole or not begun: what is saved on Ctrl-C can be resumed bit for bit."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    trainer = Trainer(recipe(), quiet=True)
    score = trainer.score

    def interrupted(*args: Any) -> Any:
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return score(*args)

    trainer.score = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.state.step == 4
    assert [path.name for path in checkpoints(tmp_path / "run")][-1] == "step-00000004"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert identical(finished / "model", train(recipe(), quiet=True))


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still going on")


def test_checkpoints_are_pruned(finished: Path) -> None:
    assert [path.name for path in checkpoints(finished)] == ["step-00000004", "step-00000006"]


def test_a_finished_run_is_left_as_it_is(trained_once: TrainRecipe, finished: Path) -> None:
    before = weights(finished / "model")
    train(replace(trained_once, out=str(finished)), quiet=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(finished / "model").items())
    assert len(log(finished)) == 6


def test_another_recipe_in_the_same_folder(trained_once: TrainRecipe, finished: Path) -> None:
    same = replace(trained_once, out=str(finished))
    changed = replace(same, seed=1, optimizer=Optimizer(lr=1e-4))
    with pytest.raises(ValueError, match=r"another recipe \(different: optimizer.lr, .*, seed\)"):
        train(changed, quiet=True)
    more = replace(same, steps=7, log_every=3, keep=1)  # where it ends and what it tells may change
    train(more, quiet=True)
    assert [path.name for path in checkpoints(finished)] == ["step-00000007"]


# --------------------------------------------------------------------------------------------------------------- result


def test_what_is_exported_is_the_average(recipe: Make) -> None:
    trainer = Trainer(recipe(), quiet=True)
    folder = trainer.fit()
    exported = load_model(folder)
    parameters = dict(exported.model.named_parameters())
    for name, average in zip(trainer.state.named_weights, trainer.state.average, strict=True):
        assert torch.equal(parameters[name], average)
    assert any(not torch.equal(a, w) for a, w in zip(trainer.state.average, trainer.state.weights, strict=True))
    assert exported.config == trainer.config


def test_the_result_draws(finished: Path) -> None:
    pipe = IRGPipeline.from_pretrained(finished / "model", device="cpu")
    output = pipe("p0", seed=1, mode="irg", height=32, width=48, max_think_tokens=5, num_timesteps=3)
    assert output.image.size == (48, 32)
    assert len(output.trajectory.turns) == 2
    assert pipe.profile.how_to_improve == "better?" and pipe.profile.protocol == "irg"


def test_the_result_can_be_trained_on(recipe: Make, finished: Path, tmp_path: Path) -> None:
    folder = train(recipe(model=str(finished / "model"), out=str(tmp_path / "stage2"), steps=1), quiet=True)
    assert not identical(finished / "model", folder)


@pytest.mark.parametrize("stream", [True, False])
def test_validation_measures_whether_the_text_is_heard(recipe: Make, tmp_path: Path, stream: bool) -> None:
    """Errors with the right thinking, with none and with another's; measuring changes no weight."""
    make = lambda **changes: recipe(steps=2, stream=stream, validation_rows=2, tokens_per_pack=80, **changes)  # noqa: E731 # two packs
    whole = train(make(out=str(tmp_path / "whole"), validate_every=2), quiet=True)
    asked = train(make(validate_every=1), quiet=True)
    names = {f"val/mse@0.9/{which}" for which in ("with", "without", "shuffled")}
    for line in log(tmp_path / "run"):
        assert names <= line.keys() and len({line[name] for name in names}) == 3
    assert identical(whole, asked)


# ---------------------------------------------------------------------------------------------------------------- start


def test_two_runs_in_one_folder(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused before anything is loaded; the first is not disturbed, and lets go at its end."""
    with only_run(tmp_path / "run", Ranks()):
        monkeypatch.setattr("irg.learning.trainer.build", lambda *_: pytest.fail("a model was loaded"))
        with pytest.raises(ValueError, match=r"another run is at work in .*run: wait for its end, or choose another"):
            train(recipe(), quiet=True)
    monkeypatch.undo()
    train(recipe(steps=1, optimizer=Optimizer()), quiet=True)


def test_a_folder_that_is_none(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file can't be written"):
        train(recipe(out=str(tmp_path / "file")), quiet=True)


def test_a_tokenizer_in_two_files(recipe: Make, folder: Path) -> None:
    """As in BAGEL's folder: ``vocab.json`` and ``merges.txt``, with ``<|endoftext|>`` in the place of a byte."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    wanted = Trainer(recipe(), quiet=True).tokenizer.encode("a cup")
    (folder / "tokenizer.json").unlink()
    unused = next(letter for letter, index in vocab.items() if index == 255)
    vocab["<|endoftext|>"] = vocab.pop(unused)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert make_plan(recipe()).problems == []
    trainer = Trainer(recipe(), quiet=True)
    assert trainer.tokenizer.encode("a cup") == wanted and trainer.train_step()["skipped"] == 0


def test_another_models_tokenizer(recipe: Make, folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|other|>").replace("<|im_start|>", "<|im_end|>"))
    with pytest.raises(ValueError, match="the tokenizer has SpecialTokens"):
        Trainer(recipe(), quiet=True)
    assert "the tokenizer has SpecialTokens" in " ".join(make_plan(recipe()).problems)


def test_every_seed_step_and_stream_has_its_own_noise(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """(seed 0, step 1,000,003) is not (seed 1, step 0), and (step 1, stream 0) not (step 0, stream 1)."""
    states: list[Tensor] = []

    def spy(score: Any, pack: Any, noise: torch.Generator, shift: float) -> Any:
        states.append(noise.get_state())
        return score(pack, noise, shift)

    for seed, step, stream in ((0, 1_000_003, 0), (1, 0, 0), (0, 7_919_000_003, 0), (0, 0, 1), (0, 1, 0), (0, 0, 0)):
        trainer = Trainer(recipe(seed=seed, parallel=Parallel(accumulate=2)), quiet=True)
        trainer.state.step = step
        monkeypatch.setattr(trainer, "score", partial(spy, trainer.score))
        trainer.gradients({stream: trainer.loader.pack(step, stream)})
    assert len({bytes(state.numpy()) for state in states}) == len(states) == 6
