"""Weight-only quantization: what it changes, how far, and how it is stored."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from irg.model.network.config import tiny
from irg.model.weights import quantize
from irg.model.weights.checkpoint import LoadedModel, check_folder, load_model, save_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.quantize import QuantizedLinear, group_of, quantized_weight, stored_quantization
from irg.model.weights.quantized_product import dequantized

pytest.importorskip("torchao")


def restored(parts: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return dequantized(parts["qdata"], parts["scale"], parts.get("zero"), dtype)


def test_int8_of_known_numbers() -> None:
    """The largest number of a row is 127.5 steps, as torchao has it; zero stays zero."""
    weight = torch.tensor([[1.275, -0.5, 0.0, 0.01], [255.0, 2.0, -255.0, 100.0]])
    parts = quantized_weight(weight, "int8")
    assert parts["scale"].tolist() == [[pytest.approx(0.01)], [pytest.approx(2.0)]]
    assert parts["qdata"].tolist() == [[127, -50, 0, 1], [127, 1, -128, 50]]
    assert sorted(parts) == ["qdata", "scale"]


def test_int4_of_known_numbers() -> None:
    """32 numbers share 16 levels; the even input lies in the high half of a byte."""
    weight = torch.arange(32.0)[None] / 31 * 15 - 5  # -5 ... 10: a step of 1, zero at level 5
    parts = quantized_weight(weight, "int4")
    assert parts["scale"].tolist() == [[1.0]] and parts["zero"].tolist() == [[5]]
    assert [int(parts["qdata"][0, 0]) >> 4, int(parts["qdata"][0, -1]) & 15] == [0, 15]
    assert (restored(parts) - weight).abs().max() <= 0.5


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("int4", 0.12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_a_rounding(kind: quantize.Quantization, bound: float, dtype: torch.dtype) -> None:
    """Every number is within half a step of its own; of normal numbers that is under 1 % or 12 % in norm."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = quantized_weight(weight, kind)
    error = restored(parts) - weight.float()
    assert error.norm() / weight.float().norm() < bound
    step = parts["scale"].float().repeat_interleave(256 // parts["scale"].shape[1], dim=1)
    assert (error.abs() <= 0.55 * step).all()


def test_pieces_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    whole = quantized_weight(weight, "int4")
    monkeypatch.setattr(quantize, "PIECE_CPU", 200)
    for part, tensor in quantized_weight(weight, "int4").items():
        assert torch.equal(tensor, whole[part]), part


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_a_layer_computes_with_the_numbers_it_holds(kind: quantize.Quantization) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x, bias = (torch.randn(shape, generator=generator) for shape in ((24, 64), (5, 64), (24,)))
    parts = quantized_weight(weight, kind)
    for some in (None, bias):
        layer = QuantizedLinear(parts["qdata"], parts["scale"], parts.get("zero"), some)
        assert layer.kind == kind
        torch.testing.assert_close(layer(x), nn.functional.linear(x, restored(parts), some), rtol=1e-5, atol=1e-5)


def test_groups() -> None:
    assert [group_of(n) for n in (3584, 18944, 192, 96, 48)] == [128, 128, 64, 32, None]
    with pytest.raises(ValueError, match="multiple of 32"):
        quantized_weight(torch.zeros(2, 48), "int4")


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_what_is_quantized(tiny_loaded: LoadedModel, kind: quantize.Quantization) -> None:
    """All seven projections of both experts in every layer; nothing else; the rest keeps its dtype."""
    model = copy.deepcopy(tiny_loaded.model).to(torch.bfloat16)
    quantize.quantize(model, kind)
    done = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(done) == 2 * 2 * 7
    projections = {name.rpartition(".")[2].removesuffix("_moe_gen") for name in done}
    assert projections == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert not any(".layers." in name for name in linear if name.startswith("language_model"))
    assert {"language_model.lm_head", "vae2llm", "llm2vae"} <= linear
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantized_while_loading_converted_and_stored_are_the_same(
    tmp_path: Path, tiny_loaded: LoadedModel, kind: quantize.Quantization
) -> None:
    """Load-and-quantize = convert-then-load = quantize-in-place, bit for bit; a quantized folder is saved and read."""
    plain = tmp_path / "plain"
    save_model(plain, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    convert(plain, tmp_path / "small", Conversion(quantize=kind))
    in_place = load_model(plain, torch.bfloat16).model
    quantize.quantize(in_place, kind)
    wanted = in_place.state_dict()
    saved = load_model(tmp_path / "small", torch.bfloat16)
    save_model(tmp_path / "again", saved.config, saved.model, saved.autoencoder, torch.float32)
    for got in (
        load_model(plain, torch.bfloat16, quantize=kind),
        load_model(tmp_path / "small", torch.bfloat16),
        load_model(tmp_path / "small", torch.bfloat16, quantize=kind),
        load_model(tmp_path / "again", torch.bfloat16),
    ):
        state = got.model.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) and state[key].dtype == wanted[key].dtype for key in wanted)
    assert stored_quantization(check_folder(tmp_path / "small").entries) == kind
    with pytest.raises(ValueError, match=f"is quantized to {kind}"):
        load_model(tmp_path / "small", quantize="int8" if kind != "int8" else "int4")


def test_a_quantized_file_that_does_not_fit_is_refused(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    plain = tmp_path / "plain"
    save_model(plain, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    convert(plain, tmp_path / "small", Conversion(quantize="int8"))
    path = tmp_path / "small" / "weights.safetensors"
    whole = load_file(path)
    name = "language_model.model.layers.0.self_attn.q_proj"
    spoilt = {
        "wrong shape": {f"{name}.scale": torch.ones(3, 1)},
        "wrong dtype": {f"{name}.scale": torch.ones(32, 1, dtype=torch.bfloat16)},
        "left over": {f"{name}.zero": torch.ones(32, 1, dtype=torch.uint8)},
        "not of a floating-point": {"vae2llm.bias": whole["vae2llm.bias"].to(torch.int8)},
    }
    for told, change in spoilt.items():
        save_file({k: v.clone() for k, v in (whole | change).items()}, path)
        with pytest.raises(ValueError, match=told):
            load_model(tmp_path / "small")


def test_layers_too_narrow_for_int4_stay(tmp_path: Path) -> None:
    config = tiny()
    decoder = dataclasses.replace(config.decoder, intermediate_size=48)
    from irg.model.network.autoencoder import build_autoencoder
    from irg.model.weights.initialize import random_model

    config = dataclasses.replace(config, decoder=decoder)
    save_model(tmp_path / "a", config, random_model(config, 0), build_autoencoder(config.autoencoder))
    convert(tmp_path / "a", tmp_path / "b", Conversion(quantize="int4"))
    layer = load_model(tmp_path / "b").model.language_model.model.layers[0]
    assert isinstance(layer.mlp.gate_proj, QuantizedLinear) and type(layer.mlp.down_proj) is nn.Linear


def test_without_torchao_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"pip install 'irg\[quant\]'"):
        quantized_weight(torch.zeros(2, 32), "int8")


def test_stored_configuration_is_untouched(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    plain = tmp_path / "plain"
    save_model(plain, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    convert(plain, tmp_path / "small", Conversion(quantize="int4", dtype=torch.bfloat16))
    assert json.loads((plain / "config.json").read_text()) == json.loads((tmp_path / "small/config.json").read_text())
    assert {e.dtype for e in check_folder(tmp_path / "small").autoencoder_entries.values()} == {torch.bfloat16}
