"""Model folders into others: the way there and back, dtypes, shards, adapters; nothing half-written."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from irg.model.network.config import bagel_7b, mini, tiny
from irg.model.weights.checkpoint import LoadedModel, check_folder, load_model, save_model
from irg.model.weights.config_files import bagel_sections, is_bagel_layout, read_config
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.initialize import narrower, write_folder
from irg.model.weights.shards import Planned, write_weights

PATCH_EMBEDDING = "vit_model.vision_model.embeddings.patch_embedding.weight"
PROJECTION = "language_model.model.layers.1.self_attn.q_proj"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def ours(tmp_path: Path, tiny_loaded: LoadedModel) -> Path:
    folder = tmp_path / "ours"
    save_model(folder, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    (folder / "tokenizer.json").write_text('{"x": 1}')
    (folder / "irg.json").write_text("{}")
    (folder / "README.md").write_text("card")
    (folder / "optimizer.pt").write_bytes(b"\x80")
    return folder


@pytest.fixture
def bagel(ours: Path, tmp_path: Path) -> Path:
    """As published: Hugging Face's keys, the conv form of the patch embedding, plain weights beside the averaged."""
    folder = tmp_path / "bagel"
    convert(ours, folder, Conversion(layout="bagel"))
    llm = json.loads((folder / "llm_config.json").read_text())
    (folder / "llm_config.json").write_text(json.dumps(llm | {"transformers_version": "4.49.0", "use_cache": True}))
    patch = read_config(folder).vit.patch_size
    tensors = load_file(folder / "ema.safetensors")
    conv = tensors[PATCH_EMBEDDING].unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2).contiguous()
    save_file(tensors | {PATCH_EMBEDDING: conv}, folder / "ema.safetensors", metadata={"format": "pt"})
    save_file({k: v + 1 for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


# ------------------------------------------------------------------------------------------------------- there and back


def test_ours_to_bagel_and_back_is_bit_identical(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "b", Conversion(layout="bagel"))
    assert is_bagel_layout(tmp_path / "b") and (tmp_path / "b/ema.safetensors").is_file()
    convert(tmp_path / "b", tmp_path / "c", Conversion(layout="irg"))
    before, after = contents(ours), contents(tmp_path / "c")
    config, again = json.loads(before.pop("config.json")), json.loads(after.pop("config.json"))
    assert again.pop("bagel_files") and again == config
    assert before.pop("optimizer.pt") and before == after


def test_bagel_to_ours_and_back_is_bit_identical(bagel: Path, tmp_path: Path) -> None:
    """Configuration files with foreign keys and the conv form included; of two sets of weights the one asked for."""
    convert(bagel, tmp_path / "a", Conversion(layout="irg"))
    assert not is_bagel_layout(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", Conversion(layout="bagel"))
    wanted = contents(bagel)
    del wanted["model.safetensors"]
    assert contents(tmp_path / "b") == wanted


def test_an_edited_configuration_wins_over_the_kept_one(bagel: Path, tmp_path: Path) -> None:
    convert(bagel, tmp_path / "a", Conversion(layout="irg"))
    path = tmp_path / "a" / "config.json"
    sections = json.loads(path.read_text())
    sections["llm_config"]["rope_theta"] = 5.0
    path.write_text(json.dumps(sections))
    convert(tmp_path / "a", tmp_path / "b", Conversion(layout="bagel"))
    assert read_config(tmp_path / "b").decoder.rope_theta == 5.0


def test_the_plain_weights_are_an_option(bagel: Path, tmp_path: Path) -> None:
    convert(bagel, tmp_path / "a", Conversion(weights="model"))
    assert (tmp_path / "a/model.safetensors").is_file() and not (tmp_path / "a/ema.safetensors").exists()
    plain, averaged = load_model(tmp_path / "a").model, load_model(bagel).model
    assert torch.equal(plain.vae2llm.bias, averaged.vae2llm.bias + 1)


@pytest.mark.parametrize("config", [tiny(), mini(), bagel_7b()], ids=["tiny", "mini", "bagel_7b"])
def test_bagel_configuration_files_say_everything(config: Any, tmp_path: Path) -> None:
    for name, sections in bagel_sections(config).items():
        (tmp_path / name).write_text(json.dumps(sections))
    assert read_config(tmp_path) == config


# -------------------------------------------------------------------------------------------------- dtype and shards


def test_shards_hold_the_same_tensors(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "s", Conversion(shard_bytes=60_000))
    index = json.loads((tmp_path / "s/weights.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3 and "weights-00001-of-" in min(files)
    sizes = {name: sum(t.nbytes for t in load_file(tmp_path / "s" / name).values()) for name in files}
    assert all(size <= 60_000 or len(load_file(tmp_path / "s" / name)) == 1 for name, size in sizes.items())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    one, many = (load_model(folder, dtype=None).model.state_dict() for folder in (ours, tmp_path / "s"))
    assert all(torch.equal(one[key], many[key]) for key in one)
    convert(tmp_path / "s", tmp_path / "whole", Conversion())
    assert (tmp_path / "whole/weights.safetensors").read_bytes() == (ours / "weights.safetensors").read_bytes()


def test_dtype_is_that_of_all_weights(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "f", Conversion(dtype=torch.float32))
    checked = check_folder(tmp_path / "f")
    assert {e.dtype for e in (*checked.entries.values(), *checked.autoencoder_entries.values())} == {torch.float32}
    one, two = (load_model(folder, dtype=None).model.state_dict() for folder in (ours, tmp_path / "f"))
    assert all(torch.equal(one[key].float(), two[key]) for key in one)


def test_files_are_those_the_library_writes(tmp_path: Path) -> None:
    """Byte for byte: header, order of dtypes and names, alignment."""
    tensors = {"b": torch.arange(6.0).view(2, 3), "ä": torch.zeros(2, 0), "d": torch.tensor(3.0)}
    tensors |= {"a": torch.ones(3).bfloat16(), "c": torch.ones(5, dtype=torch.int8), "e": torch.ones(2).double()}
    planned = [Planned(k, tuple(t.shape), t.dtype, lambda t=t: t) for k, t in tensors.items()]  # type: ignore[misc]
    write_weights(tmp_path, "ours", planned)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------------------ adapters


def adapter(folder: Path, rank: int = 2, **changes: torch.Tensor) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rank, 32, generator=generator), torch.randn(32, rank, generator=generator)
    save_file({f"{PROJECTION}.lora_A": a, f"{PROJECTION}.lora_B": b} | changes, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(json.dumps({"r": rank, "alpha": 3.0, "targets": ["q_proj"]}))
    return folder


def test_an_adapter_is_added_in_float32(ours: Path, tmp_path: Path) -> None:
    """W + alpha / r * B A, rounded once."""
    lora = adapter(tmp_path / "lora")
    convert(ours, tmp_path / "out", Conversion(lora=(lora,)))
    pair = load_file(lora / "adapter.safetensors")
    before, after = load_file(ours / "weights.safetensors"), load_file(tmp_path / "out/weights.safetensors")
    change = 1.5 * (pair[f"{PROJECTION}.lora_B"] @ pair[f"{PROJECTION}.lora_A"])
    wanted = (before[f"{PROJECTION}.weight"].float() + change).to(torch.bfloat16)
    assert torch.equal(after.pop(f"{PROJECTION}.weight"), wanted)
    assert all(torch.equal(after[key], before[key]) for key in after)


def peft(folder: Path, ours: Path, **settings: Any) -> Path:
    """The same adapter as the peft library saves it."""
    folder.mkdir()
    tensors = {f"base_model.model.{key}.weight": t for key, t in load_file(ours / "adapter.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(known | settings))
    return folder


def test_an_adapter_of_peft_is_the_same(ours: Path, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora")
    rooted = {"use_rslora": True, "lora_alpha": 3 / 2**0.5}
    for name, folder in (
        ("one", lora),
        ("two", peft(tmp_path / "p", lora)),
        ("three", peft(tmp_path / "q", lora, **rooted)),
    ):
        convert(ours, tmp_path / name, Conversion(lora=(folder,)))
    one, two, three = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.allclose(one[f"{PROJECTION}.weight"], three[f"{PROJECTION}.weight"], rtol=0.01)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank_pattern": {"q_proj": 8}}, "is of rank 2, the settings say 8"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed the base's weights too"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "changed the base's weights too"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA acts behind its invocation tokens"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["weight"]}, "target_parameters"),
        ({"r": None}, "r must be"),
        ({"lora_alpha": "x"}, "alpha must be"),
    ],
)
def test_adapters_of_peft_that_mean_more_are_refused(
    ours: Path, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        convert(ours, tmp_path / "o", Conversion(lora=(peft(tmp_path / "p", adapter(tmp_path / "lora"), **settings),)))


def test_an_adapter_is_merged_before_quantizing(ours: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    lora = adapter(tmp_path / "lora")
    convert(ours, tmp_path / "two", Conversion(lora=(lora,), dtype=torch.float32))
    convert(tmp_path / "two", tmp_path / "three", Conversion(quantize="int8"))
    convert(ours, tmp_path / "one", Conversion(lora=(lora,), quantize="int8"))
    one, three = (load_model(tmp_path / name).model.state_dict() for name in ("one", "three"))
    assert torch.equal(one[f"{PROJECTION}.qdata"], three[f"{PROJECTION}.qdata"])
    with pytest.raises(ValueError, match="quantized to int8, so no adapter can be merged"):
        convert(tmp_path / "one", tmp_path / "four", Conversion(lora=(lora,)))


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"nowhere.lora_A": torch.zeros(2, 32), "nowhere.lora_B": torch.zeros(32, 2)}, {}, "no linear layer nowhere"),
        ({f"{PROJECTION}.lora_A": torch.zeros(3, 32)}, {}, "is of rank 3, the settings say 2"),
        ({f"{PROJECTION}.lora_A": torch.zeros(2, 31)}, {}, r"lora_A \[2, 31\]"),
        ({f"{PROJECTION}.lora_B": torch.zeros(32, 2)}, {}, "changes nothing"),
        ({f"{PROJECTION}.lora_B": torch.full((32, 2), torch.nan)}, {}, "has NaN or infinite numbers"),
        ({f"{PROJECTION}.lora_A": torch.full((2, 32), torch.inf)}, {}, "has NaN or infinite numbers"),
        ({}, {"alpha": 0}, "changes nothing"),
        ({f"{PROJECTION}.other": torch.zeros(3)}, {}, "not one of a pair"),
        ({"x.lora_A": torch.zeros(2, 32)}, {}, "not one of a pair"),
        ({}, {"r": 0}, "r must be"),
        ({}, {"r": 4}, "the settings say 4"),
        ({}, {"alpha": "big"}, "alpha must be"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    ours: Path, tmp_path: Path, changes: dict[str, torch.Tensor], settings: dict[str, Any], told: str
) -> None:
    lora = adapter(tmp_path / "lora", **changes)
    (lora / "adapter.json").write_text(json.dumps({"r": 2, "alpha": 3.0} | settings))
    with pytest.raises(ValueError, match=told):
        convert(ours, tmp_path / "out", Conversion(lora=(lora,)))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- nothing half-written


def test_a_failed_conversion_leaves_nothing(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(
        "irg.model.weights.convert._write_configs", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        convert(ours, tmp_path / "out", Conversion())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


KILLED = """
import os, sys
from pathlib import Path
from irg.model.weights.convert import Conversion, convert
tensors = []
def wrote(size):
    tensors.append(size)
    if len(tensors) == 40:
        os.kill(os.getpid(), 9)
convert(Path(sys.argv[1]), Path(sys.argv[2]), Conversion(shard_bytes=20_000), overwrite=True, wrote=wrote)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs locks that end with their process")
def test_a_killed_conversion_leaves_what_was_there(ours: Path, tmp_path: Path) -> None:
    """And the next one leaves what an undisturbed one does, and no temporary folder."""
    convert(ours, tmp_path / "out", Conversion(dtype=torch.float32))
    before = contents(tmp_path / "out")
    assert subprocess.run([sys.executable, "-c", KILLED, str(ours), str(tmp_path / "out")]).returncode == -9
    assert contents(tmp_path / "out") == before
    (half,) = tmp_path.glob(".tmp-*-out")
    assert len([*half.glob("*.safetensors")]) > 1, "killed in the midst of the shards"
    for place in ("out", "undisturbed"):
        convert(ours, tmp_path / place, Conversion(shard_bytes=20_000), overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out", "undisturbed"]


def test_what_is_there_is_replaced_only_when_asked(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "out", Conversion(dtype=torch.float32))
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="is there already"):
        convert(ours, tmp_path / "out", Conversion())
    assert contents(tmp_path / "out") == before
    convert(ours, tmp_path / "out", Conversion(), overwrite=True)
    assert contents(tmp_path / "out") != before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(ValueError, match="not a model folder, so it is not replaced"):
        convert(ours, tmp_path / "letters", Conversion(), overwrite=True)
    (tmp_path / "letters" / "config.json").write_text('{"editor": "vim"}')
    with pytest.raises(ValueError, match="not a model folder, so it is not replaced"):
        convert(ours, tmp_path / "letters", Conversion(), overwrite=True)
    convert(ours, ours, Conversion(), overwrite=True)
    assert load_model(ours)


def test_numbers_that_float16_cannot_hold_are_refused(ours: Path, tmp_path: Path) -> None:
    tensors = load_file(ours / "weights.safetensors")
    tensors["vae2llm.bias"][0] = 1e6
    save_file(tensors, ours / "weights.safetensors")
    with pytest.raises(ValueError, match=r"vae2llm\.bias has numbers that float16 can't hold"):
        convert(ours, tmp_path / "out", Conversion(dtype=torch.float16))


def test_progress_counts_every_byte(ours: Path, tmp_path: Path) -> None:
    totals, done = list[int](), list[int]()
    convert(ours, tmp_path / "out", Conversion(), started=totals.append, wrote=done.append)
    assert totals == [sum(done)] and len(done) > 50


# ------------------------------------------------------------------------------------------------------- random folders


def test_random_folders_follow_from_the_seed(tmp_path: Path) -> None:
    config = narrower(bagel_7b(), 16)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_hidden_layers=1))
    config = dataclasses.replace(config, vit=dataclasses.replace(config.vit, num_hidden_layers=1))
    for name, seed, shards in (("a", 1, None), ("b", 1, 100_000), ("c", 2, None)):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, config, seed=seed, shard_bytes=shards)
    a, b, c = (load_model(tmp_path / name, dtype=None) for name in "abc")
    assert a.config == config == b.config
    states = [loaded.model.state_dict() for loaded in (a, b, c)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["vae2llm.weight"], states[2]["vae2llm.weight"])
    weight = states[0]["language_model.model.layers.0.mlp.gate_proj.weight"].float()
    assert weight.std() == pytest.approx(1 / 224**0.5, rel=0.03)


def test_narrower_keeps_the_shape_of_the_network() -> None:
    config = narrower(bagel_7b(), 16)
    decoder = config.decoder
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers) == (224, 1184, 28)
    assert (decoder.num_attention_heads, decoder.head_dim, decoder.vocab_size) == (28, 8, 9504)
    assert narrower(config, 1) == config
    with pytest.raises(ValueError, match="can't be divided by 5"):
        narrower(bagel_7b(), 5)
