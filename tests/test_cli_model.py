"""``irg model ...`` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from irg.cli import main as cli
from irg.model.weights.manifest import read_entries

ERRORS = {
    "no folder": (["info", "nowhere"], "unknown model 'nowhere'"),
    "not in the cache": (["info", "some-one/never-there"], "is not in the cache"),
    "bad size": (["info", "mini", "--size", "big"], "size must be WIDTHxHEIGHT"),
    "size too large": (["info", "mini", "--size", "4096"], "does not suit the model"),
    "bad shard size": (["convert", "mini", "out", "--shard-size", "5"], "--shard-size must be a size such as 5GB"),
    "no adapter": (["convert", "mini", "out", "--lora", "nowhere"], "nowhere: no such adapter"),
    "bad dtype": (["convert", "mini", "out", "--dtype", "int3"], "invalid choice"),
    "narrowed too far": (["init", "out", "--narrow", "7"], "can't be divided by 7"),
    "bad seed": (["init", "out", "--seed", "-1"], "--seed must be"),
    "unknown": (["inspect"], "no command 'inspect'"),
}


@pytest.mark.parametrize(("words", "told"), ERRORS.values(), ids=ERRORS)
def test_mistakes_are_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRG_DEBUG", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert cli.main(["model", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and error.startswith("irg model: error: ")
    assert not (tmp_path / "out").exists()


def test_init_info_convert_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random folder in BAGEL's layout is described, converted, and draws (noise)."""
    folder, ours = str(tmp_path / "random"), str(tmp_path / "ours")
    assert cli.main(["model", "init", folder, "--config", "tiny", "--random", "--seed", "3"]) == 0
    assert cli.main(["model", "info", folder, "--size", "64,64x96"]) == 0
    told = capsys.readouterr().out
    assert "(BAGEL layout)" in told and "ema.safetensors" in told and "64x96" in told and "targets" not in told
    assert cli.main(["model", "convert", folder, ours, "--layout", "irg", "--shard-size", "100kB"]) == 0
    assert cli.main(["model", "info", ours, "--json"]) == 0
    out = capsys.readouterr().out
    facts = json.loads(out[out.index("{") :])
    assert facts["layout"] == "irg" and len(facts["files"]) > 2
    assert facts["memory"]["128x128"]["bf16"]["total"] > facts["total"] * 2
    words = ["a bus", "--model", ours, "--mode", "direct", "--size", "32", "--num-timesteps", "2", "--memory", "bf16"]
    assert cli.main(["generate", *words, "--device", "cpu", "--out", str(tmp_path / "drawn")]) == 0
    told = capsys.readouterr().out
    assert "Memory: bf16 as asked: needs about" in told and (tmp_path / "drawn" / "initial.png").is_file()


def test_without_random_the_files_are_holes(tmp_path: Path) -> None:
    assert cli.main(["model", "init", str(tmp_path / "a"), "--config", "bagel_7b"]) == 0
    weights = tmp_path / "a" / "ema.safetensors"
    assert weights.stat().st_size > 29e9 and weights.stat().st_blocks * 512 < 1e7
    shards = ["--config", "bagel_7b", "--shard-size", "10GB"]
    assert cli.main(["model", "init", str(tmp_path / "b"), *shards]) == 0
    parts = [path.stat() for path in (tmp_path / "b").glob("ema-*.safetensors")]
    assert len(parts) == 3 and sum(part.st_blocks for part in parts) * 512 < 1e7
    assert len(read_entries(tmp_path / "b" / "ema.safetensors.index.json")) == 1223


def test_info_tells_of_the_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights can be looked at without one, but nobody should find out only when drawing."""
    folder = tmp_path / "a"
    assert cli.main(["model", "init", str(folder)]) == 0
    assert cli.main(["model", "info", str(folder)]) == 0
    assert "tokenizer: tokenizer.json, 260 tokens\n" in capsys.readouterr().out
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("296", "396"))
    assert cli.main(["model", "info", str(folder)]) == 0
    assert "tokenizer: UNUSABLE" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    assert cli.main(["model", "info", str(folder)]) == 0
    assert f"tokenizer: UNUSABLE: {folder} has no tokenizer" in capsys.readouterr().out


def test_files_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"llm_config": {"hidden_act": "\\u001b[2J\\u0007"}}')
    save_file({"\x1b[2J": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert cli.main(["model", "info", "mini\x1b[2J\x07"]) == 2
    assert cli.main(["model", "info", str(tmp_path)]) == 2
    assert not [c for c in capsys.readouterr().err if c < " " and c != "\n"]


def test_the_old_spelling_of_quantize_still_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    folder, out = str(tmp_path / "random"), tmp_path / "int8"
    assert cli.main(["model", "init", folder, "--config", "tiny", "--random"]) == 0
    assert cli.main(["model", "convert", folder, str(out), "--quantise", "int8"]) == 0
    assert "--quantise is now called --quantize" in capsys.readouterr().err
    assert cli.main(["model", "info", str(out)]) == 0
    assert "int8" in capsys.readouterr().out.splitlines()[0]


def test_help_does_not_load_torch() -> None:
    code = "import sys; from irg.cli.main import main; main(['model', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "convert" in done.stdout
