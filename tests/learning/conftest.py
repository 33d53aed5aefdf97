"""A tiny model folder and a few trajectories, for whatever trains."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_rows import write_shards

from irg import registry
from irg.curation.records import TrajectoryRecord, png
from irg.learning.data.loader import PackLoader, row_sources
from irg.learning.data.rows import Rejections
from irg.learning.data.samples import SampleBuilder, TrajectoryEncoder
from irg.learning.data.stream import Feed
from irg.learning.recipe import Mixture, Optimizer, TrainRecipe
from irg.learning.rl.prompts import FilePrompts
from irg.learning.rl.recipe import Limits, RLRecipe
from irg.learning.rl.rewards import RewardTerm
from irg.model.network.packed_attention import PackedAttention
from irg.model.weights.checkpoint import LoadedModel, save_model
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer

STAGE_1 = Mixture(0.5, 0.5, 1.0, 0.5, 0.5, 1.0, mandatory=("initial_full", "improving_full"))
PROFILE = Profile("tiny", system_prompt="sys", how_to_think="how?", how_to_improve="better?")


def make_image(seed: int, height: int = 32, width: int = 32) -> bytes:
    """A PNG of a few colored squares."""
    colors = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return png(colors.repeat(16, axis=0).repeat(16, axis=1))


def records() -> list[TrajectoryRecord]:
    """Three trajectories of one turn and three of two; the last ones have images of another size."""
    first = [TrajectoryRecord(f"p{i}", f"thought {i}", make_image(i)) for i in range(2)]
    second = [
        TrajectoryRecord(f"q{i}", f"idea {i}", make_image(10 + i), f"fix {i}", make_image(20 + i)) for i in range(2)
    ]
    wide = TrajectoryRecord("wide", "a wide one", make_image(5, 32, 48))
    wider = TrajectoryRecord("wider", "wide", make_image(15, 32, 48), "make it so", make_image(25, 32, 48))
    return [*first, *second, wide, wider]


def start_folder(path: Path, loaded: LoadedModel, tokenizer: TextTokenizer) -> Path:
    """A model folder to start training from."""
    save_model(path, loaded.config, loaded.model, loaded.autoencoder)
    tokenizer.tokenizer.save(str(path / "tokenizer.json"))
    PROFILE.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Path:
    """A model folder to start training from."""
    return start_folder(tmp_path / "start", tiny_loaded, tiny_tokenizer)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of trajectory rows, two shards of them."""
    write_shards(records(), tmp_path / "rows", rows_per_shard=4)
    return tmp_path / "rows"


@pytest.fixture
def encoder(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> TrajectoryEncoder:
    """Of the tiny model."""
    return TrajectoryEncoder(tiny_loaded.config, tiny_tokenizer, PROFILE)


@pytest.fixture
def loader(
    rows: Path, tmp_path: Path, tiny_loaded: LoadedModel, encoder: TrajectoryEncoder
) -> Callable[..., PackLoader]:
    """Packs of a small recipe with some fields changed, streamed unless it says no."""

    def make(streams: int = 1, **changes: Any) -> PackLoader:
        base: dict[str, Any] = {
            "model": "none",
            "data": (str(rows),),
            "out": str(tmp_path / "run"),
            "steps": 1,
            "mixture": Mixture(0.5, 0.5, 1.0, 0.5, 0.5, 1.0),
            "tokens_per_pack": 300,
            "stream": True,
            "lookahead": 6,
        }
        recipe = TrainRecipe(**base | changes)
        sources = row_sources(recipe, None if recipe.stream else (encoder, tiny_loaded.autoencoder, True))
        builder, rejections = SampleBuilder(recipe, encoder.config, encoder), Rejections(tmp_path / "rejected.jsonl")
        return PackLoader(Feed(recipe, sources, builder, rejections, streams, PackedAttention, False), ahead=False)

    return make


@pytest.fixture
def words(tiny_tokenizer: TextTokenizer) -> Callable[[str], tuple[int, ...]]:
    """Ids of a text."""
    return tiny_tokenizer.encode


def small_recipe_of(model: Path, rows: Path, out: Path) -> TrainRecipe:
    """Six steps on the tiny model, saved after every second."""
    return TrainRecipe(
        model=str(model),
        data=(str(rows),),
        out=str(out),
        steps=6,
        mixture=STAGE_1,
        optimizer=Optimizer(lr=1e-3, warmup=2, cooldown=2),
        tokens_per_pack=200,
        noise_copies=2,
        log_every=1,
        save_every=2,
    )


@pytest.fixture
def small_recipe(folder: Path, rows: Path, tmp_path: Path) -> Callable[..., TrainRecipe]:
    """A small recipe with some fields changed."""
    return partial(replace, small_recipe_of(folder, rows, tmp_path / "run"))


@pytest.fixture
def small_rl_recipe(folder: Path, tmp_path: Path) -> Callable[..., RLRecipe]:
    """A small recipe by reward with some fields changed; its prompts are the lines of ``prompts.txt``."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\ntwo cats on a couch\nthree\n")

    def make(**changes: Any) -> RLRecipe:
        base = RLRecipe(
            model=str(folder),
            out=str(tmp_path / "run"),
            steps=4,
            prompts=FilePrompts("file", str(prompts)),
            rewards=(RewardTerm("low"),),
            optimizer=Optimizer(lr=1e-2, eps=1e-8, betas=(0.9, 0.95)),
            limits=Limits(malformed=0.0),
            save_every=1,
        )
        return replace(base, **changes)

    return make


@pytest.fixture
def add_rewards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives rewards their names, as installed packages do."""
    real = registry.load

    def add(**own: Any) -> None:
        def load(group: str, name: str) -> Any:
            return own[name] if group == registry.REWARDS and name in own else real(group, name)

        monkeypatch.setattr(registry, "load", load)

    return add
