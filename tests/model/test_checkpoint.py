"""Model folders: what is written comes back, what is published is read, and what is broken is refused in one line."""

import dataclasses
import errno
import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from irg.model.network.autoencoder import CompactConfig, FluxAutoencoder, FluxConfig, build_autoencoder
from irg.model.network.config import DecoderConfig, ModelConfig, VitConfig, bagel_7b, mini, tiny
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import load_model, read_config, save_model
from irg.model.weights.config_files import special_ids, to_sections
from irg.model.weights.initialize import random_model
from irg.model.weights.manifest import read_header
from irg.model.weights.tensor_reader import TensorReader

SMALL_AE = CompactConfig(
    z_channels=4, encoder_widths=(8, 16), encoder_depths=(1, 1), decoder_widths=(8, 8, 16), decoder_depths=(1, 1, 1)
)
FLUX = FluxConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, group_norm_groups=4)
PATCH_EMBEDDING = "vit_model.vision_model.embeddings.patch_embedding.weight"
HEAD = "language_model.lm_head.weight"
MEMORY = ("MemTotal", "SwapTotal")


def small(**changes: Any) -> ModelConfig:
    return dataclasses.replace(tiny(), autoencoder=SMALL_AE, **changes)


def tied(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tie_word_embeddings=True))


def write(folder: Path, config: ModelConfig, dtype: torch.dtype | None = None) -> UnifiedModel:
    torch.manual_seed(1)
    model = random_model(config, 0)
    save_model(folder, config, model, build_autoencoder(config.autoencoder), dtype)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "model", small())
    return tmp_path / "model"


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    sections = json.loads((folder / "config.json").read_text())
    change(sections)
    (folder / "config.json").write_text(json.dumps(sections))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {key: value.clone() for key, value in load_file(folder / "weights.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def refused(folder: Path, match: str) -> str:
    """The message with which a folder is refused: one line that names a file."""
    with pytest.raises(ValueError, match=match) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "config",
    [small(), small(prediction="preconditioned"), dataclasses.replace(tiny(), autoencoder=FLUX), tied(small())],
    ids=["compact", "preconditioned", "flux", "tied"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_identical(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    write(tmp_path / "a", config, dtype)
    loaded = load_model(tmp_path / "a", dtype=None)
    assert loaded.config == config
    save_model(tmp_path / "b", loaded.config, loaded.model, loaded.autoencoder)
    for name in ("weights.safetensors", "ae.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "ae.safetensors",
        "config.json",
        "weights.safetensors",
    ]
    head, embedding = loaded.model.language_model.lm_head.weight, loaded.model.language_model.model.embed_tokens.weight
    assert (head is embedding) == config.decoder.tie_word_embeddings


def test_loaded_weights_are_those_saved(tmp_path: Path) -> None:
    model = write(tmp_path, small())
    loaded = load_model(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key
    frozen = [name for name, p in loaded.model.named_parameters() if not p.requires_grad]
    assert frozen == ["latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"]
    assert not loaded.model.training


def test_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    write(tmp_path, small(), torch.bfloat16)
    for asked, got in ((None, torch.bfloat16), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        loaded = load_model(tmp_path, dtype=asked)
        assert {t.dtype for t in loaded.model.state_dict().values()} == {got}
        assert {t.dtype for t in loaded.autoencoder.state_dict().values()} == {got}


def test_training_on_mapped_weights_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "weights.safetensors").read_bytes()
    loaded = load_model(folder)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(1)
    assert (folder / "weights.safetensors").read_bytes() == before


def test_a_model_can_be_saved_over_the_folder_it_is_mapped_from(folder: Path) -> None:
    loaded = load_model(folder)
    before = (folder / "weights.safetensors").read_bytes()
    save_model(folder, loaded.config, loaded.model, loaded.autoencoder)
    assert (folder / "weights.safetensors").read_bytes() == before


def test_failed_save_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "disk full")

    loaded = load_model(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr("irg.model.weights.checkpoint.save_file", full)
    with pytest.raises(ValueError, match="disk full"):
        save_model(folder, loaded.config, loaded.model, loaded.autoencoder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_saving_under_another_configuration_is_refused(folder: Path) -> None:
    loaded = load_model(folder)
    with pytest.raises(ValueError, match="not that of the model"):
        save_model(folder, small(max_latent_size=4), loaded.model, loaded.autoencoder)


def test_random_model_is_reproducible_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    one, two, other = (random_model(tied(small()), seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["vae2llm.weight"], other["vae2llm.weight"])
    assert torch.equal(one[HEAD], one["language_model.model.embed_tokens.weight"])


# ------------------------------------------------------------------------------------------------ what is also accepted


def test_missing_position_tables_are_recomputed(folder: Path) -> None:
    wanted = load_model(folder).model.state_dict()
    edit_weights(folder, lambda t: [t.pop("latent_pos_embed.pos_embed"), t.pop("vit_pos_embed.pos_embed")])
    loaded = load_model(folder, dtype=torch.bfloat16).model
    for key in ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"):
        assert torch.equal(loaded.state_dict()[key], wanted[key].to(torch.bfloat16))
    assert not loaded.latent_pos_embed.pos_embed.requires_grad


def test_conv_form_of_the_patch_embedding(folder: Path) -> None:
    wanted = load_model(folder).model.state_dict()[PATCH_EMBEDDING].clone()
    patch = small().vit.patch_size

    def to_conv(tensors: dict[str, torch.Tensor]) -> None:
        linear = tensors[PATCH_EMBEDDING]
        tensors[PATCH_EMBEDDING] = linear.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2).contiguous()

    edit_weights(folder, to_conv)
    assert torch.equal(load_model(folder).model.state_dict()[PATCH_EMBEDDING], wanted)


def test_a_head_of_its_own_unties(tmp_path: Path) -> None:
    write(tmp_path, tied(small()))
    edit_weights(tmp_path, lambda t: t.update({HEAD: t["language_model.model.embed_tokens.weight"] + 1}))
    loaded = load_model(tmp_path)
    assert not loaded.config.decoder.tie_word_embeddings
    head, embedding = loaded.model.language_model.lm_head.weight, loaded.model.language_model.model.embed_tokens.weight
    assert torch.equal(head, embedding + 1)


def test_informational_keys_are_ignored(folder: Path) -> None:
    edit_config(folder, lambda s: s.update(state_dict_shapes={"x": [1]}, dtype="float32", num_params=3))
    assert read_config(folder) == small()


def bagel_folder(folder: Path, config: ModelConfig) -> None:
    """Rewrite an irg folder in BAGEL's layout, sections that BAGEL does not have left in config.json."""
    sections = json.loads((folder / "config.json").read_text())
    llm, vit = sections.pop("llm_config"), sections.pop("vit_config")
    vit["num_hidden_layers"] += 1
    (folder / "llm_config.json").write_text(json.dumps(llm | {"architectures": ["Qwen2ForCausalLM"], "qk_norm": False}))
    (folder / "vit_config.json").write_text(json.dumps(vit | {"model_type": "siglip_vision_model"}))
    (folder / "config.json").write_text(json.dumps(sections))
    (folder / "weights.safetensors").rename(folder / "ema.safetensors")
    assert read_config(folder) == config


def test_bagel_layout(folder: Path) -> None:
    wanted = load_model(folder).model.state_dict()
    wanted = {key: value.clone() for key, value in wanted.items()}
    bagel_folder(folder, small())
    loaded = load_model(folder).model.state_dict()
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


def test_bagel_defaults(tmp_path: Path) -> None:
    llm = dataclasses.asdict(bagel_7b().decoder)
    vit = {
        "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    }  # fmt: skip
    (tmp_path / "llm_config.json").write_text(json.dumps(llm))
    (tmp_path / "vit_config.json").write_text(json.dumps(vit))
    assert read_config(tmp_path) == bagel_7b()


def test_special_ids_come_from_the_tokenizer_files(tmp_path: Path) -> None:
    assert special_ids(tmp_path) == [151644, 151645, 151652, 151653]
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    assert special_ids(tmp_path) == [3, 4, 5, 6], "after <|endoftext|>, which Qwen2's tokenizer adds to two files"
    added = {"7": {"content": "<|im_start|>"}, "9": {"content": "<|vision_start|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert special_ids(tmp_path) == [7, 11, 9, 12]


def test_sharded_weights(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    names = {key: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        save_file({key: tensors[key].clone() for key in tensors if names[key] == name}, folder / name)
    wanted = {key: value.clone() for key, value in tensors.items()}
    (folder / "weights.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    loaded = load_model(folder).model.state_dict()
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


def test_ema_or_model_is_an_option_and_the_autoencoder_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda t: t.update({"vae2llm.bias": t["vae2llm.bias"] + 1}))
    (folder / "weights.safetensors").rename(folder / "model.safetensors")
    write(tmp_path / "other", small())
    (tmp_path / "other" / "weights.safetensors").rename(folder / "ema.safetensors")
    (folder / "ae.safetensors").rename(tmp_path / "flux.safetensors")
    refused(folder, r"ae\.safetensors is missing")
    ae = tmp_path / "flux.safetensors"
    assert load_model(folder, autoencoder_file=ae).model.vae2llm.bias[0] == 0
    assert load_model(folder, weights="model", autoencoder_file=ae).model.vae2llm.bias[0] == 1


# ------------------------------------------------------------------------------------------------------ what is refused


def test_keys_and_shapes_are_named_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["vae2llm.bias"]
        tensors["stranger"] = torch.zeros(2)
        tensors["llm2vae.bias"] = torch.zeros(5)
        tensors["connector.fc1.bias"] = tensors["connector.fc1.bias"].to(torch.int8)
        for key in [key for key in tensors if ".layers.1." in key]:
            del tensors[key]

    edit_weights(folder, spoil)
    monkeypatch.setattr(
        "irg.model.weights.tensor_reader.TensorReader.read", lambda *_: pytest.fail("a tensor was read")
    )
    message = refused(folder, "does not fit the configuration")
    for part in (
        "missing: ",
        " more",
        "1 left over: stranger",
        "llm2vae.bias [5] instead of [16]",
        "connector.fc1.bias",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["weights.safetensors", "ae.safetensors"])
@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, name: str, keep: int) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:keep])
    assert name in refused(folder, "truncated|corrupt|not a safetensors")


def lying(header: Any, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(shape: Any = (2,), dtype: Any = "F32", offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        b"not safetensors at all, though longer than a header's length",
        struct.pack("<Q", 1 << 62) + b"{}",
        lying(b"{" * 100_000),
        lying(b"\xff\xfe{}"),
        lying([1, 2]),
        lying({"a": 3}),
        lying({"a": entry(dtype="F33")}, bytes(8)),
        lying({"a": entry(shape=[10**12, 10**12])}, bytes(8)),
        lying({"a": entry(shape=[-2, -1])}, bytes(8)),
        lying({"a": entry(shape=[2.0])}, bytes(8)),
        lying({"a": entry(shape=[2] * 1_000_000)}, bytes(8)),  # whose product takes minutes
        lying({"a": entry(shape="8")}, bytes(8)),
        lying({"a": entry(offsets=[0, 1 << 60])}, bytes(8)),
        lying({"a": entry(offsets=[8, 0])}, bytes(8)),
        lying({"a": entry(), "b": entry()}, bytes(8)),
        lying({"a": entry(offsets=[8, 16])}, bytes(16)),
        lying({"a": entry()}, bytes(9)),
    ],
)
def test_corrupt_headers(folder: Path, data: bytes) -> None:
    (folder / "weights.safetensors").write_bytes(data)
    refused(folder, r"weights\.safetensors")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:46\nsize 29214685368\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "is a pickle under another name"),
        (b"\x80\x04\x95" + bytes(100), "is a pickle under another name"),
        (b"<!doctype html><title>Sign in</title>", "is a web page"),
    ],
)
def test_what_lies_under_the_name_instead_is_told(folder: Path, data: bytes, told: str) -> None:
    (folder / "ae.safetensors").write_bytes(data)
    refused(folder, rf"ae\.safetensors {told}" if told.startswith("is") else told)


def test_a_link_to_nowhere_is_told(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to("../blobs/gone")
    refused(folder, r"is a link to a file that is not there \(\.\./blobs/gone\)")


def test_long_keys_are_shortened(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors") | {"k" * 100_000: torch.zeros(1)}
    save_file(tensors, folder / "weights.safetensors")
    assert len(refused(folder, "1 left over: kkk")) < 1000


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "a\\..\\b.safetensors", "", 3, "x.bin"])
def test_index_entries_stay_inside_the_folder(folder: Path, target: Any) -> None:
    (folder / "weights.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"vae2llm.bias": target}}))
    refused(folder, "is not a")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": "gone.safetensors"}}])
def test_broken_index(folder: Path, index: Any) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "missing")


def test_index_that_promises_a_key_its_shard_lacks(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"ghost": "part.safetensors"}}))
    refused(folder, "does not hold ghost")


def test_a_pickle_is_refused_with_advice(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "weights_only=True" in refused(folder, r"pytorch_model\.bin is a pickle")


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(folder / "config.json", "it is a file")
    (folder / "weights.safetensors").unlink()
    refused(folder, "has no weights")
    (folder / "config.json").unlink()
    refused(folder, "neither config.json nor llm_config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000, "null"])
def test_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder, "JSON|nested")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("llm_config", "num_hidden_layers", 10**9),
        ("llm_config", "hidden_size", 10**12),
        ("llm_config", "hidden_size", 30),
        ("llm_config", "vocab_size", -1),
        ("llm_config", "vocab_size", 299),  # a special id is outside
        ("llm_config", "rope_theta", float("nan")),
        ("llm_config", "rope_theta", "big"),
        ("llm_config", "num_attention_heads", True),
        ("llm_config", "rope_scaling", {"type": "yarn"}),
        ("llm_config", "hidden_act", "gelu"),
        ("llm_config", "head_dim", 64),
        ("vit_config", "num_hidden_layers", 10**9),
        ("vit_config", "num_attention_heads", 5),
        ("vit_config", "rope", True),
        ("vit_config", "image_size", 28),
        ("vae_config", "kind", "vq"),
        ("vae_config", "kind", ["flux"]),
        ("vae_config", "decoder_depths", [65, 1, 1]),
        ("vae_config", "encoder_widths", [8] * 100_000),
        ("vae_config", "encoder_depths", [10**9, 1]),
        ("vae_config", "z_channels", [4]),
        ("bagel_config", "max_latent_size", 10**7),
        ("bagel_config", "latent_patch_size", 0),
        ("bagel_config", "interpolate_pos", True),
        ("bagel_config", "prediction", "noise"),
        ("special_token_ids", "bos_token_id", 297),  # that of eos
        ("special_token_ids", "bos_token_id", None),
        ("vae_image_transform", "image_stride", 0),
        ("vae_image_transform", "max_pixels", 0),
        ("vit_image_transform", "image_stride", 15),
    ],
)
def test_absurd_configurations(folder: Path, section: str, key: str, value: Any) -> None:
    edit_config(folder, lambda s: s[section].update({key: value}))
    assert "config.json" in refused(
        folder, "special token ids" if value == 297 else key.removeprefix("image_").removesuffix("_token_id")
    )


@pytest.mark.parametrize("section", ["llm_config", "vit_config", "special_token_ids"])
def test_missing_sections(folder: Path, section: str) -> None:
    edit_config(folder, lambda s: s.pop(section))
    refused(folder, section)


@pytest.mark.parametrize("config", [small(), mini(), dataclasses.replace(bagel_7b(), autoencoder=FLUX)])
def test_sections_are_json(config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_sections(config)))
    assert read_config(tmp_path) == config


def test_headers_agree_with_the_library(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    header = read_header(folder / "weights.safetensors")
    assert {key: (e.shape, e.dtype) for key, e in header.items()} == {
        key: (tuple(t.shape), t.dtype) for key, t in tensors.items()
    }


# ------------------------------------------------------------------------------------------------------- the real model


@pytest.mark.shared
def test_the_7b_model_has_the_published_keys_and_shapes(golden: Path) -> None:
    path = golden / "bagel7b_manifest.json"
    if not path.is_file():
        pytest.skip("this golden folder has no bagel7b_manifest.json")
    manifest = json.loads(path.read_text())
    with torch.device("meta"):
        model, autoencoder = UnifiedModel(bagel_7b()), FluxAutoencoder(FluxConfig())
    for module, wanted in ((model, manifest["bagel"]), (autoencoder, manifest["ae"])):
        assert {key: list(value.shape) for key, value in module.state_dict().items()} == wanted
    counts = manifest["counts"]
    assert sum(p.numel() for p in model.parameters()) == counts["bagel_params"]
    assert sum(p.numel() for p in autoencoder.parameters()) == counts["ae_params"]


def test_config_classes_are_covered() -> None:
    """A new field of ModelConfig must be a plain option, or learn to be read and written."""
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    sections = to_sections(small())
    assert names - set(sections["bagel_config"]) == {
        "decoder", "vit", "autoencoder", "special", "vae_resize", "vit_resize",
    }  # fmt: skip
    assert set(sections["llm_config"]) == {field.name for field in dataclasses.fields(DecoderConfig)}
    assert set(sections["vit_config"]) == {field.name for field in dataclasses.fields(VitConfig)}


# ----------------------------------------------------------------------------------------------- before memory is taken


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("llm_config", "num_hidden_layers", 10**9),
        ("llm_config", "num_hidden_layers", 999),
        ("llm_config", "vocab_size", 10**12),
        ("llm_config", "vocab_size", 1 << 24),
        ("llm_config", "intermediate_size", 1 << 24),
        ("llm_config", "hidden_size", -4),
        ("vit_config", "image_size", 1 << 24),
        ("bagel_config", "max_latent_size", 4096),
    ],
)
def test_absurd_sizes_cost_no_memory(
    folder: Path, section: str, key: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the configuration or by the file's headers, with no tensor of any size made on the way."""
    edit_config(folder, lambda s: s[section].update({key: value}))
    made: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made.extend(t.nbytes for t in [out] if isinstance(t, torch.Tensor) and not t.is_meta)
            return out

    with Watch(), pytest.raises(ValueError, match=str(folder)):
        load_model(folder)
    assert sum(made) < 1_000_000


@pytest.mark.parametrize("section", ["llm_config", "vit_config"])
def test_many_layers_are_not_even_built_empty(folder: Path, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(folder, lambda s: s[section].update(num_hidden_layers=999))
    monkeypatch.setattr("irg.model.weights.checkpoint.UnifiedModel", lambda _: pytest.fail("built"))
    refused(folder, rf"num_hidden_layers is 999, the file has {2 if section == 'llm_config' else 1}")


def test_a_truncated_shard_is_named(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    names = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        save_file({key: tensors[key].clone() for key in tensors if names[key] == name}, folder / name)
    (folder / "weights.safetensors").unlink()
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    load_model(folder)
    whole = (folder / "part-1.safetensors").read_bytes()
    (folder / "part-1.safetensors").write_bytes(whole[:-1])
    assert "part-1.safetensors" in refused(folder, "truncated")


def test_a_file_that_shrinks_while_it_is_read(folder: Path) -> None:
    """Between the check of the header and the reading of the data."""
    entry = read_header(folder / "weights.safetensors")[HEAD]
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[: entry.start + 5])
    with pytest.raises(ValueError, match="became shorter"):
        TensorReader().read(entry, torch.float64)


def test_tensors_larger_than_a_piece_are_converted_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {key: value.double() for key, value in load_model(folder).model.state_dict().items()}
    monkeypatch.setattr("irg.model.weights.tensor_reader.PIECE_BYTES", 100)
    got = load_model(folder, dtype=torch.float64).model.state_dict()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """Zeros in a file with a hole, twice as large as memory and swap; a change stays out of the file."""
    total = sum(int(re.search(rf"{name}: +([0-9]+)", Path("/proc/meminfo").read_text())[1]) for name in MEMORY)  # type: ignore[index]
    numbers = 1024 * total
    path = tmp_path / "large.safetensors"
    header = lying({"x": {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * numbers)
    entry = read_header(path)["x"]
    if entry.start % 2:
        pytest.fail("the tensor is not aligned, so it is not mapped")
    tensor = TensorReader().read(entry)
    tensor[-1] = 1
    assert tensor[-2:].tolist() == [0, 1] and TensorReader().read(entry)[-1] == 0


def test_a_system_that_refuses_to_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.model.weights.tensor_reader.MAP_FROM_BYTES", 1)
    wanted = load_model(folder, dtype=None).model.state_dict()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    got = load_model(folder, dtype=None).model.state_dict()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_links_out_of_the_folder_are_fine(folder: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where a snapshot's files are links to blobs elsewhere."""
    (tmp_path / "blobs").mkdir()
    for path in list(folder.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    load_model(folder)
