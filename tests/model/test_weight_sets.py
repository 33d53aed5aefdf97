"""Which weights of a folder are taken, shards without an index, and names that training wrappers left."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import LoadedModel, check_folder, load_model, save_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.key_names import ROOTS, unwrapped, unwrapped_name
from irg.model.weights.weight_sets import choose_set, set_name


@pytest.fixture
def folder(tmp_path: Path, tiny_loaded: LoadedModel) -> Path:
    """With one set of weights, ``ema``."""
    save_model(tmp_path / "model", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    (tmp_path / "model" / "weights.safetensors").rename(tmp_path / "model" / "ema.safetensors")
    return tmp_path / "model"


def in_shards(folder: Path, names: list[str]) -> None:
    """``ema.safetensors`` as several files without an index."""
    tensors = load_file(folder / "ema.safetensors")
    for i, name in enumerate(names):
        save_file({key: tensors[key].clone() for key in list(tensors)[i :: len(names)]}, folder / name)
    (folder / "ema.safetensors").unlink()


AE, RVR = "ae.safetensors", "rvr.safetensors"


@pytest.mark.parametrize(
    ("files", "wanted", "file"),
    [
        (["ema.safetensors", "model.safetensors", AE], None, "ema.safetensors"),
        (["ema.safetensors", "model.safetensors", AE], "model", "model.safetensors"),
        (["ema.safetensors", "weights.safetensors", AE], None, "weights.safetensors"),
        (["ema.safetensors", RVR, AE], None, "ema.safetensors"),
        (["ema.safetensors", RVR, AE], "rvr", RVR),
        (["ema.safetensors", RVR, AE], "rvr.safetensors", RVR),
        ([RVR, AE, "README.md"], None, RVR),
        (["ema.safetensors", "model.safetensors.index.json", AE], None, "ema.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], None, "model.safetensors.index.json"),
        (["ema-00002-of-00002.safetensors", "ema-00001-of-00002.safetensors"], None, "ema-00001-of-00002.safetensors"),
        (["ema.00000-of-00002.safetensors", "ema.00001-of-00002.safetensors"], "ema", "ema.00000-of-00002.safetensors"),
    ],
)
def test_the_set_that_is_taken(files: list[str], wanted: str | None, file: str) -> None:
    chosen = choose_set(files, wanted, "F")
    assert chosen.file == file and chosen.name == set_name(file)


@pytest.mark.parametrize(
    ("files", "wanted", "told"),
    [
        (["ema.safetensors", AE], "model", "F has no weights called 'model': it has ema"),
        (["weights.safetensors", AE], "ema", "it has weights"),
        (["ema.safetensors", AE], "ae", "no weights called 'ae'"),
        (["ema.safetensors", AE], "../ema", "no weights called"),
        (["ema.safetensors", AE], "", "no weights called ''"),
        ([RVR, "other.safetensors", AE], None, "choose one with --weights: other, rvr"),
        ([AE], None, "weights.safetensors or ema.safetensors or model.safetensors is missing"),
        (["ema-00001-of-00003.safetensors", "ema-00003-of-00003.safetensors"], None, "shard 2 of 3"),
        (["ema.00000-of-00003.safetensors", "ema.00001-of-00003.safetensors"], None, "shard 2 of 3"),
        (["ema-00001-of-00001.safetensors", "ema-00001-of-00002.safetensors"], None, "different sets"),
    ],
)
def test_what_is_not_there_is_an_error(files: list[str], wanted: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        choose_set(files, wanted, "F")


@pytest.mark.parametrize(
    "names",
    [
        ["ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors"],
        ["ema.00000-of-00003.safetensors", "ema.00001-of-00003.safetensors", "ema.00002-of-00003.safetensors"],
    ],
)
def test_shards_without_an_index(folder: Path, names: list[str]) -> None:
    wanted = load_model(folder).model.state_dict()
    in_shards(folder, names)
    loaded = load_model(folder, weights="ema")
    assert loaded.weights_file == folder / names[0]
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in loaded.model.state_dict().items())
    (folder / names[1]).unlink()
    with pytest.raises(ValueError, match="shard"):
        load_model(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    in_shards(folder, ["ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors"])
    shards = [load_file(folder / f"ema-0000{n}-of-00002.safetensors") for n in (1, 2)]
    key = next(iter(shards[0]))
    save_file(shards[1] | {key: shards[0][key]}, folder / "ema-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=f"both hold {key}"):
        load_model(folder)


def test_roots_are_the_models_children(tiny_loaded: LoadedModel) -> None:
    assert set(ROOTS) == {name for name, _ in tiny_loaded.model.named_children()}
    for key in UnifiedModel.state_dict(tiny_loaded.model):
        assert unwrapped_name(key) == key


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "module._orig_mod.", "_orig_mod.model.module."],
)
def test_wrapped_names(folder: Path, tmp_path: Path, prefix: str) -> None:
    wanted = load_model(folder).model.state_dict()
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "ema.safetensors").items()}
    wrapped = {prefix + key.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."): t for key, t in tensors.items()}
    save_file(wrapped, folder / "ema.safetensors")
    got = load_model(folder).model.state_dict()
    assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)
    convert(folder, tmp_path / "plain", Conversion())
    assert load_file(tmp_path / "plain" / "weights.safetensors").keys() == tensors.keys()


def test_names_that_become_one(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"module\.vae2llm\.bias and vae2llm\.bias are both vae2llm\.bias"):
        unwrapped({"module.vae2llm.bias": 1, "vae2llm.bias": 2}, folder / "ema.safetensors")


def test_a_model_without_its_vit_is_told_how_to_get_it(folder: Path) -> None:
    tensors = load_file(folder / "ema.safetensors")
    kept = {key: tensor.clone() for key, tensor in tensors.items() if not key.startswith(("vit_", "connector"))}
    save_file(kept, folder / "ema.safetensors")
    with pytest.raises(ValueError, match=r"lacks vit_model, connector: .*irg model convert .* OUT --base BASE"):
        check_folder(folder)


def test_an_index_without_its_shards_does_not_matter_beside_other_weights(folder: Path) -> None:
    index = {"weight_map": {"vae2llm.bias": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check_folder(folder).weights_file.name == "ema.safetensors"
    with pytest.raises(ValueError, match=r"model-00001-of-00002.safetensors is missing: model.safetensors.index.json"):
        check_folder(folder, "model")
