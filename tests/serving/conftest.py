"""A tiny model with random weights, behind a server for all tests that do not change it."""

from collections.abc import Iterator

import pytest

from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.pipeline import IRGPipeline
from irg.serving.options import Limits, ServerOptions
from serving import Running, serving

SMALL = {
    "size": "32x32",
    "num_timesteps": 4,
    "improve_num_timesteps": 3,
    "max_think_tokens": 4,
    "temperature": 0.0,
    "cfg_text_scale": 1.0,
    "improve_cfg_text_scale": 1.0,
}


@pytest.fixture(scope="session")
def tiny_pipe(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> IRGPipeline:
    folder = tmp_path_factory.mktemp("served")
    write_folder(folder, tiny_loaded.config)
    pipe = IRGPipeline.from_pretrained(folder, "cpu", options=SMALL)
    pipe.name = "tiny"
    return pipe


@pytest.fixture(scope="session")
def options() -> ServerOptions:
    limits = Limits(max_running=4, max_waiting=8, max_images=8, max_steps=300, max_body_mb=0.5, url_ttl_s=600)
    return ServerOptions(port=0, page=False, model_names=("gpt-image-1",), critics=("gate",), limits=limits)


@pytest.fixture(scope="module")
def served(tiny_pipe: IRGPipeline, options: ServerOptions) -> Iterator[Running]:
    with serving(tiny_pipe, options) as running:
        yield running
