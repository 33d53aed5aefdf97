"""A model carried over to larger images and more words."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from irg.model.network.autoencoder import build_autoencoder
from irg.model.network.config import tiny
from irg.model.network.embeddings import sincos_rows
from irg.model.weights.checkpoint import load_model, save_model
from irg.model.weights.initialize import random_model
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline
from irg_mini.start.base_model import PROFILE, train_tokenizer
from irg_mini.start.connector import fit_connector
from irg_mini.start.enlarge import Enlargement, enlarge, interpolated_places, resized_vocabulary


@pytest.fixture(scope="module")
def small() -> TextTokenizer:
    return train_tokenizer(texts=60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of few texts, a connector of few steps: neither has to be good here."""
    monkeypatch.setattr("irg_mini.start.enlarge.train_tokenizer", partial(train_tokenizer, texts=60))
    monkeypatch.setattr("irg_mini.start.enlarge.fit_connector", partial(fit_connector, steps=20))


@pytest.fixture
def folder(tmp_path: Path, small: TextTokenizer) -> Path:
    """A small model that draws 64 x 64."""
    base = tiny()
    config = replace(
        base,
        decoder=replace(base.decoder, vocab_size=small.tokenizer.get_vocab_size()),
        special=small.special,
    )
    save_model(tmp_path / "old", config, random_model(config, 0), build_autoencoder(config.autoencoder))
    small.tokenizer.save(str(tmp_path / "old" / "tokenizer.json"))
    replace(PROFILE, settings=PROFILE.settings | {"height": 64, "width": 64}).save(tmp_path / "old")
    return tmp_path / "old"


def test_places_keep_their_features() -> None:
    """Four tokens a side in place of two: their middles lie a quarter token beside those of before."""
    places = interpolated_places(4, 2, 16)
    assert torch.equal(places[0], sincos_rows(torch.tensor([-0.25]), torch.tensor([-0.25]), 16)[0])
    assert torch.equal(places[7], sincos_rows(torch.tensor([1.25]), torch.tensor([0.25]), 16)[0])
    assert torch.equal(interpolated_places(3, 3, 16)[5], sincos_rows(torch.tensor([2]), torch.tensor([1]), 16)[0])


def test_words_keep_their_embeddings(small: TextTokenizer) -> None:
    large = train_tokenizer(texts=60, vocabulary=2048, vocab="geneval")
    rows = torch.arange(small.tokenizer.get_vocab_size(), dtype=torch.float32)[:, None]
    new = resized_vocabulary(rows, small, large)
    assert len(new) == large.tokenizer.get_vocab_size()
    (dog_before,), (dog_after,) = small.encode(" dog"), large.encode(" dog")
    assert new[dog_after] == dog_before
    (place_before,), (place_after,) = small.encode(" (3,7)"), large.encode(" (3,7)")
    assert new[place_after] == place_before
    (hydrant,), spelled = large.encode(" hydrant"), small.encode(" hydrant")
    assert len(spelled) > 1 and new[hydrant] == pytest.approx(sum(spelled) / len(spelled))


def test_the_enlarged_model_is_whole(folder: Path, tmp_path: Path) -> None:
    out = enlarge(Enlargement(str(folder), str(tmp_path / "new"), size=96, words=1100, vocab="core"))
    before, after = load_model(folder), load_model(out)
    layer = "language_model.model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(before.model.state_dict()[layer], after.model.state_dict()[layer])
    pipe = IRGPipeline.from_pretrained(str(out))
    result = pipe("a dog", seed=1, max_think_tokens=3, num_timesteps=3, mode="think")
    assert result.image.size == (96, 96)


def test_a_new_vit_brings_a_connector_that_fits_it(folder: Path, tmp_path: Path) -> None:
    before = load_model(folder).model.state_dict()
    names = [name for name in before if name.startswith("vit_model.")]
    vit = {name.removeprefix("vit_model."): torch.randn(before[name].shape) / 9 for name in names}
    (tmp_path / "vit").mkdir()
    save_file(vit, tmp_path / "vit" / "model.safetensors")
    options = Enlargement(
        str(folder), str(tmp_path / "new"), 64, "core", vit=str(tmp_path / "vit"), images=12, sprites="builtin"
    )
    after = load_model(enlarge(options), dtype=torch.float32).model.state_dict()
    assert all(torch.equal(after[f"vit_model.{name}"], weight) for name, weight in vit.items())
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {"vit_model", "connector"}
    with pytest.raises(ValueError, match="images must be at least 10, got 3"):
        Enlargement(str(folder), str(tmp_path / "new"), images=3)


def test_sizes_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size 100 must be a multiple of 16 and at most 128"):
        enlarge(Enlargement(str(folder), str(tmp_path / "new"), size=100))
    assert not (tmp_path / "new").exists()
