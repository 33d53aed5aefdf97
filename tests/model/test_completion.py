"""A fine-tune completed from its base: what each lends, what does not go together, and the command that does it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from irg.cli.main import main
from irg.model.weights.checkpoint import LoadedModel, load_model, read_config, save_model
from irg.model.weights.completion import RECORD
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.tokenizer import TextTokenizer

EYE = ("vit_model", "vit_pos_embed", "connector")
BIAS = "vae2llm.bias"


@pytest.fixture
def base(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Path:
    """In BAGEL's layout."""
    save_model(tmp_path / "ours", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    tiny_tokenizer.tokenizer.save(str(tmp_path / "ours" / "tokenizer.json"))
    convert(tmp_path / "ours", tmp_path / "base", Conversion(layout="bagel"))
    return tmp_path / "base"


def fine_tune(folder: Path, base: Path, *files: str, prefix: str = "") -> Path:
    """Weights without ViT and connector, all of them 1 larger, with some of the base's files."""
    folder.mkdir()
    tensors = {key: value + 1 for key, value in load_file(base / "ema.safetensors").items() if not key.startswith(EYE)}
    save_file({prefix + key: value for key, value in tensors.items()}, folder / "ema.safetensors")
    for name in files:
        shutil.copyfile(base / name, folder / name)
    return folder


ALL = ("config.json", "llm_config.json", "vit_config.json", "tokenizer.json", "ae.safetensors")


@pytest.mark.parametrize(
    ("files", "prefix", "lent"),
    [
        ((), "", sorted(ALL)),
        (("llm_config.json", "vit_config.json"), "module.", ["ae.safetensors", "config.json", "tokenizer.json"]),
        (("llm_config.json",), "", ["ae.safetensors", "config.json", "tokenizer.json", "vit_config.json"]),
        (ALL, "", []),
    ],
)
def test_what_is_lacking_comes_from_the_base(
    base: Path, tmp_path: Path, files: tuple[str, ...], prefix: str, lent: list[str]
) -> None:
    fine, out = fine_tune(tmp_path / "fine", base, *files, prefix=prefix), tmp_path / "out"
    told: list[str] = []
    convert(fine, out, Conversion(base=base), say=told.append)
    assert read_config(out) == read_config(base) and TextTokenizer.from_folder(out)
    whole, before = load_model(out, dtype=None), load_model(base, dtype=None).model.state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith(EYE) else before[key] + 1), key
    record = json.loads((out / RECORD).read_text())
    assert record["base"]["files"] == lent and set(record["base"]["tensors"]) == {
        k for k in before if k.startswith(EYE)
    }
    assert record["fine_tune"]["weights"] == "ema.safetensors" and record["base"]["folder"] == str(base)
    assert told[1].startswith(f"From {base}: ") and "vit_model" in told[1] and all(name in told[1] for name in lent)


def test_published_configurations_are_the_fine_tunes_own(base: Path, tmp_path: Path) -> None:
    """A config.json that says nothing gives way to the base's; an llm_config.json wins over it."""
    fine = fine_tune(tmp_path / "fine", base, "llm_config.json")
    (fine / "config.json").write_text('{\n  "name": ["BAGEL-7B-MoT"],\n}')
    llm = json.loads((fine / "llm_config.json").read_text()) | {"rope_theta": 77.0}
    (fine / "llm_config.json").write_text(json.dumps(llm))
    convert(fine, tmp_path / "out", Conversion(base=base))
    config = read_config(tmp_path / "out")
    assert config.decoder.rope_theta == 77 and config.autoencoder == read_config(base).autoencoder


def test_shapes_that_do_not_go_together(base: Path, tmp_path: Path) -> None:
    fine = fine_tune(tmp_path / "fine", base)
    tensors = load_file(fine / "ema.safetensors")
    save_file(tensors | {BIAS: torch.zeros(5)}, fine / "ema.safetensors")
    with pytest.raises(ValueError, match=rf"{BIAS} is \[5\] in the first, \[32\] in the second"):
        convert(fine, tmp_path / "out", Conversion(base=base))
    assert not (tmp_path / "out").exists()


def test_what_neither_has(base: Path, tmp_path: Path) -> None:
    fine = fine_tune(tmp_path / "fine", base)
    poor = fine_tune(tmp_path / "poor", base, *ALL)
    with pytest.raises(ValueError, match=r"neither .* has vit_model, connector"):
        convert(fine, tmp_path / "out", Conversion(base=poor))


def test_quantized_weights_are_completed_before_they_are_quantized(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    convert(base, tmp_path / "int8", Conversion(quantize="int8"))
    fine = fine_tune(tmp_path / "fine", base)
    with pytest.raises(ValueError, match="quantized to int8: complete the full weights"):
        convert(fine, tmp_path / "out", Conversion(base=tmp_path / "int8"))


@pytest.mark.parametrize("files", [ALL, ALL[:-1], ALL[:-2], ()], ids=["ViT", "autoencoder", "tokenizer", "all"])
def test_loading_says_the_command_and_the_command_works(
    base: Path, tmp_path: Path, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fine, out = fine_tune(tmp_path / "fine", base, *files), str(tmp_path / "out")
    words = [
        "generate",
        "a cat",
        "--mode",
        "direct",
        "--size",
        "32",
        "--num-timesteps",
        "2",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert main([*words, "--model", str(fine), "--out", str(tmp_path / "no")]) == 2
    assert f"irg model convert {fine} OUT --base BASE" in capsys.readouterr().err
    assert main(["model", "convert", str(fine), out, "--base", str(base)]) == 0
    assert f"From {base}: " in capsys.readouterr().err
    assert main([*words, "--model", out, "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "initial.png").is_file()
