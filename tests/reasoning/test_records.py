"""A result says how it was made: the same prompt and seed from other weights, in another mode, has another record."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from irg.evaluation import runs
from irg.model.placement.devices import parse_dtype
from irg.model.weights.checkpoint import LoadedModel, save_model
from irg.model.weights.fingerprint import weights_fingerprint
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline
from irg.results.metadata import read_png_settings
from irg.results.trajectory import Trajectory
from irg.version import __version__

QUICK = {"mode": "direct", "size": 32, "num_timesteps": 2}


@pytest.fixture
def folder(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Path:
    save_model(tmp_path / "m", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    tiny_tokenizer.tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    return tmp_path / "m"


def drawn(folder: Path, out: Path, **how: object) -> Trajectory:
    pipe = IRGPipeline.from_pretrained(folder, device="cpu", **how)  # type: ignore[arg-type]
    pipe("a cat", seed=1, **QUICK).trajectory.save(out)
    return Trajectory.load(out)


def test_trajectories_and_images_say_which_weights_and_how(folder: Path, tmp_path: Path) -> None:
    full = drawn(folder, tmp_path / "full", memory="auto", dtype="float32")
    half = drawn(folder, tmp_path / "half", memory="bf16")
    assert (full.loaded["precision"], half.loaded["precision"]) == ("float32", "bf16")
    assert half.loaded["memory"] == "bf16" and half.loaded["device"] == "cpu"
    assert half.loaded["versions"]["torch"] == torch.__version__ and half.loaded["versions"]["irg"] == __version__
    assert full.loaded["fingerprint"] == half.loaded["fingerprint"]
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    other = drawn(folder, tmp_path / "other", memory="bf16")
    assert other.loaded["fingerprint"] != half.loaded["fingerprint"]
    assert read_png_settings(tmp_path / "other" / "initial.png")["loaded"] == other.loaded
    assert json.loads((tmp_path / "other" / "trajectory.json").read_text())["loaded"] == other.loaded


def test_fingerprint_sees_a_tensor_in_the_middle_and_adapters(folder: Path, tmp_path: Path) -> None:
    """A fine-tune of which the first and last tensors were frozen has the size and the ends of its base's file."""
    big = tmp_path / "big"
    big.mkdir()
    tensors = {name: torch.zeros(1 << 20) for name in "abcd"}
    save_file(tensors, big / "ema.safetensors")
    before = weights_fingerprint(big)
    save_file(tensors | {"b": torch.full((1 << 20,), 1e-3)}, big / "ema.safetensors")
    assert weights_fingerprint(big) != before
    adapter = tmp_path / "adapter.safetensors"
    save_file({"x": torch.ones(1)}, adapter)
    one = weights_fingerprint(big, adapter)
    save_file({"x": torch.zeros(1)}, adapter)
    assert len({weights_fingerprint(big), one, weights_fingerprint(big, adapter)}) == 3


def test_bench_run_tells_what_changed_since_the_last_session(tmp_path: Path) -> None:
    loaded = {"memory": "bf16", "dtype": "bfloat16", "device": "cpu", "versions": {"torch": "2.13"}, "lora": []}
    assert runs.changed_since(tmp_path, loaded) == []
    runs.record_session(tmp_path, 1, 1.0, 1, loaded)
    assert runs.changed_since(tmp_path, loaded) == []
    told = runs.changed_since(tmp_path, loaded | {"memory": "offload", "versions": {"torch": "2.14"}})
    assert told == ["memory was bf16 and is offload", "versions was {'torch': '2.13'} and is {'torch': '2.14'}"]


@pytest.mark.parametrize("dtype", ["float16", "torch.bfloat16", torch.float32, None])
def test_a_dtype_may_be_named(dtype: object) -> None:
    assert parse_dtype(dtype) in (torch.float16, torch.bfloat16, torch.float32, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int8", "nn", "", "float8_e4m3fn", 16, torch.int64])
def test_what_is_no_dtype_is_told_before_anything_is_read(dtype: object) -> None:
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16"):
        IRGPipeline.from_pretrained("nowhere", dtype=dtype)  # type: ignore[arg-type]
