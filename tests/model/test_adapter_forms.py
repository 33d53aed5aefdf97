"""Adapters in the forms of peft, kohya and diffusers, those of peft written by the library itself; and added at load:
equal to the merged folder in every memory mode."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from irg.cli.main import main
from irg.model.placement.loading import load_with_plan
from irg.model.weights.adapter_files import Adapters, parse_lora, read_adapter
from irg.model.weights.checkpoint import LoadedModel, load_model, save_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline
from irg.results.trajectory import Trajectory

LAYER = "language_model.model.layers.1.self_attn.q_proj_moe_gen"


def pair(outputs: int = 32, inputs: int = 32, rank: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)


A, B = pair()


@pytest.fixture
def ours(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Path:
    folder = tmp_path / "ours"
    save_model(folder, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    tiny_tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def own(folder: Path, layer: str = LAYER, seed: int = 0, alpha: float = 3.0) -> Path:
    """An adapter in our form on a layer of 32 x 32."""
    folder.mkdir()
    a, b = pair(seed=seed)
    save_file({f"{layer}.lora_A": a, f"{layer}.lora_B": b}, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(json.dumps({"r": 2, "alpha": alpha, "targets": ["q_proj"]}))
    return folder


FLAT = LAYER.replace(".", "_")
INNER = FLAT.removeprefix("language_model_")
META = {"transformer.r": 2, "transformer.lora_alpha": 3, "transformer.lora_bias": False}
DOWN_UP, A_B, OLD = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight")  # fmt: skip # noqa: E501


def halves(module: str, names: tuple[str, str]) -> dict[str, Tensor]:
    return {f"{module}.{names[0]}": A, f"{module}.{names[1]}": B}


ALPHA = {f"lora_unet_{FLAT}.alpha": torch.tensor(3.0)}
KOHYA, DIFFUSERS = "any.safetensors", "pytorch_lora_weights.safetensors"
FORMS: dict[str, tuple[str, dict[str, Tensor], dict[str, str], float]] = {
    "kohya": (KOHYA, halves(f"lora_unet_{FLAT}", DOWN_UP) | ALPHA, {}, 1.5),
    "kohya without alpha": (KOHYA, halves(f"lora_unet_{FLAT}", DOWN_UP), {}, 1.0),
    "kohya, the inner model's names": (KOHYA, halves(f"lora_te_{INNER}", DOWN_UP), {}, 1.0),
    "kohya with dots": (KOHYA, halves(LAYER, DOWN_UP), {}, 1.0),
    "diffusers": (DIFFUSERS, halves(f"transformer.{LAYER}", A_B), {"lora_adapter_metadata": json.dumps(META)}, 1.5),
    "diffusers without settings": (DIFFUSERS, halves(f"transformer.{LAYER}", A_B), {}, 1.0),
    "diffusers, older": (DIFFUSERS, halves(LAYER, OLD), {}, 1.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_file(ours: Path, tmp_path: Path, form: str) -> None:
    """The same change as from our form, whose scale is alpha / r, from the folder and from the file in it."""
    name, tensors, metadata, scale = FORMS[form]
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / name, metadata)
    weights = load_model(ours, dtype=None).model.state_dict()
    for path in (tmp_path / "lora", tmp_path / "lora" / name):
        read = read_adapter(path, weights)
        assert list(read.layers) == [LAYER] and read.layers[LAYER].scale == scale
        weight = weights[f"{LAYER}.weight"]
        wanted = (weight.float() + scale * (B @ A)).to(torch.bfloat16)
        assert torch.equal(Adapters([read]).merged(LAYER, weight), wanted)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({f"{LAYER}.hada_w1_a": A}, "belongs to LoHa, which is not read"),
        ({f"lora_unet_{FLAT}.lokr_w1": A}, "belongs to LoKr"),
        ({f"lora_unet_{FLAT}.dora_scale": A}, "belongs to DoRA of LyCORIS"),
        ({f"{LAYER}.lora_embedding_A": A}, "belongs to LoRA of an embedding"),
        ({f"{LAYER}.lora_down.weight": A}, "is not one of a pair"),
        ({"layers.0.self_attn.q_proj.lora_A.weight": A, "layers.0.self_attn.q_proj.lora_B.weight": B}, "may mean"),
        ({"text_encoder.x.lora_A.weight": A, "text_encoder.x.lora_B.weight": B}, "no linear layer text_encoder.x"),
        (
            {"lora_unet_down_blocks_0.lora_down.weight": A, "lora_unet_down_blocks_0.lora_up.weight": B},
            "no linear layer",
        ),
        (
            {f"{LAYER}.lora_A": A, f"{LAYER}.lora_B": B, f"module.{LAYER}.lora_A": A, f"module.{LAYER}.lora_B": B},
            "twice",
        ),
    ],
)
def test_what_is_not_read_is_named(ours: Path, tmp_path: Path, tensors: dict[str, Tensor], told: str) -> None:
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=told):
        read_adapter(tmp_path / "x.safetensors", load_model(ours, dtype=None).model.state_dict())


def test_a_path_and_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_lora("a/b:0.5") == (Path("a/b"), 0.5) and parse_lora("a/b") == (Path("a/b"), 1.0)
    assert parse_lora(("a:1", 2)) == (Path("a:1"), 2.0) and parse_lora("a:b") == (Path("a:b"), 1.0)
    monkeypatch.chdir(tmp_path)
    Path("x:0.5").mkdir()
    assert parse_lora("x:0.5") == (Path("x:0.5"), 1.0), "a folder of this name is there"
    for wrong in ("a:nan", "a:inf", "", ":2"):
        with pytest.raises(ValueError, match="lora must be PATH"):
            parse_lora(wrong)


# ---------------------------------------------------------------------------------------------------- peft's own files


class Wrapped(torch.nn.Module):
    """What peft needs of a model: linear layers by the real names."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)


def trained_by_peft(loaded: LoadedModel, folder: Path, inner: bool = False, **settings: Any) -> Tensor:
    """Save an adapter with random numbers; returns the weight of LAYER that peft itself merges."""
    import copy

    import peft

    model = copy.deepcopy(loaded.model)
    base = Wrapped(model.language_model if inner else model)
    known = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj_moe_gen", "down_proj"]}
    wrapped = peft.get_peft_model(base, peft.LoraConfig(**known | settings))
    if settings.get("init_lora_weights", True) is True:
        generator = torch.Generator().manual_seed(3)
        for name, parameter in wrapped.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data.normal_(0.0, 0.3, generator=generator)
            if "magnitude" in name:
                parameter.data.mul_(1.1)
    wrapped.save_pretrained(str(folder))
    merged = dict(wrapped.merge_and_unload().named_modules())
    return merged[LAYER.removeprefix("language_model.") if inner else LAYER].weight.detach()  # type: ignore[return-value]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj_moe_gen": 4}, "alpha_pattern": {r"layers.1.self_attn.q_proj_moe_gen": 10}},
        {"inner": True},
        {"target_modules": "all-linear"},
    ],
    ids=["plain", "rslora", "dora", "patterns", "inner", "all-linear"],
)
def test_adapters_of_peft_are_merged_as_peft_does(
    tiny_loaded: LoadedModel, tmp_path: Path, settings: dict[str, Any]
) -> None:
    pytest.importorskip("peft")
    if settings.get("target_modules"):
        settings = {"target_modules": r".*(q_proj|fc1|vae2llm|q_proj_moe_gen)"}
    wanted = trained_by_peft(tiny_loaded, tmp_path / "lora", **settings)
    weights = tiny_loaded.model.state_dict()
    read = read_adapter(tmp_path / "lora", weights)
    before = weights[f"{LAYER}.weight"]
    got = Adapters([read]).merged(LAYER, before)
    assert torch.allclose(got, wanted, atol=1e-6) and not torch.allclose(got, before, atol=1e-2)
    assert all(f"{name}.weight" in weights for name in read.layers)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_adapters_that_changed_their_base(tiny_loaded: LoadedModel, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("peft")
    trained_by_peft(tiny_loaded, tmp_path / "lora", init_lora_weights=kind)
    with pytest.raises(ValueError, match=f"init_lora_weights '{kind}' changed the base's weights too"):
        read_adapter(tmp_path / "lora", tiny_loaded.model.state_dict())


# ----------------------------------------------------------------------------------------------------- added at load


def everything(folder: Path, **how: Any) -> dict[str, Tensor]:
    loaded, _ = load_with_plan(folder, **how)
    return loaded.model.state_dict()


@pytest.mark.parametrize("memory", ["bf16", "int8", "int4"])
def test_added_at_load_is_the_merged_folder(ours: Path, tmp_path: Path, memory: Any) -> None:
    """Two adapters, one of them scaled, bit for bit, quantized too."""
    if memory.startswith("int"):
        pytest.importorskip("torchao")
    one, two = own(tmp_path / "one"), own(tmp_path / "two", seed=1)
    convert(ours, tmp_path / "merged", Conversion(lora=(one, f"{two}:0.5")))
    wanted = everything(tmp_path / "merged", memory=memory)
    got = everything(ours, memory=memory, lora=[one, (two, 0.5)])
    assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)
    plain = everything(ours, memory=memory)
    assert not all(torch.equal(got[key], plain[key]) for key in wanted)


def test_a_quantized_folder_takes_no_adapter(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    convert(ours, tmp_path / "int8", Conversion(quantize="int8"))
    monkeypatch.setattr("irg.model.placement.loading.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="quantized to int8, so no adapter can be merged"):
        load_with_plan(tmp_path / "int8", lora=[own(tmp_path / "one")])


@pytest.mark.parametrize("memory", ["bf16", "offload"])
def test_generate_with_adapters_draws_what_the_merged_folder_draws(
    ours: Path, tmp_path: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = own(tmp_path / "one"), own(tmp_path / "two", seed=1, alpha=50.0)
    convert(ours, tmp_path / "merged", Conversion(lora=(one, f"{two}:2")))
    words = ["generate", "a cat", "--mode", "direct", "--size", "32", "--num-timesteps", "3", "--device", "cpu"]
    words += ["--quiet", "--memory", memory]
    loras = ["--lora", str(one), "--lora", f"{two}:2"]
    for name, model, more in (("a", ours, loras), ("b", tmp_path / "merged", []), ("c", ours, [])):
        assert main([*words, "--model", str(model), "--out", str(tmp_path / name), *more]) == 0
    a, b, c = (Trajectory.load(tmp_path / name) for name in "abc")
    assert a.image.tobytes() == b.image.tobytes() != c.image.tobytes()  # type: ignore[union-attr]
    told = {"weights": "weights", "precision": "bf16", "lora": [f"{one}:1", f"{two}:2"]}
    assert told.items() <= a.loaded.items() and a.loaded["memory"] == memory
    assert main([*words, "--model", str(ours), "--lora", "nowhere", "--out", str(tmp_path / "d")]) == 2
    assert "nowhere: no such adapter" in capsys.readouterr().err and not (tmp_path / "d").exists()


def test_from_pretrained_takes_adapters(ours: Path, tmp_path: Path) -> None:
    lora = own(tmp_path / "one")
    convert(ours, tmp_path / "merged", Conversion(lora=(lora,)))
    wanted = load_model(tmp_path / "merged", torch.bfloat16).model.state_dict()
    for given in (lora, str(lora), [lora], [(lora, 1.0)], [f"{lora}:1"]):
        pipe = IRGPipeline.from_pretrained(ours, "cpu", memory="bf16", lora=given)  # type: ignore[arg-type]
        got = pipe.engine.runner.model.state_dict()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted) and pipe.loaded["lora"] == [f"{lora}:1"]
    assert load_file(ours / "weights.safetensors").keys() == wanted.keys()
