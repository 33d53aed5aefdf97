"""The memory ladder: what is estimated, what is picked, what is loaded; 7 B parameters by headers alone."""

import json
import struct
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from irg.engine.runner import Runner
from irg.model.network.config import bagel_7b
from irg.model.placement.devices import layer_devices
from irg.model.weights.checkpoint import CheckedFolder, LoadedModel, check_folder, load_model, save_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.initialize import write_folder
from irg.model.weights.quantize import QuantizedLinear
from irg.reasoning import memory
from irg.reasoning.describe import describe, in_lines
from irg.reasoning.memory import (
    Load,
    cache_slots,
    choose,
    estimate,
    free_memory,
    load_on_rung,
    parse_devices,
    weight_bytes,
)
from irg.reasoning.pipeline import BUNDLED
from irg.sequence.parts import Latents, Patches, Target, Text

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
GB = 1_000_000_000


@pytest.fixture(scope="session")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BAGEL-7B's folder with files of holes: 29 GB that take a few hundred kB."""
    folder = tmp_path_factory.mktemp("seven")
    write_folder(folder, bagel_7b(), seed=None)
    return folder


@pytest.fixture(scope="session")
def checked(seven: Path) -> CheckedFolder:
    return check_folder(seven)


# --------------------------------------------------------------------------------------------------------- the estimate


def test_info_counts_the_published_model(seven: Path) -> None:
    """Literal numbers of the published checkpoint: 1223 tensors, 14.607 B parameters, 6.526 B in one expert."""
    facts = describe(seven, [])
    assert facts.total == 14_607_260_128 and facts.autoencoder == 83_819_683
    assert facts.parameters["generation expert"] == 6_525_628_928
    assert facts.parameters["embedding and head"] == 2 * 152064 * 3584
    assert [(f.name, f.tensors, f.dtypes) for f in facts.files] == [
        ("ema.safetensors", 1223, ["BF16"]), ("ae.safetensors", 244, ["F32"]),
    ]  # fmt: skip
    assert sum(path.stat().st_blocks * 512 for path in seven.iterdir()) < 10_000_000, "headers only, holes for the rest"
    text = in_lines(facts)
    for told in ("14.607 B", "BAGEL layout", "28 layers of two experts, 3584 wide", "29.2 GB", "1024x1024   int4"):
        assert told in text, told
    json.dumps(facts.to_dict())


@pytest.mark.shared
def test_info_agrees_with_the_manifest(golden: Path, tmp_path: Path) -> None:
    """A sparse folder with the manifest's own keys and shapes: all consumed, counted as the manifest counts."""
    manifest = json.loads((golden / "bagel7b_manifest.json").read_text())
    for name, key, dtype, size in (("ema", "bagel", "BF16", 2), ("ae", "ae", "F32", 4)):
        header, end = {}, 0
        for tensor, shape in manifest[key].items():
            begin, end = end, end + size * int(torch.Size(shape).numel())
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    llm, vit = manifest["config"]["llm"], manifest["config"]["vit"]
    (tmp_path / "llm_config.json").write_text(json.dumps(llm))
    (tmp_path / "vit_config.json").write_text(json.dumps(vit | {"num_hidden_layers": vit["num_hidden_layers"] + 1}))
    facts, counts = describe(tmp_path, []), manifest["counts"]
    assert facts.total == counts["bagel_params"] and facts.autoencoder == counts["ae_params"]
    assert facts.parameters["generation expert"] == counts["gen_expert_params"]
    assert [f.tensors for f in facts.files] == [counts["bagel_keys"], counts["ae_keys"]]


def test_the_aims_hold_for_the_real_model(checked: CheckedFolder) -> None:
    """Whole IRG loop at 1024 x 1024: at most 40 GB in bf16, 24 GB in int8, 16 GB in int4, by the estimate."""
    needs = {rung: estimate(checked, rung, Load()) for rung in ("bf16", "int8", "int4", "offload")}
    assert needs["bf16"].weights == 2 * (14_607_260_128 + 83_819_683)
    totals = {rung: need.total / GB for rung, need in needs.items()}
    assert 33 < totals["bf16"] < 40 and 20 < totals["int8"] < 24 and 14 < totals["int4"] < 16
    assert totals["offload"] < 11 and needs["offload"].host == weight_bytes(checked, "bf16")["layers"]


def test_offloaded_weights_are_somewhere(checked: CheckedFolder) -> None:
    whole = estimate(checked, "bf16", Load())
    for resident in (0, 10, 27):
        need = estimate(checked, "offload", Load(), resident=resident)
        room = min(2, 28 - resident) * weight_bytes(checked, "offload")["largest"]
        assert need.weights + need.host == whole.weights + room
    assert estimate(checked, "offload", Load(), resident=28).weights == whole.weights


@pytest.mark.parametrize("rung", ["float32", "bf16", "int8", "int4"])
def test_weights_are_counted_to_the_byte(tmp_path: Path, tiny_loaded: LoadedModel, rung: Any) -> None:
    if rung in ("int8", "int4"):
        pytest.importorskip("torchao")
    save_model(tmp_path, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    placed = load_on_rung(tmp_path, "auto" if rung == "float32" else rung)
    held = [t for net in (placed.loaded.model, placed.loaded.autoencoder) for t in net.parameters()]
    held += list(placed.loaded.model.buffers())
    counted = weight_bytes(check_folder(tmp_path), rung)
    assert counted["layers"] + counted["other"] == sum(t.nbytes for t in held)


def test_slots_are_those_of_a_real_run(tiny_loaded: LoadedModel) -> None:
    """The engine's own cache, fed the parts of one IRG request, ends with as many slots as are estimated."""
    config = tiny_loaded.config
    load = Load(128, 128, thought_tokens=250)
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
    context, zeros = runner.cache.new(), torch.zeros
    runner.extend([(context, [Text((1,) * 118)])])
    runner.extend([(context, [Text((1,) * 78)])])
    for turn in range(2):
        for _ in range(252):
            runner.feed([context], [[1]])
        if turn == 0:
            latents = Latents((8, 8), zeros(config.autoencoder.z_channels, 16, 16))
            runner.extend([(context, [latents, Patches((8, 8), zeros(64, config.vit.patch_values))])])
    runner.branches([(context, Target((8, 8)).grid)])
    assert runner.cache.slots == cache_slots(config, load)


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and nobody has let go of yet."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.seen:
                    self.seen.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def test_activations_are_bounded_by_the_estimate() -> None:
    """A denoising step of three branches on irg-mini, every tensor counted: within the estimate, and not far below."""
    loaded = load_model(BUNDLED / "mini", torch.bfloat16)
    runner = Runner(loaded.model, loaded.autoencoder)
    contexts = [runner.cache.new() for _ in range(3)]
    runner.extend([(context, [Text((5,) * 4)]) for context in contexts])
    branches = runner.branches([(context, (8, 8)) for context in contexts])
    noise = torch.zeros(3 * 64, loaded.config.latent_values)
    known = [*loaded.model.parameters(), *runner.cache.keys_RLKE, *runner.cache.values_RLKE, noise]
    with torch.inference_mode(), _Live(known) as live:
        branches.velocity(noise, torch.tensor([0.5]))
    need = estimate(check_folder(BUNDLED / "mini"), "bf16", Load(128, 128)).activations
    assert 0.5 * need < live.peak < 1.15 * need


# ----------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("free", "rung"),
    [(80, "bf16"), (36, "bf16"), (24, "int8"), (22, "int8"), (16, "int4"), (12, "offload"), (4, "offload")],
)
def test_auto_takes_the_first_that_fits(checked: CheckedFolder, free: int, rung: str) -> None:
    pytest.importorskip("torchao")
    choice = choose(checked, "auto", [GPU], free=free * GB)
    assert choice.rung == rung and choice.reason.startswith(f"{rung} needs about ")
    assert f"cuda:0 has {free}.0 GB free" in choice.reason and "\n" not in choice.reason
    assert ("may not be enough" in choice.reason) == (free == 4)
    if rung != "bf16":
        assert "(bf16 needs 34." in choice.reason


def test_as_many_requests_run_together_as_fit(checked: CheckedFolder) -> None:
    """A whole benchmark's batch must not overflow what holds one request."""
    cuda = [GPU]
    one = estimate(checked, "bf16", Load()).total
    more = estimate(checked, "bf16", Load(requests=2)).total - one
    for free, together in ((one, 1), (one + more - 1, 1), (one + 3 * more, 4), (one - 1, 1)):
        choice = choose(checked, "bf16", cuda, free=free)
        assert (choice.together, choice.precision) == (together, "bf16")
    assert choose(checked, "auto", cuda, free=int(9e9)).together == 1  # offload
    assert choose(checked, "int8", cuda, free=int(80e9)).precision == "int8"


def test_without_torchao_auto_says_what_would_help(checked: CheckedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.model.weights.quantize.available", lambda: False)
    choice = choose(checked, "auto", [GPU], free=24 * GB)
    assert choice.rung == "offload" and "int8 needs pip install 'irg[quant]'" in choice.reason


def test_offload_keeps_as_many_layers_as_fit(checked: CheckedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own choice; asked for by name it keeps none."""
    monkeypatch.setattr("irg.model.weights.quantize.available", lambda: False)
    choices = [choose(checked, "auto", [GPU], free=free * GB) for free in (8, 12, 20, 34)]
    kept = [choice.resident for choice in choices]
    assert kept[0] == 0 and kept == sorted(kept) and 0 < kept[2] < kept[3] <= 26
    assert all(choice.estimate.total <= free * GB for choice, free in zip(choices[1:], (12, 20, 34), strict=True))
    assert choose(checked, "offload", [GPU], free=80 * GB).resident == 0


def test_on_a_cpu_float32_comes_first(checked: CheckedFolder) -> None:
    assert choose(checked, "auto", [CPU], free=100 * GB).rung == "float32"
    assert choose(checked, "auto", [CPU], free=50 * GB).rung == "bf16"


def test_two_devices_add_up_and_never_offload(checked: CheckedFolder) -> None:
    two = [GPU, torch.device("cuda:1")]
    assert choose(checked, "auto", two, free=48 * GB).rung == "bf16"
    with pytest.raises(ValueError, match="on no rung"):
        choose(checked, "auto", two, free=9 * GB)
    with pytest.raises(ValueError, match="needs one device"):
        choose(checked, "offload", two, free=48 * GB)


def test_the_first_of_two_devices_gets_fewer_layers(
    tmp_path: Path, tiny_loaded: LoadedModel, checked: CheckedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the embedding, the heads, the ViT and the autoencoder besides."""
    two = [GPU, torch.device("cuda:1")]
    monkeypatch.setattr(memory, "free_memory", lambda device: 24 * GB)
    placed = layer_devices(28, two, memory._shares(checked, choose(checked, "bf16", two, free=48 * GB), two))
    assert placed.count(GPU) == 12 and placed == sorted(placed, key=str)


def test_a_quantized_folder_stays_what_it_is(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    pytest.importorskip("torchao")
    save_model(tmp_path / "a", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    convert(tmp_path / "a", tmp_path / "b", Conversion(quantize="int4"))
    checked = check_folder(tmp_path / "b")
    assert choose(checked, "auto", [CPU], free=GB).rung == "int4"
    assert choose(checked, "auto", [CPU], free=1000).rung == "offload"
    with pytest.raises(ValueError, match="quantized to int4: memory must be auto, int4 or offload"):
        choose(checked, "int8", [CPU], free=GB)
    for asked in ("auto", "offload"):
        placed = load_on_rung(tmp_path / "b", asked)  # type: ignore[arg-type]
        assert isinstance(placed.loaded.model.language_model.model.layers[0].mlp.up_proj, QuantizedLinear)
    facts = describe(tmp_path / "b", [(64, 64)])
    assert facts.quantized == "int4" and list(facts.memory["64x64"]) == ["int4", "offload"]
    assert facts.total == describe(tmp_path / "a", [(64, 64)]).total


def test_unknown_words_are_refused(checked: CheckedFolder) -> None:
    with pytest.raises(ValueError, match="memory must be one of auto, bf16, int8, int4, offload"):
        choose(checked, "int2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights must be ema or model"):
        check_folder(checked.weights_file.parent, "both")  # type: ignore[arg-type]
    for text, told in (("gpu0", "unknown"), ("cuda:99", "is not there"), ("cpu,cpu", "different"), ("", "unknown")):
        with pytest.raises(ValueError, match=told):
            parse_devices(text)
    assert parse_devices("cpu") == [CPU] and parse_devices(CPU) == [CPU]
    assert free_memory(CPU) > 1_000_000
