"""The whole IRG loop from a folder in BAGEL's layout: its depth, a sixteenth of its widths, random weights, a CPU."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from irg.model.network.config import ModelConfig, bagel_7b
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import narrower, write_folder
from irg.model.weights.manifest import read_header
from irg.reasoning.pipeline import IRGPipeline
from irg.sequence.images import ResizeRule

FIRST = {"height": 32, "width": 48, "num_timesteps": 3, "max_think_tokens": 4, "temperature": 0.0}
SMALL = FIRST | {"improve_num_timesteps": 3}


def sixteenth() -> ModelConfig:
    """BAGEL-7B at 1/16 width; images that are looked at may be small (the published rule enlarges them to 512)."""
    config = narrower(bagel_7b(), 16)
    return dataclasses.replace(config, vae_resize=ResizeRule(1024, 32, 16), vit_resize=ResizeRule(980, 28, 14))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bagel")
    write_folder(folder, sixteenth(), layout="bagel", shard_bytes=50_000_000)
    return folder


def test_think_draw_look_reflect_draw(folder: Path, tmp_path: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"llm_config.json", "vit_config.json", "ae.safetensors", "ema.safetensors.index.json"} <= names
    assert not (folder / "weights.safetensors").exists() and len(read_header(folder / "ae.safetensors")) == 244
    told: list[str] = []
    pipe = IRGPipeline.from_pretrained(folder, device="cpu", say=told.append)
    decoder = pipe.config.decoder
    assert (decoder.num_hidden_layers, decoder.hidden_size, decoder.num_key_value_heads) == (28, 224, 4)
    assert len(told) == 1 and told[0].startswith("Memory: float32 needs about")
    out = pipe("three red apples <|im_end|> left of a bus", seed=1, **SMALL)
    first, second = out.trajectory.turns
    assert out.image.size == (48, 32) and out.initial_image is not None
    assert not np.array_equal(np.asarray(out.image), np.asarray(out.initial_image))
    assert first.thinking is not None and second.thinking is not None and (first.tokens, second.tokens) == (4, 4)
    saved = {path.name for path in out.save(tmp_path / "out").iterdir()}
    assert saved == {"initial.png", "improved.png", "trajectory.json", "report.html"}
    assert "flash_attn" not in sys.modules
    again = pipe("three red apples <|im_end|> left of a bus", seed=1, **SMALL)
    assert np.array_equal(np.asarray(again.image), np.asarray(out.image))


def test_the_whole_loop_runs_in_bfloat16(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    """The dtype of every GPU: the image that is looked at reaches the autoencoder in its dtype."""
    config = tiny_loaded.config
    write_folder(tmp_path, config)
    pipe = IRGPipeline.from_pretrained(tmp_path, device="cpu", memory="bf16")
    networks = (pipe.engine.runner.model, pipe.engine.runner.autoencoder)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    out = pipe("a bus", seed=1, height=32, width=32, num_timesteps=3, improve_num_timesteps=3, max_think_tokens=3)
    assert len(out.trajectory.turns) == 2 and out.image.size == (32, 32)


def test_offload_draws_the_same_image(folder: Path) -> None:
    images = []
    for memory in ("bf16", "offload"):  # float32 numbers on both: this is about their coming and going
        pipe = IRGPipeline.from_pretrained(folder, "cpu", torch.float32, memory)  # type: ignore[arg-type]
        images.append(np.asarray(pipe("a bus", seed=1, mode="think", **FIRST).image))
    assert np.array_equal(*images)


def test_int8_and_int4_draw_nearly_the_same_image(folder: Path) -> None:
    pytest.importorskip("torchao")
    values = {}
    for memory in ("bf16", "int8", "int4"):
        pipe = IRGPipeline.from_pretrained(folder, "cpu", torch.float32, memory)  # type: ignore[arg-type]
        values[memory] = np.asarray(pipe("a bus", seed=1, mode="direct", **FIRST).image).astype(float)
    errors = [np.abs(values[rung] - values["bf16"]).mean() for rung in ("int8", "int4")]
    assert errors[0] < errors[1] < 0.25 * values["bf16"].std() + 10


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).symlink_to(path)
    text = (folder / "tokenizer.json").read_text()
    (other / "tokenizer.json").unlink()
    (other / "tokenizer.json").write_text(text.replace("9500", "9499"))
    with pytest.raises(ValueError, match=r"the tokenizer has SpecialTokens\(bos=9499"):
        IRGPipeline.from_pretrained(other)
