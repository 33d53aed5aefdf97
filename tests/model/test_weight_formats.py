"""Weights in other programs' formats: read as those programs read them, named by info, converted, or refused."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from weight_formats import LAYERS, dfloat11_parts, projections, rewrite, weights_of, write_dfloat11

from irg.model.describe import describe, in_lines
from irg.model.network.config import tiny
from irg.model.placement.memory_plan import weight_bytes
from irg.model.weights.checkpoint import check_folder, load_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.initialize import write_folder
from irg.model.weights.tensor_reader import TensorReader

QUERY = f"{LAYERS}1.self_attn.q_proj"
BF16 = torch.bfloat16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model in BAGEL's layout, bfloat16."""
    path = tmp_path / "model"
    path.mkdir()
    write_folder(path, tiny(), "bagel", 0, BF16)
    return path


def loaded_weight(folder: Path, name: str = QUERY, dtype: torch.dtype = torch.float32) -> Tensor:
    return load_model(folder, dtype).model.get_parameter(f"{name}.weight").detach()


def edited(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = weights_of(folder)
    change(tensors)
    rewrite(folder, tensors)
    return folder


# ---------------------------------------------------------------------------------------------------------- scaled fp8


def to_fp8(tensors: dict[str, Tensor], scale_name: str, scale_shape: tuple[int, ...] = ()) -> None:
    for index, name in enumerate(projections(tensors)):
        scale = torch.full(scale_shape, 0.5 + index)
        tensors[f"{name}.weight"] = (tensors[f"{name}.weight"].float() * 4).to(torch.float8_e4m3fn)
        tensors[f"{name}.{scale_name}"] = scale


@pytest.mark.parametrize("name, shape", [("scale_weight", ()), ("scale_weight", (1,)), ("weight_scale", ())])
def test_fp8_with_a_scale_for_each_weight(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    """ComfyUI's two generations: the number times the scale, whatever the scales of activations say."""
    before = weights_of(folder)[f"{QUERY}.weight"].float()
    tensors = weights_of(folder)
    to_fp8(tensors, name, shape)
    index = projections(tensors).index(QUERY)
    tensors["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    tensors[f"{QUERY}.scale_input"] = torch.tensor(3.0)
    rewrite(folder, tensors)
    checked = check_folder(folder)
    assert checked.weight_format == "scaled fp8"
    assert torch.equal(loaded_weight(folder), (before * 4).to(torch.float8_e4m3fn).float() * (0.5 + index))


def test_fp8_with_a_scale_for_each_row_and_for_each_block(folder: Path) -> None:
    tensors = weights_of(folder)
    down = f"{LAYERS}0.mlp.down_proj"
    for name in (QUERY, down):
        tensors[f"{name}.weight"] = torch.full_like(tensors[f"{name}.weight"], 2).to(torch.float8_e4m3fn)
    rows, (outputs, inputs) = len(tensors[f"{QUERY}.weight"]), tensors[f"{down}.weight"].shape
    tensors[f"{QUERY}.weight_scale"] = torch.arange(rows, dtype=torch.float32)[:, None]
    blocks = (-(-outputs // 128), -(-inputs // 128))
    tensors[f"{down}.weight_scale_inv"] = torch.arange(blocks[0] * blocks[1], dtype=torch.float32).view(blocks) + 1
    rewrite(folder, tensors)
    by_row = loaded_weight(folder)
    assert torch.equal(by_row[:, 0], 2.0 * torch.arange(rows)) and torch.equal(by_row[:, 0], by_row[:, -1])
    by_block = loaded_weight(folder, down)
    assert by_block[0, 0] == 2 and by_block[-1, -1] == 2 * blocks[0] * blocks[1]


def test_int8_with_scales_is_read_and_named(folder: Path) -> None:
    tensors = weights_of(folder)
    tensors[f"{QUERY}.weight"] = torch.full_like(tensors[f"{QUERY}.weight"], -3).to(torch.int8)
    tensors[f"{QUERY}.weight_scale"] = torch.tensor(0.5)
    described = json.dumps({"layers": {QUERY: {"format": "int8_tensorwise"}}})
    rewrite(folder, tensors, {"_quantization_metadata": described})
    assert check_folder(folder).weight_format == "scaled int8"
    assert loaded_weight(folder).unique().tolist() == [-1.5]


def test_fp8_without_scales_is_named_and_keeps_its_bits(folder: Path, tmp_path: Path) -> None:
    tensors = weights_of(folder)
    rewrite(folder, {k: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for k, t in tensors.items()})
    assert check_folder(folder).weight_format == "fp8 (e4m3)"
    assert torch.equal(loaded_weight(folder), tensors[f"{QUERY}.weight"].to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(f"{QUERY}.scale_weight"), "its scale is missing"),
        (lambda t: t.update({f"{QUERY}.scale_weight": torch.ones(3)}), "has shape [3]: expected one number, one for"),
        (
            lambda t: t.update({f"{QUERY}.comfy_quant": as_bytes({"format": "nvfp4"})}),
            "ComfyUI's format nvfp4 of language_model.model.layers.1.self_attn.q_proj is not read",
        ),
        (
            lambda t: t.update({f"{QUERY}.comfy_quant": as_bytes({"format": "int8_tensorwise", "convrot": True})}),
            "ComfyUI's format rotated int8",
        ),
    ],
)
def test_damaged_fp8_is_refused(folder: Path, change: Callable[[dict[str, Tensor]], object], said: str) -> None:
    tensors = weights_of(folder)
    to_fp8(tensors, "scale_weight")
    change(tensors)
    rewrite(folder, tensors)
    assert said in refusal(folder)


# -------------------------------------------------------------------------------------------------------- bitsandbytes


def as_bytes(value: object) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def to_four_bits(tensors: dict[str, Tensor], name: str = QUERY, nested: bool = True) -> Tensor:
    """A weight as bitsandbytes' keys have it, of made-up levels and scales; what it stands for."""
    shape = tensors[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(-1, 1, 16)
    numbers = torch.randint(0, 16, (shape.numel(),), generator=generator)
    blocks = shape.numel() // 64
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
    parts = {"quant_map": levels}
    if nested:
        ladder = torch.linspace(-1, 1, 256)
        small = torch.randint(0, 256, (blocks,), generator=generator).to(torch.uint8)
        outer = torch.rand(-(-blocks // 256), generator=generator)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.5}
        parts |= {"absmax": small, "nested_absmax": outer, "nested_quant_map": ladder}
        scales = ladder[small.long()] * outer.repeat_interleave(256)[:blocks] + 1.5
    else:
        scales = parts["absmax"] = torch.rand(blocks, generator=generator)
    tensors[f"{name}.weight"] = (numbers[::2] << 4 | numbers[1::2]).to(torch.uint8)[:, None]
    tensors |= {f"{name}.weight.{part}": tensor for part, tensor in parts.items()}
    tensors[f"{name}.weight.quant_state.bitsandbytes__nf4"] = as_bytes(state)
    return (levels[numbers].view(-1, 64) * scales[:, None]).view(shape).to(BF16)


@pytest.mark.parametrize("nested", [True, False])
def test_nf4_is_decoded(folder: Path, nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.model.weights.formats.bitsandbytes._PIECE", 256)  # several pieces
    tensors = weights_of(folder)
    wanted = to_four_bits(tensors, nested=nested)
    rewrite(folder, tensors)
    assert check_folder(folder).weight_format == "bitsandbytes nf4"
    assert torch.equal(loaded_weight(folder, dtype=BF16), wanted)


def test_int8_of_bitsandbytes_becomes_our_int8_layer_where_we_have_one(folder: Path) -> None:
    vit = "vit_model.vision_model.encoder.layers.0.mlp.fc1"
    tensors = weights_of(folder)
    for name in (QUERY, vit):
        rows = len(tensors[f"{name}.weight"])
        tensors[f"{name}.weight"] = torch.full_like(tensors[f"{name}.weight"], -127).to(torch.int8)
        tensors[f"{name}.SCB"] = torch.arange(rows, dtype=torch.float32)
        tensors[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    rewrite(folder, tensors)
    assert check_folder(folder).weight_format == "bitsandbytes int8"
    model = load_model(folder).model
    layer = model.get_submodule(QUERY)
    assert layer.qdata.unique().tolist() == [-127] and layer.scale.shape == (len(layer.qdata), 1)
    row = torch.arange(len(layer.qdata), dtype=torch.float32)
    torch.testing.assert_close(layer.qdata * layer.scale, -row[:, None].expand(layer.qdata.shape), rtol=1e-6, atol=0)
    decoded = model.get_parameter(f"{vit}.weight")
    torch.testing.assert_close(decoded[:, 0], -torch.arange(len(decoded), dtype=torch.float32), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "key, tensor, said",
    [
        ("weight.absmax", torch.zeros(3, dtype=torch.uint8), "is uint8 [3] instead of"),
        ("weight.nested_quant_map", None, "nested_quant_map of bitsandbytes is missing, 256 float32"),
        ("weight.quant_state.bitsandbytes__nf4", as_bytes({"shape": [1 << 40], "blocksize": 64}), "does not describe"),
        ("weight.quant_state.bitsandbytes__nf4", torch.zeros(5, dtype=torch.uint8), "does not describe a 4-bit weight"),
    ],
)
def test_damaged_nf4_is_refused(folder: Path, key: str, tensor: Tensor | None, said: str) -> None:
    tensors = weights_of(folder)
    to_four_bits(tensors)
    tensors.pop(f"{QUERY}.{key}")
    if tensor is not None:
        tensors[f"{QUERY}.{key}"] = tensor
    rewrite(folder, tensors)
    assert said in refusal(folder)


def test_int8_in_a_gpus_own_order_is_refused(folder: Path) -> None:
    tensors = weights_of(folder)
    tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(torch.int8)
    tensors[f"{QUERY}.SCB"] = torch.ones(len(tensors[f"{QUERY}.weight"]))
    tensors[f"{QUERY}.weight_format"] = torch.tensor(2, dtype=torch.uint8)
    rewrite(folder, tensors)
    assert "is in a GPU's own order (bitsandbytes before 0.45)" in refusal(folder)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_four_bits_as_the_library_itself_decodes_them(folder: Path, kind: str, double: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    tensors, wanted = weights_of(folder), {}
    for name in projections(tensors):
        weight = bnb.nn.Params4bit(
            tensors.pop(f"{name}.weight"), requires_grad=False, quant_type=kind, compress_statistics=double
        ).to("cpu")
        tensors[f"{name}.weight"] = weight.data
        tensors |= {f"{name}.weight.{k}": v for k, v in weight.quant_state.as_dict(packed=True).items()}
        wanted[name] = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    rewrite(folder, tensors)
    model = load_model(folder, BF16).model
    assert all(torch.equal(model.get_parameter(f"{name}.weight"), weight) for name, weight in wanted.items())


def test_int8_as_the_library_itself_decodes_it(folder: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    tensors, wanted = weights_of(folder), {}
    for name in projections(tensors):
        outputs, inputs = tensors[f"{name}.weight"].shape
        layer = bnb.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(tensors.pop(f"{name}.weight").half(), requires_grad=False).to("cpu")
        layer(torch.zeros(1, inputs, dtype=torch.float16))  # quantizes
        tensors |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
        wanted[name] = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.state_dict()["SCB"])
    rewrite(folder, tensors)
    model = load_model(folder).model
    for name, weight in wanted.items():
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.qdata * layer.scale, weight, rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------------------------ DFloat11


def test_dfloat11_gives_back_every_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.model.weights.formats.dfloat11._WINDOWS", 100)  # pieces that end inside blocks
    before = weights_of(folder)
    write_dfloat11(folder)
    checked = check_folder(folder)
    assert checked.weight_format == "DFloat11"
    after = {key: TensorReader().read(entry) for key, entry in checked.entries.items()}
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_dfloat11_groups_in_files_of_their_own(folder: Path) -> None:
    """As the library writes with ``save_single_file=False``."""
    before = weights_of(folder)
    write_dfloat11(folder)
    tensors = weights_of(folder)
    for group in [key.removesuffix(".luts") for key in tensors if key.endswith(".luts")]:
        own = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{group}.")}
        save_file(own, folder / f"{group.replace('.', '_')}.safetensors")
    (folder / "ema.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    after = {key: TensorReader().read(entry) for key, entry in check_folder(folder).entries.items()}
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_dfloat11_codes_of_up_to_four_bytes(folder: Path) -> None:
    """Exponents whose frequencies double give codes of every length, so also tables behind tables."""
    tensors = weights_of(folder)
    shape = tensors[f"{QUERY}.weight"].shape
    exponents = [100 + e for e in range(11) for _ in range(1 << e)]
    exponents += [112] * (shape.numel() - len(exponents))
    order = torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(0))
    weight = (torch.tensor(exponents)[order] << 7).to(torch.int16).view(BF16).view(shape)
    assert dfloat11_parts([weight])["luts"].shape[0] > 2  # the first table, one behind it, the lengths
    tensors[f"{QUERY}.weight"] = weight
    rewrite(folder, tensors)
    write_dfloat11(folder)
    assert torch.equal(loaded_weight(folder, dtype=BF16), weight)


def dfloat11_encoder() -> ModuleType:
    """The library's encoder, which runs on any machine; the package as a whole needs a GPU's."""
    package = importlib.util.find_spec("dfloat11")
    if package is None or package.origin is None:
        pytest.skip("needs pip install dfloat11")
    spec = importlib.util.spec_from_file_location("df11", Path(package.origin).with_name("dfloat11_utils.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dfloat11_as_the_library_itself_writes_it(folder: Path) -> None:
    pytest.importorskip("dahuffman")
    df11 = dfloat11_encoder()

    def parts(weights: list[Tensor]) -> dict[str, Tensor]:
        flat = [weight.flatten() for weight in weights]
        codec, _, table = df11.get_32bit_codec(df11.get_codec(torch.cat(flat))[1])
        encoded, others, positions, gaps, splits = df11.encode_weights(flat, codec, 8, 512)
        return {
            "luts": df11.get_luts(table),
            "encoded_exponent": encoded.clone(),
            "sign_mantissa": others,
            "output_positions": positions.view(torch.uint8),
            "gaps": gaps,
            "split_positions": splits,
        }

    before = weights_of(folder)
    write_dfloat11(folder, parts)
    after = {key: TensorReader().read(entry) for key, entry in check_folder(folder).entries.items()}
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


GROUP = f"{LAYERS}1"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(f"{GROUP}.gaps"), "lacks gaps"),
        (lambda t: t.update({f"{GROUP}.output_positions": torch.zeros(4, dtype=torch.uint8)}), "output_positions"),
        (lambda t: t.update({f"{GROUP}.split_positions": torch.tensor([5, 3])}), "split_positions out of order"),
        (lambda t: t.update({f"{GROUP}.split_positions": torch.tensor([3])}), "has 2 weights, dfloat11_config names"),
    ],
)
def test_damaged_dfloat11_is_refused(folder: Path, change: Callable[[dict[str, Tensor]], object], said: str) -> None:
    write_dfloat11(folder)
    assert said in refusal(edited(folder, change))


def test_dfloat11_bits_that_are_no_code_are_refused(folder: Path) -> None:
    write_dfloat11(folder)

    def zero_lengths(tensors: dict[str, Tensor]) -> None:
        tensors[f"{GROUP}.luts"][-1] = 0

    edited(folder, zero_lengths)
    with pytest.raises(ValueError, match=r"is corrupt: language_model.model.layers.1 \(DFloat11\) has"):
        load_model(folder)


def test_dfloat11_without_its_configuration_is_refused(folder: Path) -> None:
    write_dfloat11(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["dfloat11_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "DFloat11 weights need the config.json that they were published with" in refusal(folder)


# ------------------------------------------------------------------------------------------------------- all of them


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        check_folder(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "key, name",
    [
        (f"{QUERY}.qweight", "packed integers of GPTQ, AWQ or AutoRound"),
        (f"{QUERY}.weight._data", "quanto (diffusers, optimum)"),
        (f"{QUERY}.wscales", "SVDQuant (Nunchaku)"),
    ],
)
def test_other_formats_are_refused_by_name(folder: Path, key: str, name: str) -> None:
    edited(folder, lambda t: t.update({key: torch.zeros(4, dtype=torch.int32)}))
    said = refusal(folder)
    assert f"holds weights as {name}, which are not read" in said and "irg model convert" in said


WRITERS: dict[str, Callable[[Path], object]] = {
    "scaled fp8": lambda folder: edited(folder, lambda t: to_fp8(t, "scale_weight")),
    "bitsandbytes nf4": lambda folder: edited(folder, lambda t: to_four_bits(t)),
    "DFloat11": write_dfloat11,
}


@pytest.mark.parametrize("name", WRITERS)
def test_conversion_writes_what_is_loaded(folder: Path, name: str, tmp_path: Path) -> None:
    WRITERS[name](folder)
    convert(folder, tmp_path / "ours", Conversion(layout="irg"))
    stored = load_file(tmp_path / "ours/weights.safetensors")
    assert check_folder(tmp_path / "ours").weight_format is None
    assert torch.equal(stored[f"{QUERY}.weight"], loaded_weight(folder, dtype=BF16))


@pytest.mark.parametrize("name", WRITERS)
def test_info_names_the_format(folder: Path, name: str) -> None:
    WRITERS[name](folder)
    assert in_lines(describe(folder, [])).splitlines()[0] == f"{folder} (BAGEL layout, {name})"


@pytest.mark.parametrize("name", WRITERS)
def test_the_memory_plan_counts_the_decoded_weights(folder: Path, name: str) -> None:
    plain = weight_bytes(check_folder(folder), "bf16")
    WRITERS[name](folder)
    assert weight_bytes(check_folder(folder), "bf16") == plain


@pytest.mark.parametrize("name", WRITERS)
def test_weights_are_quantized_as_they_are_decoded(folder: Path, name: str) -> None:
    WRITERS[name](folder)
    weight = loaded_weight(folder, dtype=BF16)
    layer = load_model(folder, BF16, quantize="int8").model.get_submodule(QUERY)
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((layer.qdata * layer.scale - weight.float()).abs() <= 0.51 * step).all()
