"""Memory modes: what is estimated, which is chosen, what is loaded; 7 B parameters by headers alone."""

import json
import struct
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from irg.engine.runner import Runner
from irg.engine.token_sampling import Position, choose
from irg.model.describe import describe, in_lines
from irg.model.network.autoencoder import build_autoencoder
from irg.model.network.config import bagel_7b
from irg.model.network.unified import UnifiedModel
from irg.model.placement import loading
from irg.model.placement.devices import free_memory, layer_devices, parse_devices
from irg.model.placement.kv_cache_size import RowKind
from irg.model.placement.loading import load_with_plan
from irg.model.placement.memory_plan import RequestShape, estimate, plan_memory, weight_bytes
from irg.model.weights.checkpoint import CheckedFolder, LoadedModel, check_folder, load_model, save_model
from irg.model.weights.convert import Conversion, convert
from irg.model.weights.folders import BUNDLED
from irg.model.weights.initialize import narrower, write_folder
from irg.model.weights.quantize import QuantizedLinear
from irg.reasoning.pipeline import IRGPipeline
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


def test_the_targets_hold_for_the_real_model(checked: CheckedFolder) -> None:
    """Whole IRG loop at 1024 x 1024: at most 40 GB in bf16, 24 GB in int8, 16 GB in int4, by the estimate."""
    needs = {mode: estimate(checked, mode, RequestShape()) for mode in ("bf16", "int8", "int4", "offload")}
    assert needs["bf16"].weights == 2 * (14_607_260_128 + 83_819_683)
    totals = {mode: need.total / GB for mode, need in needs.items()}
    assert 33 < totals["bf16"] < 40 and 20 < totals["int8"] < 24 and 14 < totals["int4"] < 16
    assert totals["offload"] < 11 and needs["offload"].host == weight_bytes(checked, "bf16")["layers"]


def test_offloaded_weights_are_somewhere(checked: CheckedFolder) -> None:
    whole = estimate(checked, "bf16", RequestShape())
    for resident in (0, 10, 27):
        need = estimate(checked, "offload", RequestShape(), resident_layers=resident)
        room = min(2, 28 - resident) * weight_bytes(checked, "offload")["largest"]
        assert need.weights + need.host == whole.weights + room
    assert estimate(checked, "offload", RequestShape(), resident_layers=28).weights == whole.weights


@pytest.mark.parametrize("mode", ["float32", "bf16", "int8", "int4", "fp8"])
def test_weights_are_counted_to_the_byte(tmp_path: Path, tiny_loaded: LoadedModel, mode: Any) -> None:
    if mode in ("int8", "int4"):
        pytest.importorskip("torchao")
    save_model(tmp_path, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    loaded, _ = load_with_plan(tmp_path, "auto" if mode == "float32" else mode)
    held = [t for net in (loaded.model, loaded.autoencoder) for t in net.parameters()]
    held += list(loaded.model.buffers())
    counted = weight_bytes(check_folder(tmp_path), mode)
    assert counted["layers"] + counted["other"] == sum(t.nbytes for t in held)


@pytest.mark.parametrize("requests", [1, 5])
def test_the_cache_is_as_large_as_planned(tmp_path: Path, tiny_loaded: LoadedModel, requests: int) -> None:
    """The engine's own cache, given the parts of IRG requests, ends with as many bytes as are estimated."""
    config = tiny_loaded.config
    shape = RequestShape(128, 128, thinking_tokens=250, requests=requests)
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
    cache, zeros = runner.cache, torch.zeros
    cache.expect([(requests, slots) for slots in shape.cache_slots(config)])
    main = [cache.new() for _ in range(requests)]
    runner.extend([(context, [Text((1,) * 118)]) for context in main])
    runner.extend([(context, [Text((1,) * 78)]) for context in main])
    read = [
        Latents((8, 8), zeros(config.autoencoder.z_channels, 16, 16)),
        Patches((8, 8), zeros(64, config.vit.patch_values)),
    ]
    for turn in range(2):
        for _ in range(252):
            runner.feed(main, [[1]] * requests)
        if turn == 0:
            runner.extend([(context, read) for context in main])
    images_only = [cache.fork(context, 450 + 130, kind=RowKind.TEXT_FREE) for context in main]
    texts_only = [cache.fork(context, 450, kind=RowKind.IMAGE_FREE) for context in main]
    runner.extend([(context, [Text((1,) * 250)]) for context in texts_only])
    unconditional = (*images_only, *texts_only)
    runner.branches([(context, Target((8, 8)).grid) for context in (*main, *unconditional)])
    save_model(tmp_path, config, tiny_loaded.model, tiny_loaded.autoencoder)
    assert max(context.length for context in main) + 66 == shape.cache_slots(config)[RowKind.MAIN]
    assert cache.nbytes == estimate(check_folder(tmp_path), "float32", shape).cache


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
    known = [*loaded.model.parameters(), *runner.cache.keys_SKE, *runner.cache.values_SKE, noise]
    with torch.inference_mode(), _Live(known) as live:
        branches.velocity(noise, torch.tensor([0.5]))
    need = estimate(check_folder(BUNDLED / "mini"), "bf16", RequestShape(128, 128)).activations
    assert 0.5 * need < live.peak < 1.15 * need


@pytest.mark.parametrize("requests", [1, 3, 8])
def test_the_network_takes_what_is_planned(checked: CheckedFolder, requests: int) -> None:
    """BAGEL-7B's widths at 1024 x 1024 on the meta device (two layers: activations are those of one), every tensor
    counted: what drawing holds is planned; looking at an image and decoding drafted, sampled tokens hold less."""
    config = replace(checked.config, decoder=replace(checked.config.decoder, num_hidden_layers=2))
    with torch.device("meta"):
        model, autoencoder = UnifiedModel(config).to(torch.bfloat16), build_autoencoder(config.autoencoder)
        pixels, patches = torch.empty(16, 128, 128), torch.empty(4900, config.vit.patch_values)
        noise = torch.empty(3 * requests * 4096, config.latent_values)
    runner = Runner(model, autoencoder)
    runner.cache.expect([(requests, 14_000)] * 3)
    contexts = [runner.cache.new() for _ in range(requests)]
    runner.extend([(context, [Text((5,) * 100)]) for context in contexts])

    def look() -> None:
        runner.extend([(one, [Latents((64, 64), pixels), Patches((70, 70), patches)]) for one in contexts])

    def decode() -> None:
        logits_BNV = runner.feed(contexts, [[5] * 8] * requests)
        choose(logits_BNV.flatten(0, 1), [Position(0.7, 0.5, top_k=50, top_p=0.9)] * 8 * requests, logprobs=True)

    def draw() -> None:
        branches.velocity(noise, torch.tensor([0.5]))

    peaks = {}
    for work in (look, decode, draw):
        if work is draw:
            others = [runner.cache.fork(one, 100, 100) for one in contexts for _ in range(2)]
            branches = runner.branches([(one, (64, 64)) for one in (*contexts, *others)], times=(0.5,))
        known = [*model.parameters(), *runner.cache.keys_SKE, *runner.cache.values_SKE, pixels, patches, noise]
        with torch.inference_mode(), _Live(known) as live:
            work()
        peaks[work.__name__] = live.peak
    planned = estimate(checked, "bf16", RequestShape(requests=requests)).activations
    assert peaks["draw"] == pytest.approx(planned, rel=0.1)
    assert peaks["decode"] < peaks["look"] < planned


@pytest.mark.gpu
def test_a_request_takes_what_is_planned_of_a_gpu(tmp_path: Path) -> None:
    """A network of BAGEL's widths over four and with its autoencoder: all that PyTorch allocates for a whole loop."""
    config = narrower(bagel_7b(), 4)
    write_folder(tmp_path, config)
    pipe = IRGPipeline.from_pretrained(tmp_path, device="cuda", memory="bf16")
    torch.cuda.reset_peak_memory_stats()
    drawing = {"num_timesteps": 3, "improve_num_timesteps": 3, "improve_cfg_img_scale": 2.0, "size": "1024x1024"}
    pipe("three red apples", mode="irg", max_think_tokens=300, temperature=0.0, **drawing)
    need = estimate(check_folder(tmp_path), "bf16", RequestShape())
    assert torch.cuda.max_memory_allocated() == pytest.approx(need.total - need.reserve, rel=0.1)


@pytest.mark.parametrize("requests", [1, 8])
def test_decoding_an_image_takes_what_is_planned(checked: CheckedFolder, requests: int) -> None:
    """FLUX's autoencoder at 1024 x 1024 on the meta device, every tensor counted; at most two images at a time."""
    config = checked.config.autoencoder
    with torch.device("meta"), torch.inference_mode():
        autoencoder = build_autoencoder(config).to(torch.bfloat16)
        latents = torch.empty(min(requests, 2), config.z_channels, 128, 128, dtype=torch.bfloat16)
        with _Live([*autoencoder.parameters(), latents]) as live:
            autoencoder.decode(latents)
    planned = estimate(checked, "bf16", RequestShape(requests=requests)).autoencoder
    assert live.peak == pytest.approx(planned, rel=0.1)


# ----------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("free", "mode"),
    [(80, "bf16"), (36, "bf16"), (24, "int8"), (22, "int8"), (16, "int4"), (12, "offload"), (4, "offload")],
)
def test_auto_takes_the_first_that_fits(checked: CheckedFolder, free: int, mode: str) -> None:
    pytest.importorskip("torchao")
    plan = plan_memory(checked, "auto", [GPU], free=free * GB)
    assert plan.mode == mode and plan.reason.startswith(f"{mode} needs about ")
    assert f"cuda:0 has {free}.0 GB free" in plan.reason and "\n" not in plan.reason
    assert ("may not be enough" in plan.reason) == (free == 4)
    if mode != "bf16":
        assert "(bf16 needs 33." in plan.reason


def test_as_many_requests_run_together_as_fit(checked: CheckedFolder) -> None:
    """A whole benchmark's batch must not overflow what holds one request."""
    cuda = [GPU]
    one = estimate(checked, "bf16", RequestShape()).total
    more = estimate(checked, "bf16", RequestShape(requests=2)).total - one
    for free, together in ((one, 1), (one + more - 1, 1), (one + 3 * more, 4), (one - 1, 1)):
        plan = plan_memory(checked, "bf16", cuda, free=free)
        assert (plan.max_concurrent_requests, plan.precision) == (together, "bf16")
    assert plan_memory(checked, "auto", cuda, free=int(9e9)).max_concurrent_requests == 1  # offload
    assert plan_memory(checked, "int8", cuda, free=int(80e9)).precision == "int8"


def test_without_torchao_auto_says_what_would_help(checked: CheckedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irg.model.weights.quantize.available", lambda kind: False)
    plan = plan_memory(checked, "auto", [GPU], free=24 * GB)
    assert plan.mode == "offload" and "int8 needs pip install 'irg[quant]'" in plan.reason


def test_offload_keeps_as_many_layers_as_fit(checked: CheckedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own choice; asked for by name it keeps none."""
    monkeypatch.setattr("irg.model.weights.quantize.available", lambda kind: False)
    plans = [plan_memory(checked, "auto", [GPU], free=free * GB) for free in (8, 12, 20, 33)]
    kept = [plan.resident_layers for plan in plans]
    assert kept[0] == 0 and kept == sorted(kept) and 0 < kept[2] < kept[3] <= 26
    assert all(plan.estimate.total <= free * GB for plan, free in zip(plans[1:], (12, 20, 33), strict=True))
    assert plan_memory(checked, "offload", [GPU], free=80 * GB).resident_layers == 0


def test_on_a_cpu_float32_comes_first(checked: CheckedFolder) -> None:
    assert plan_memory(checked, "auto", [CPU], free=100 * GB).mode == "float32"
    assert plan_memory(checked, "auto", [CPU], free=50 * GB).mode == "bf16"


def test_two_devices_add_up_and_never_offload(checked: CheckedFolder) -> None:
    two = [GPU, torch.device("cuda:1")]
    assert plan_memory(checked, "auto", two, free=48 * GB).mode == "bf16"
    with pytest.raises(ValueError, match="does not fit"):
        plan_memory(checked, "auto", two, free=9 * GB)
    with pytest.raises(ValueError, match="needs one device"):
        plan_memory(checked, "offload", two, free=48 * GB)


def test_the_first_of_two_devices_gets_fewer_layers(
    tmp_path: Path, tiny_loaded: LoadedModel, checked: CheckedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the embedding, the heads, the ViT and the autoencoder besides."""
    two = [GPU, torch.device("cuda:1")]
    monkeypatch.setattr(loading, "free_memory", lambda device: 24 * GB)
    placed = layer_devices(28, two, loading.layer_shares(checked, plan_memory(checked, "bf16", two, free=48 * GB), two))
    assert placed.count(GPU) == 12 and placed == sorted(placed, key=str)


def test_a_quantized_folder_stays_what_it_is(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    pytest.importorskip("torchao")
    save_model(tmp_path / "a", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    convert(tmp_path / "a", tmp_path / "b", Conversion(quantize="int4"))
    checked = check_folder(tmp_path / "b")
    assert plan_memory(checked, "auto", [CPU], free=GB).mode == "int4"
    assert plan_memory(checked, "auto", [CPU], free=1000).mode == "offload"
    with pytest.raises(ValueError, match="quantized to int4: memory must be auto, int4 or offload"):
        plan_memory(checked, "int8", [CPU], free=GB)
    for asked in ("auto", "offload"):
        loaded, _ = load_with_plan(tmp_path / "b", asked)  # type: ignore[arg-type]
        assert isinstance(loaded.model.language_model.model.layers[0].mlp.up_proj, QuantizedLinear)
    facts = describe(tmp_path / "b", [(64, 64)])
    assert facts.quantized == "int4" and list(facts.memory["64x64"]) == ["int4", "offload"]
    assert facts.total == describe(tmp_path / "a", [(64, 64)]).total


def test_a_stored_fp8_folder_is_counted_as_it_is(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    """Its numbers are floating-point, and yet no bfloat16; it is in no other program's format; it needs no torchao."""
    save_model(tmp_path / "a", tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder, torch.bfloat16)
    convert(tmp_path / "a", tmp_path / "b", Conversion(quantize="fp8"))
    plain, stored = check_folder(tmp_path / "a"), check_folder(tmp_path / "b")
    assert weight_bytes(stored, "fp8") == weight_bytes(plain, "fp8")
    facts = describe(tmp_path / "b", [(64, 64)])
    assert (facts.quantized, facts.weight_format) == ("fp8", None)
    assert facts.total == describe(tmp_path / "a", [(64, 64)]).total


def test_unknown_words_are_refused(checked: CheckedFolder) -> None:
    with pytest.raises(ValueError, match="memory must be one of auto, bf16, int8, int4, fp8, offload"):
        plan_memory(checked, "int2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no weights called 'both'"):
        check_folder(checked.weights_file.parent, "both")
    refusals = {
        "gpu0": "unknown",
        "": "unknown",
        "cuda:99": "is not there",
        "mps": "not supported",
        "cpu,cpu": "different",
    }
    for text, told in refusals.items():
        with pytest.raises(ValueError, match=told):
            parse_devices(text)
    assert parse_devices("cpu") == [CPU] and parse_devices(CPU) == [CPU]
    assert free_memory(CPU) > 1_000_000
