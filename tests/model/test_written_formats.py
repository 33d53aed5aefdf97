"""Weights written as other programs have them, and files of weights alone: the way there and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weight_formats import LAYERS, projections, weights_of, write_dfloat11

from irg.cli.main import main
from irg.model.network.config import tiny
from irg.model.network.lora import LoraConfig
from irg.model.weights.adapter_files import save_adapter
from irg.model.weights.checkpoint import check_folder, load_model
from irg.model.weights.convert import Conversion, WeightFormat, convert
from irg.model.weights.formats import comfyui
from irg.model.weights.initialize import write_folder

QUERY = f"{LAYERS}1.self_attn.q_proj"
QUICK = ["--mode", "direct", "--num-timesteps", "2", "--size", "32", "--quiet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model in BAGEL's layout, bfloat16."""
    path = tmp_path / "model"
    path.mkdir()
    write_folder(path, tiny(), "bagel", 0, torch.bfloat16)
    return path


def test_fp8_is_written_as_comfyui_has_it(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", Conversion(format="fp8"))
    before, after = weights_of(folder), weights_of(tmp_path / "out")
    assert after["scaled_fp8"].dtype == torch.float8_e4m3fn and after["scaled_fp8"].numel() == 0
    names = projections(before)
    assert after.keys() == before.keys() | {"scaled_fp8"} | {f"{name}.scale_weight" for name in names}
    for name in names:
        weight, scale = after[f"{name}.weight"], after[f"{name}.scale_weight"]
        assert (weight.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, ())
        assert weight.float().abs().max() == 448  # the whole range is used
        wanted = before[f"{name}.weight"].float()
        # e4m3 has three bits of mantissa: half a step is 1/16 of a number, and 2^-10 times the scale at the smallest
        assert ((weight.float() * scale - wanted).abs() <= wanted.abs() / 16 + scale / 1024).all()
    assert all(torch.equal(after[key], before[key]) for key in before if key.removesuffix(".weight") not in names)
    assert check_folder(tmp_path / "out").weight_format == "scaled fp8"


def test_fp8_of_a_weight_of_zeros(folder: Path, tmp_path: Path) -> None:
    tensors = weights_of(folder)
    tensors[f"{QUERY}.weight"].zero_()
    save_file(tensors, folder / "ema.safetensors")
    convert(folder, tmp_path / "out", Conversion(format="fp8"))
    assert load_model(tmp_path / "out").model.get_parameter(f"{QUERY}.weight").abs().max() == 0


def test_gguf_is_written_and_read_back(folder: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    convert(folder, tmp_path / "out", Conversion(format="gguf", layout="irg"))
    before = weights_of(folder)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out/weights.gguf").tensors}
    assert read.keys() == before.keys()
    assert {read[f"{name}.weight"].tensor_type.name for name in projections(before)} == {"Q8_0"}
    checked = check_folder(tmp_path / "out")
    assert checked.weight_format == "GGUF Q8_0"
    after = load_model(checked).model.state_dict()
    for name in projections(before):
        wanted = before[f"{name}.weight"].float()
        step = wanted.view(len(wanted), -1, 32).abs().amax(-1, keepdim=True) / 127  # of a block of 32
        difference = (after[f"{name}.weight"] - wanted).view(len(wanted), -1, 32).abs()
        assert (difference <= 0.57 * step).all()  # half a step, and the scale is a float16


@pytest.mark.parametrize("written", ["fp8", "gguf", "comfyui"])
def test_plain_fp8_becomes_each_format(folder: Path, tmp_path: Path, written: WeightFormat) -> None:
    """No other format has float8 without a scale."""
    if written == "gguf":
        pytest.importorskip("gguf")
    tensors = {key: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for key, t in weights_of(folder).items()}
    save_file(tensors, folder / "ema.safetensors")
    convert(folder, tmp_path / "out", Conversion(format=written))
    made = load_model(tmp_path / "out").model.state_dict()
    assert torch.equal(made["vae2llm.weight"], tensors["vae2llm.weight"].float())
    assert torch.allclose(made[f"{QUERY}.weight"], tensors[f"{QUERY}.weight"].float(), rtol=2**-4, atol=2**-9)


@pytest.mark.parametrize("written", [None, "fp8"])
def test_adapters_are_merged_into_decoded_weights(folder: Path, tmp_path: Path, written: WeightFormat | None) -> None:
    convert(folder, tmp_path / "fp8", Conversion(format="fp8"))
    outputs, inputs = weights_of(folder)[f"{QUERY}.weight"].shape
    pair = {f"{QUERY}.lora_A": torch.ones(1, inputs), f"{QUERY}.lora_B": torch.ones(outputs, 1)}
    save_adapter(tmp_path / "adapter", LoraConfig(1, 1.0, ("q_proj",)), pair)
    convert(tmp_path / "fp8", tmp_path / "out", Conversion(lora=(tmp_path / "adapter",), format=written))
    before, after = (load_model(tmp_path / name).model.get_parameter(f"{QUERY}.weight") for name in ("fp8", "out"))
    rounding = 2**-8 if written is None else 2**-4
    assert torch.allclose(after, before + 1, rtol=rounding, atol=2**-9)


def test_comfyuis_file_describes_itself(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", Conversion(format="comfyui"))
    with safe_open(tmp_path / "out/bagel.safetensors", "pt") as file:
        said = json.loads(file.metadata()["comfyui_bagel"])
        assert set(file.keys()) == weights_of(folder).keys()
    assert (said["format"], said["format_version"], said["dtype"]) == ("comfyui_bagel", 1, "bf16")
    assert said["model_configs"]["llm_config.json"] == json.loads((folder / "llm_config.json").read_text())
    assert check_folder(tmp_path / "out").weight_format == "ComfyUI-BAGEL file"


@pytest.mark.parametrize("written", ["fp8", "gguf", "comfyui"])
def test_a_folder_in_each_format_draws(folder: Path, tmp_path: Path, written: WeightFormat, capsys: Any) -> None:
    if written == "gguf":
        pytest.importorskip("gguf")
    out = tmp_path / "out"
    assert main(["model", "convert", str(folder), str(out), "--format", written]) == 0
    assert main(["generate", "a cat", "--model", str(out), "--out", str(tmp_path / "images"), *QUICK]) == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 1
    capsys.readouterr()
    assert main(["model", "info", str(out), "--json"]) == 0
    names = {"fp8": "scaled fp8", "gguf": "GGUF Q8_0", "comfyui": "ComfyUI-BAGEL file"}
    assert json.loads(capsys.readouterr().out)["weight_format"] == names[written]


def test_dfloat11_draws_what_its_original_draws(folder: Path, tmp_path: Path) -> None:
    for name in ("before", "after"):
        assert main(["generate", "a cat", "--model", str(folder), "--out", str(tmp_path / name), *QUICK]) == 0
        write_dfloat11(folder) if name == "before" else None
    before, after = (Image.open(next((tmp_path / name).rglob("*.png"))) for name in ("before", "after"))
    assert before.tobytes() == after.tobytes()
    loaded = [json.loads(image.text["irg"])["loaded"] for image in (before, after)]  # type: ignore[attr-defined]
    assert loaded[0]["fingerprint"] != loaded[1]["fingerprint"]  # of the files, which differ


# ---------------------------------------------------------------------------------------------- files of weights alone


@pytest.mark.parametrize("written", ["fp8", "gguf", "comfyui"])
def test_a_file_alone_gets_all_else_from_its_base(
    folder: Path, tmp_path: Path, written: WeightFormat, capsys: Any
) -> None:
    if written == "gguf":
        pytest.importorskip("gguf")
    convert(folder, tmp_path / "whole", Conversion(format=written))
    file = next(path for path in (tmp_path / "whole").iterdir() if path.stem in ("ema", "bagel"))
    alone = tmp_path / "downloads" / f"bagel-7b{file.suffix}"
    alone.parent.mkdir()
    shutil.move(file, alone)
    (alone.parent / "config.json").write_text("{}")  # of something else
    out = tmp_path / "out"
    assert main(["model", "convert", str(alone), str(out), "--base", str(folder)]) == 0
    said = capsys.readouterr()
    assert f"From {alone}: " in said.out + said.err
    assert {"ema.safetensors", "llm_config.json", "vit_config.json", "tokenizer.json", "ae.safetensors"} <= {
        path.name for path in out.iterdir()
    }
    shutil.move(alone, file)
    wanted, made = load_model(tmp_path / "whole").model.state_dict(), load_model(out).model.state_dict()
    close = {"fp8": 2**-8, "gguf": 2**-8, "comfyui": 0}[written]  # stored anew as bfloat16
    assert all(torch.allclose(made[key], wanted[key], rtol=close, atol=0) for key in wanted)


def test_the_configuration_in_a_comfyui_file_wins_over_the_bases(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "whole", Conversion(format="comfyui"))
    path = folder / "llm_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 7.0}))
    convert(tmp_path / "whole/bagel.safetensors", tmp_path / "out", Conversion(base=folder))
    assert json.loads((tmp_path / "out/llm_config.json").read_text())["rope_theta"] == tiny().decoder.rope_theta
    assert not (tmp_path / "out/bagel.safetensors").exists() and (tmp_path / "out/ema.safetensors").is_file()


def test_a_file_alone_is_refused_with_the_command(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = str(folder / "ema.safetensors")
    assert main(["generate", "cat", "--model", file]) == 2
    assert f"irg model convert {file} OUT --base BASE" in capsys.readouterr().err
    assert main(["model", "convert", file, str(tmp_path / "out")]) == 2
    assert "is weights alone: say with --base which model has all else" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, said", [("[", "is not a JSON object"), ('{"format_version": 2}', "has format_version 2, only 1 is read")]
)
def test_damaged_descriptions_are_refused(folder: Path, text: str, said: str) -> None:
    save_file(weights_of(folder), folder / "ema.safetensors", metadata={comfyui.KEY: text})
    with pytest.raises(ValueError, match=r"ema\.safetensors") as error:
        check_folder(folder)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "conversion, said",
    [
        (Conversion(format="fp8", quantize="int4"), "as fp8 or quantized to int4, not both"),
        (Conversion(format="gguf", shard_bytes=1000), "weights as gguf are one file: leave the shard size out"),
        (Conversion(format="comfyui", layout="irg"), "ComfyUI-BAGEL has BAGEL's layout"),
    ],
)
def test_options_that_do_not_go_together(folder: Path, tmp_path: Path, conversion: Conversion, said: str) -> None:
    with pytest.raises(ValueError, match=r"fp8|gguf|ComfyUI") as error:
        convert(folder, tmp_path / "out", conversion)
    assert said in str(error.value) and not (tmp_path / "out").exists()


def test_settings_of_a_format_do_not_outlive_it(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_dfloat11(folder)
    convert(folder, tmp_path / "out", Conversion())
    assert json.loads((tmp_path / "out/config.json").read_text()) == config
    assert load_file(tmp_path / "out/ema.safetensors").keys() == check_folder(tmp_path / "out").entries.keys()
