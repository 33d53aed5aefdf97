"""BAGEL's folder as it was published: each form of its configuration files, and the other files beside them."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from irg.model.network.autoencoder import FluxConfig
from irg.model.network.config import bagel_7b
from irg.model.weights import config_files, convert
from irg.model.weights.checkpoint import check_folder
from irg.model.weights.config_files import read_config
from irg.model.weights.hub import needed
from irg.model.weights.initialize import narrower, write_folder
from irg.model.weights.tokenizer import TextTokenizer

FIRST = '{\n  "name": ["BAGEL-7B-MoT"],\n}'
LATER = json.dumps(
    {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": True,
        "latent_patch_size": 2,
        "max_latent_size": 32,
        "vit_max_num_patch_per_side": 70,
        "timestep_shift": 1.0,
        "llm_config": {"model_type": "qwen2", "hidden_size": 3584, "layer_module": "Qwen2DecoderLayer"},
        "vit_config": {"model_type": "siglip_vision_model", "rope": True},
        "vae_config": {"z_channels": 16, "downsample": 8, "kind": None},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.1",
    }
)
LLM = {  # Qwen2.5's: nothing of qk_norm or layer_module
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
VIT = {
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
INDEX = {"metadata": {"total_size": 9}, "weight_map": {"vae2llm.bias": "model-00001-of-00002.safetensors"}}


@pytest.fixture(autouse=True)
def unreported() -> Iterator[None]:
    """Each test sees the line about an ignored file anew."""
    config_files._report_ignored.cache_clear()
    yield


def published(folder: Path, config: str | None) -> None:
    """BAGEL's configuration files and what lies beside them."""
    folder.mkdir(exist_ok=True)
    (folder / "llm_config.json").write_text(json.dumps(LLM))
    (folder / "vit_config.json").write_text(json.dumps(VIT))
    for name in ("generation_config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    if config is not None:
        (folder / "config.json").write_text(config)


@pytest.mark.parametrize(
    ("config", "told"),
    [(None, ""), (FIRST, "not valid JSON"), (LATER, "none of the sections"), ("[1]", "expected a JSON object")],
    ids=["none", "first", "later", "list"],
)
def test_every_published_form_is_bagel(
    tmp_path: Path, config: str | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    published(tmp_path, config)
    with caplog.at_level(logging.WARNING, "irg"):
        assert read_config(tmp_path) == read_config(tmp_path) == bagel_7b()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (1 if told else 0)
    assert all(told in line and "config.json" in line and "ignored" in line and "\n" not in line for line in lines)


@pytest.mark.parametrize("config", [FIRST, LATER], ids=["first", "later"])
def test_weights_fit_beside_a_foreign_config(tmp_path: Path, config: str) -> None:
    """The index that names shards which are not there does not matter beside ``ema.safetensors``."""
    write_folder(tmp_path, replace(narrower(bagel_7b(), 16), autoencoder=FluxConfig()), seed=None)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    (tmp_path / "config.json").write_text(config)
    assert check_folder(tmp_path).weights_file.name == "ema.safetensors"


@pytest.mark.parametrize("config", [FIRST, LATER], ids=["first", "later"])
def test_a_foreign_config_is_kept_by_conversion(tmp_path: Path, config: str) -> None:
    for name in ("bagel", "ours", "back"):
        (tmp_path / name).mkdir()
    published(tmp_path / "bagel", config)
    convert._write_configs(tmp_path / "bagel", tmp_path / "ours", to_bagel=False)
    assert read_config(tmp_path / "ours") == bagel_7b()
    convert._write_configs(tmp_path / "ours", tmp_path / "back", to_bagel=True)
    assert (tmp_path / "back" / "config.json").read_text() == config


def test_the_hub_needs_no_shards_that_are_not_there() -> None:
    names = ["config.json", "llm_config.json", "vit_config.json", "generation_config.json", "merges.txt"]
    sizes = dict.fromkeys([*names, "model.safetensors.index.json", "ema.safetensors", "ae.safetensors"], 9)
    files = needed("owner/bagel", sizes, lambda index: pytest.fail("no index is needed"), "ema")
    assert {"ema.safetensors", "ae.safetensors"} <= set(files)


@pytest.mark.parametrize(
    ("config", "vocabulary"),
    [(FIRST, ("vocab.json", "merges.txt")), (LATER, ("tokenizer.json",))],
    ids=["first", "later"],
)
def test_the_whole_published_folder(
    tmp_path: Path, qwen2: Path, config: str | None, vocabulary: tuple[str, ...]
) -> None:
    """Every file beside the weights as it is on the hub, Qwen2's vocabulary of 151,643 words; only widths are small."""
    published(tmp_path, config)
    thin = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "llm_config.json").write_text(json.dumps(LLM | thin | {"intermediate_size": 32}))
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    (tmp_path / "vit_config.json").write_text(json.dumps(VIT | small))
    for name in (*vocabulary, "tokenizer_config.json"):
        (tmp_path / name).write_bytes((qwen2 / name).read_bytes())
    network = read_config(tmp_path)
    holes = tmp_path / "holes"
    holes.mkdir()
    write_folder(holes, network, seed=None)
    for name in ("ema.safetensors", "ae.safetensors"):
        (holes / name).rename(tmp_path / name)
    assert check_folder(tmp_path).entries["language_model.model.embed_tokens.weight"].shape == (152_064, 64)
    tokenizer = TextTokenizer.from_folder(tmp_path)
    tokenizer.check(network, tmp_path)
    assert list(vars(network.special).values()) == [151_644, 151_645, 151_652, 151_653]
