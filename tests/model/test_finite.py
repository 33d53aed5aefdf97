"""Weights with NaN or infinite numbers: told by info, refused by convert, an error instead of a black image."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from irg.cli.main import main
from irg.model.weights import finite
from irg.model.weights.checkpoint import LoadedModel, save_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.manifest import read_header
from irg.model.weights.tokenizer import TextTokenizer

LAYER = "language_model.model.layers.0.mlp_moe_gen.down_proj.weight"
TEXT = "language_model.model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Path:
    save_model(tmp_path / "m", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    tiny_tokenizer.tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    return tmp_path / "m"


def spoil(folder: Path, key: str, value: float, name: str = "weights") -> None:
    """One number of a tensor, in its middle."""
    tensors = {k: t.clone() for k, t in load_file(folder / f"{name}.safetensors").items()}
    flat = tensors[key].view(-1)
    flat[len(flat) // 2] = value
    save_file(tensors, folder / f"{name}.safetensors")


def test_info_tells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info", str(folder)]) == 0
    assert "\nnumbers: finite\n" in capsys.readouterr().out
    spoil(folder, LAYER, torch.inf)
    assert main(["model", "info", str(folder)]) == 0
    assert f"\nnumbers: NOT FINITE (NaN or infinite) in {LAYER}\n" in capsys.readouterr().out
    assert main(["model", "info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["not_finite"] == [LAYER] and facts["all_numbers_checked"]


def test_large_weights_are_looked_at_in_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "WHOLE_BYTES", 100)
    monkeypatch.setattr(finite, "SAMPLE_BYTES", 8)
    spoil(folder, LAYER, torch.nan)
    assert finite.not_finite(read_header(folder / "weights.safetensors")) == ([], False)
    spoil(folder, "vae2llm.bias", torch.nan)
    monkeypatch.setattr(finite, "SAMPLE_BYTES", 64)  # all of a bias
    assert finite.not_finite(read_header(folder / "weights.safetensors")) == (["vae2llm.bias"], False)


@pytest.mark.parametrize("how", [{}, {"dtype": torch.float32}, {"dtype": torch.float16}, {"quantize": "int8"}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_convert_refuses(folder: Path, tmp_path: Path, how: dict[str, object], value: float) -> None:
    if "quantize" in how:
        pytest.importorskip("torchao")
    spoil(folder, LAYER, value)
    with pytest.raises(ValueError, match=f"{LAYER} has "):
        convert(folder, tmp_path / "out", Conversion(**how))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "key", "mode"),
    [("weights", LAYER, "direct"), ("weights", TEXT, "think"), ("ae", "decoder.out.bias", "direct")],
)
def test_no_black_image(
    folder: Path, tmp_path: Path, file: str, key: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if file == "ae":
        key = next(k for k in load_file(folder / "ae.safetensors") if k.startswith("decoder") and k.endswith("bias"))
    spoil(folder, key, torch.nan, file)
    words = ["generate", "a cat", "--mode", mode, "--size", "32", "--num-timesteps", "3", "--device", "cpu", "--quiet"]
    assert main([*words, "--model", str(folder), "--max-think-tokens", "5", "--out", str(tmp_path / "x")]) == 2
    assert "has NaN or infinite numbers: so have the model's weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("x/**/*.png"))
