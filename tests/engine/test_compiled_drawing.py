"""Drawing by compiled functions: the same images, compiled once."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from irg.engine.engine import Engine
from irg.engine.ops import Draw, Program, Say
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.model.network.config import tiny
from irg.model.network.unified import UnifiedModel
from irg.model.placement.offload import offload_layers
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import random_model

pytestmark = pytest.mark.usefixtures("fresh_compiler")

DRAWING = DrawSettings(num_timesteps=4, cfg_text_scale=3.0)


@pytest.fixture(scope="module")
def three_layers() -> UnifiedModel:
    config = tiny()
    return random_model(replace(config, decoder=replace(config.decoder, num_hidden_layers=3)), seed=3)


def drawn(runner: Runner, said: int, size: tuple[int, int]) -> Tensor:
    def program() -> Program:
        prompt = yield Say(tuple(range(5, 5 + said)))
        return (yield Draw(*size, DRAWING, drop_text=prompt.handles))

    (image,) = Engine(runner).run([(program(), said)])
    latents: Tensor = image.latents
    return latents


def test_images_are_compiled_once_and_are_the_same(three_layers: UnifiedModel, tiny_loaded: LoadedModel) -> None:
    """Three graphs without breaks for all layers, steps and images of a size, however long their contexts are; another
    three for all other sizes."""
    plain, compiled = (Runner(three_layers, tiny_loaded.autoencoder) for _ in range(2))
    compiled.compile_drawing("eager")
    graphs = []
    for said, size in ((4, (32, 32)), (9, (32, 32)), (4, (32, 64)), (5, (64, 64))):
        assert torch.allclose(drawn(compiled, said, size), drawn(plain, said, size), atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [3, 3, 6, 6]
    assert not counters["graph_break"] and not counters["unimplemented"]


def test_offloaded_layers_are_refused(tiny_loaded: LoadedModel) -> None:
    model = random_model(tiny(vocab_size=260), seed=1)
    offload_layers(model, "cpu")
    with pytest.raises(ValueError, match="compile needs the whole model on one device"):
        Runner(model, tiny_loaded.autoencoder).compile_drawing()


@pytest.mark.gpu
def test_a_gpu_draws_the_same(three_layers: UnifiedModel, tiny_loaded: LoadedModel) -> None:
    model, autoencoder = three_layers.cuda(), tiny_loaded.autoencoder.cuda()
    plain, compiled = (Runner(model, autoencoder) for _ in range(2))
    compiled.compile_drawing()
    for said, size in ((4, (32, 32)), (9, (32, 32)), (4, (32, 64)), (5, (64, 64))):
        assert torch.allclose(drawn(compiled, said, size), drawn(plain, said, size), atol=1e-4)
