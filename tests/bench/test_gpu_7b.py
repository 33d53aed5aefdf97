"""The GPU benchmark, run whole on a network that a CPU manages; its counts against PyTorch's own counter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpu_7b import GpuOptions, main, random_networks
from irg.model.network.config import bagel_7b, tiny
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import narrower
from irg.sequence.parts import Latents, Patches, Text
from work import Counted, CountingRunner, NetworkWork

SMALL: dict[str, Any] = {"config": "tiny", "size": 32, "repeats": 1, "device": "cpu", "dtype": "float32"}


def test_every_line_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = GpuOptions(**SMALL, num_timesteps=4, thinking_tokens=5, memory_modes=("bf16", "offload"), json=out)
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "TFLOP/s" in printed and printed.count("| bf16 |") == printed.count("| offload |") == 3
    results = json.loads(out.read_text())["results"]
    assert [r["mode"] for r in results[:3]] == ["direct", "think", "irg"]
    for result in results:
        assert sum(result["seconds"].values()) <= result["total"]
        assert result["seconds"]["denoise"] > 0 and result["work"]["denoise"]["flops"] > 0
        assert (result["seconds"]["decode"] > 0) == (result["mode"] != "direct")
    direct, think, irg = results[:3]
    assert irg["work"]["denoise"]["flops"] > 2 * think["work"]["denoise"]["flops"] > direct["work"]["denoise"]["flops"]


def test_quantized_modes_run(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    options = GpuOptions(**SMALL, num_timesteps=3, thinking_tokens=3, modes=("think",), memory_modes=("int8", "int4"))
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "| int8 | think |" in printed and "| int4 | think |" in printed


def test_without_a_gpu_there_is_advice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(GpuOptions()) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_counted_flops_are_pytorchs(tiny_loaded: LoadedModel) -> None:
    """Prefill of text and images, decoding, two guidance branches, the autoencoder both ways: within 1 %."""
    runner = CountingRunner(tiny_loaded.model, tiny_loaded.autoencoder)
    config = runner.config
    context, other = runner.cache.new(), runner.cache.new()
    latents = Latents((4, 4), torch.zeros(config.autoencoder.z_channels, 8, 8))
    patches = Patches((3, 2), torch.zeros(6, config.vit.patch_values))
    steps = {
        "prefill": lambda: runner.extend([(context, [Text((5, 6, 7)), latents, patches]), (other, [Text((8,))])]),
        "decode": lambda: runner.feed([context], [[1]]),
        "denoise": lambda: runner.branches([(context, (4, 4)), (other, (4, 4))]).velocity(
            torch.zeros(32, config.latent_values), torch.zeros(1)
        ),
        "vae": lambda: runner.decode_latents(runner.read_latents(torch.zeros(1, 3, 64, 64))),
    }
    steps["vae"]()  # its formula runs the network on the meta device, once, and would be counted too
    runner.counted = Counted()
    for stage, step in steps.items():
        # attention as two matrix products: the counter does not know the CPU's fused one
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            step()
        counted = runner.counted.stages[stage].flops
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.01), stage


def test_bytes_of_the_real_model() -> None:
    """A decoded token of BAGEL-7B moves one expert and the head: 13.05 + 1.09 GB in bf16."""
    with torch.device("meta"):
        work = NetworkWork(UnifiedModel(bagel_7b()).to(torch.bfloat16))
    assert work.understanding == work.generation
    assert work.understanding.bytes == pytest.approx(13.05e9, rel=0.001)
    token = work.forward([(1, 1000)], 1, 0) + work.linear(work.head, 1)
    assert token.bytes == pytest.approx(13.05e9 + 1.09e9 + 57_344_000, rel=0.001)
    assert token.flops == pytest.approx(2 * (6.525e9 + 0.545e9) + 4 * 3584 * 1000 * 28, rel=0.001)


def test_random_networks_keep_activations_alive() -> None:
    model, autoencoder = random_networks(narrower(tiny(), 1), "bf16", torch.device("cpu"))
    assert not any(t.is_meta for net in (model, autoencoder) for t in net.state_dict().values())
    assert model.language_model.model.norm.weight.eq(1).all() and model.vae2llm.bias.eq(0).all()
    assert model.language_model.lm_head.weight.float().std() == pytest.approx(32**-0.5, rel=0.1)
