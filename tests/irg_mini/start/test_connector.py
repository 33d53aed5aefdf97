"""The connector that starts in the decoder's words."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from irg.model.network.config import ModelConfig, tiny
from irg.model.network.embeddings import Connector
from irg.model.weights.initialize import random_model
from irg.model.weights.tokenizer import TextTokenizer
from irg_mini.perception.labeled_images import Pool
from irg_mini.start.base_model import train_tokenizer
from irg_mini.start.connector import fit_connector, set_linear
from irg_mini.world.sprites import load_sprites


def test_two_layers_with_gelu_hold_a_linear_map() -> None:
    torch.manual_seed(0)
    connector = Connector(12, 16)
    features_PF = torch.randn(400, 12) + 3
    targets_PC = features_PF @ torch.randn(12, 5) @ torch.randn(5, 16) - 2  # of rank 5, below 16 / 2
    set_linear(connector, features_PF, targets_PC)
    with torch.no_grad():
        error = (connector(features_PF) - targets_PC).square().mean() / targets_PC.var()
    assert error < 1e-3  # the ridge shrinks by a hundredth


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(texts=60)


@pytest.fixture(scope="module")
def config(tokenizer: TextTokenizer) -> ModelConfig:
    base = tiny()
    words = tokenizer.tokenizer.get_vocab_size()
    return replace(base, decoder=replace(base.decoder, vocab_size=words), special=tokenizer.special)


def pool(config: ModelConfig, count: int) -> Pool:
    sprites = load_sprites("builtin")
    return Pool(count, 3, config.vit.image_size, 0.0, sprites=sprites, vocab=sprites.names)


class Cells(torch.nn.Module):
    """A vit that knows which patch it looks at, and nothing else."""

    def forward(self, patches_PD: Tensor, cells_P: Tensor, lengths: list[int]) -> Tensor:
        return F.one_hot(cells_P, 64).float()


def test_the_place_of_things_is_classified(config: ModelConfig, tokenizer: TextTokenizer) -> None:
    """Which of 64 patches a thing's center is in tells which of 144 places it has, up to its neighbors."""
    shares, connectors = [], []
    for _ in "ab":
        model = random_model(config, 0)
        model.vit_model, model.connector = Cells(), Connector(64, config.decoder.hidden_size)  # type: ignore[assignment]
        shares.append(fit_connector(model, tokenizer, "core", pool(config, 200), augmented=0.0, steps=100))
        connectors.append(model.connector)
    assert 0.15 < shares[0] < 0.75  # a patch holds one, two or four places; by chance: 0.007
    assert shares[0] == shares[1] and torch.equal(connectors[0].fc2.weight, connectors[1].fc2.weight)


def test_other_weights_stay(config: ModelConfig, tokenizer: TextTokenizer) -> None:
    before, model = random_model(config, 0), random_model(config, 0)
    fit_connector(model, tokenizer, "core", pool(config, 12), steps=20)
    changed = {name for name, p in model.state_dict().items() if not torch.equal(p, before.state_dict()[name])}
    assert changed == {f"connector.fc{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
