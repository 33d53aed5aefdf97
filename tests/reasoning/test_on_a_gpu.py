"""The whole loop on a GPU: what it gives on the CPU, in every memory mode, compiled or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from irg.model.network.config import tiny
from irg.model.weights.initialize import write_folder
from irg.reasoning.output import IRGOutput
from irg.reasoning.pipeline import IRGPipeline

pytestmark = pytest.mark.gpu
LOOP: dict[str, Any] = {"mode": "irg", "size": "64x64", "seed": 3, "temperature": 0.0, "max_think_tokens": 12}
DRAWING = {"num_timesteps": 4, "improve_num_timesteps": 4, "improve_cfg_img_scale": 2.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., IRGOutput]:
    """Thinking, an image, a look at it, a reflection and a second image, by a tiny model with random weights."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny(), dtype=torch.float32)

    def loop(**loading: Any) -> IRGOutput:
        return IRGPipeline.from_pretrained(folder, **loading)("three red apples", **LOOP, **DRAWING)

    return loop


def texts(output: IRGOutput) -> list[str | None]:
    return [turn.thinking for turn in output.trajectory.turns]


def test_float32_is_the_cpus(run: Callable[..., IRGOutput]) -> None:
    """Equal texts, and images but for a level here and there."""
    wanted, got = (run(device=device, dtype=torch.float32) for device in ("cpu", "cuda"))
    assert texts(got) == texts(wanted)
    for one, other in zip(got.trajectory.turns, wanted.trajectory.turns, strict=True):
        assert one.image is not None and other.image is not None
        apart = torch.tensor([abs(a - b) for a, b in zip(one.image.tobytes(), other.image.tobytes(), strict=True)])
        assert (apart > 2).float().mean() < 0.01


@pytest.mark.parametrize("memory", ["bf16", "int8", "int4", "fp8", "offload"])
def test_every_memory_mode_runs(run: Callable[..., IRGOutput], memory: str) -> None:
    """Random weights choose among near ties, so texts may differ; their number and the images' sizes do not."""
    if memory in ("int8", "int4"):
        pytest.importorskip("torchao")
    turns = run(device="cuda", memory=memory).trajectory.turns
    assert [turn.image.size for turn in turns if turn.image is not None] == [(64, 64)] * 2


def test_compiled_texts_are_the_same(run: Callable[..., IRGOutput]) -> None:
    plain, compiled = (run(device="cuda", dtype=torch.float32, compile=flag) for flag in (False, True))
    assert texts(compiled) == texts(plain)


def test_decoding_waits_once_a_turn(run: Callable[..., IRGOutput], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts what makes the host wait; reading the chosen tokens is the one. The first turn also captures a
    graph."""
    from irg.engine.decode import TextDecoder

    step, waits = TextDecoder.step, list[int]()

    def counted(self: TextDecoder, requests: Any) -> None:
        import warnings

        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step(self, requests)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing" in str(warning.message) for warning in seen))

    monkeypatch.setattr(TextDecoder, "step", counted)
    run(device="cuda", dtype=torch.float32)
    assert len(waits) > 2 and waits[0] <= 2 and max(waits[1:]) <= 1
