"""GGUF files: read as the library reads them, written so that it reads them; damaged ones are refused in one line."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from weight_formats import LAYERS, projections, weights_of

from irg.model.network.config import tiny
from irg.model.weights.checkpoint import check_folder, load_model
from irg.model.weights.formats.gguf import read_gguf, write_gguf
from irg.model.weights.initialize import write_folder
from irg.model.weights.shards import Planned
from irg.model.weights.tensor_reader import TensorReader

gguf = pytest.importorskip("gguf")
QUERY = f"{LAYERS}1.self_attn.q_proj.weight"
NORM = f"{LAYERS}1.input_layernorm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model in BAGEL's layout, bfloat16."""
    path = tmp_path / "model"
    path.mkdir()
    write_folder(path, tiny(), "bagel", 0, torch.bfloat16)
    return path


def rewrite(folder: Path, kind: str, change: Callable[[Any], object] = lambda writer: None) -> dict[str, np.ndarray]:
    """A folder's weights as the library writes them, the decoder's projections in a type; these decoded by it."""
    tensors = weights_of(folder)
    (folder / "ema.safetensors").unlink()
    writer, wanted = gguf.GGUFWriter(folder / "ema.gguf", "bagel"), {}
    names = {f"{name}.weight" for name in projections(tensors)}
    for key, tensor in tensors.items():
        if key in names:
            qtype = gguf.GGMLQuantizationType[kind]
            stored = gguf.quants.quantize(tensor.float().numpy(), qtype)
            wanted[key] = gguf.quants.dequantize(stored, qtype)
            writer.add_tensor(key, stored, raw_dtype=qtype)
        else:
            writer.add_tensor(key, tensor.float().numpy())
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_tensors_are_those_that_the_library_decodes(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.model.weights.formats.gguf._PIECE", 100)  # several pieces
    wanted = rewrite(folder, kind)
    checked = check_folder(folder)
    assert checked.weight_format == f"GGUF {kind}"
    model = load_model(checked).model
    for key, numbers in wanted.items():
        assert np.array_equal(model.get_parameter(key).detach().numpy(), numbers.astype(np.float32)), key


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ3_S"])
def test_types_that_only_llama_cpp_writes(tmp_path: Path, kind: str) -> None:
    """Of random blocks: there is no encoder of these types in the library, but its decoder takes any bytes."""
    qtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    rows = np.random.default_rng(0).integers(0, 60, (4, 512 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "bagel")
    writer.add_tensor("x", rows, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    name, entries = read_gguf(tmp_path / "a.gguf")
    assert name == f"GGUF {kind}" and entries["x"].shape == (4, 512)
    assert np.array_equal(TensorReader().read(entries["x"], torch.float32).numpy(), gguf.quants.dequantize(rows, qtype))


def test_a_reshaped_tensor_gets_its_shape_back(folder: Path) -> None:
    """ComfyUI-GGUF's converter stores narrow weights as rows of 256."""
    before = weights_of(folder)["vae2llm.weight"]
    assert before.numel() % 256 == 0

    def reshape(writer: Any) -> None:
        info = writer.tensors[-1]["vae2llm.weight"]
        info.shape, info.tensor = (before.numel() // 256, 256), info.tensor.reshape(-1, 256)
        writer.add_array("comfy.gguf.orig_shape.vae2llm.weight", [int(n) for n in before.shape])

    rewrite(folder, "F32", reshape)
    assert torch.equal(load_model(folder).model.get_parameter("vae2llm.weight").detach(), before.float())


def planned(tensors: dict[str, Tensor]) -> list[Planned]:
    return [Planned(key, tuple(t.shape), t.dtype, lambda t=t: t) for key, t in tensors.items()]  # type: ignore[misc]


def test_what_is_written_the_library_reads(folder: Path, tmp_path: Path) -> None:
    tensors, path, sizes = weights_of(folder), tmp_path / "a.gguf", list[int]()
    write_gguf(path, planned(tensors), lambda key: key == QUERY, sizes.append)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert read.keys() == tensors.keys() and sum(sizes) == sum(t.nbytes for t in tensors.values())
    assert [read[key].tensor_type.name for key in (QUERY, NORM, "vae2llm.weight")] == ["Q8_0", "F32", "BF16"]
    numbers = gguf.quants.dequantize(read[QUERY].data, read[QUERY].tensor_type)
    assert np.array_equal(numbers, gguf.quants.dequantize(*quantized(tensors[QUERY])))
    assert all(math.prod(read[key].shape) == tensor.numel() for key, tensor in tensors.items())
    entries = read_gguf(path)[1]
    exact = [key for key in tensors if key != QUERY]
    assert all(torch.equal(TensorReader().read(entries[key], torch.bfloat16), tensors[key]) for key in exact)


def quantized(weight: Tensor) -> tuple[Any, Any]:
    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(weight.float().numpy(), kind), kind


def edit(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    "offset, data, said",
    [
        (0, b"GGML", "it does not begin with GGUF"),
        (4, struct.pack("<I", 9), "version 9"),
        (8, struct.pack("<Q", 1 << 60), "1152921504606846976 tensors and"),
        (24, struct.pack("<Q", 1 << 40), "a text of 1099511627776 bytes"),
    ],
)
def test_damaged_headers_are_refused(folder: Path, offset: int, data: bytes, said: str) -> None:
    rewrite(folder, "Q8_0")
    edit(folder / "ema.gguf", offset, data)
    message = refusal(folder / "ema.gguf")
    assert "ema.gguf is no GGUF file, or it is truncated or corrupt (" in message and said in message


def test_a_truncated_file_is_refused_wherever_it_ends(folder: Path) -> None:
    rewrite(folder, "Q8_0")
    path = folder / "ema.gguf"
    whole = path.read_bytes()
    for size in (0, 3, 20, 100, 5000, len(whole) - 40):
        path.write_bytes(whole[:size])
        assert "truncated" in refusal(path)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda w: w.add_uint16("split.count", 3), "is one of 3 parts: join them with llama-gguf-split --merge"),
        (lambda w: w.add_tensor("token_embd.weight", np.zeros(4, np.float32)), "is a language model for llama.cpp"),
        (lambda w: w.add_array("comfy.gguf.orig_shape.vae2llm.weight", [3, 3]), "is not a shape of"),
        (lambda w: w.add_array("a", [1, 2, 3] * 99), None),
        (lambda w: w.add_array("a", ["x", "y"]), None),
    ],
)
def test_what_is_not_read_is_refused(folder: Path, change: Callable[[Any], object], said: str | None) -> None:
    rewrite(folder, "Q8_0", change)
    if said is None:
        assert read_gguf(folder / "ema.gguf")[1].keys() > {QUERY, NORM}
    else:
        assert said in refusal(folder / "ema.gguf")


def test_without_the_library_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(folder, "Q8_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert "pip install 'irg[gguf]'" in refusal(folder / "ema.gguf")


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        read_gguf(path)
    assert "\n" not in str(error.value)
    return str(error.value)
