"""One model run by two processes: the results of one, and each has its share of the work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import Ended, torchrun

from irg.model.network.config import DecoderConfig
from irg.model.placement.processes import join
from irg.model.placement.tensor_parallel import check_heads
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import Settings

from .parallel_worker import OPTIONS, PROMPTS, drawn


@pytest.fixture(scope="module")
def alone() -> dict[str, list]:
    """What one process draws."""
    pipe = IRGPipeline.from_pretrained("mini", device="cpu", dtype=torch.float32)
    return drawn(pipe(PROMPTS, seed=[5, 6], critic="self", **OPTIONS))  # as several processes do it by themselves


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Ended, dict[str, Any]]]:
    """How the two processes ended, and what each got by the way to share the work."""
    folder = tmp_path_factory.mktemp("parallel")
    ended = torchrun(Path(__file__).with_name("parallel_worker.py"), [], folder, 2)
    for process in ended:
        assert process.code == 0, process.error
    return [(process, torch.load(folder / f"{rank}.pt")) for rank, process in enumerate(ended)]


@pytest.mark.parametrize("kind", ["tensor", "guidance"])
def test_two_processes_draw_what_one_draws(
    kind: str, alone: dict[str, list], together: list[tuple[Ended, dict[str, Any]]]
) -> None:
    both = [got[kind] for _, got in together]
    for got in both:
        assert got["texts"] == alone["texts"]
        assert len(got["images"]) == len(alone["images"]) == 4
        for mine, expected in zip(got["images"], alone["images"], strict=True):
            assert (mine.int() - expected.int()).abs().max() <= 1
    assert both[0]["drawn_seeds"] == both[1]["drawn_seeds"]
    for mine, other in zip(both[0]["images"], both[1]["images"], strict=True):
        assert torch.equal(mine, other)
    decoder = IRGPipeline.from_pretrained("mini", device="cpu").config.decoder
    if kind == "tensor":
        assert [got["rows"] for got in both] == [decoder.intermediate_size // 2] * 2
        assert [got["cache_heads"] for got in both] == [decoder.num_key_value_heads // 2] * 2
    else:  # two images of 64 tokens; the first ones have two branches, the second ones one
        assert [got["cache_heads"] for got in both] == [decoder.num_key_value_heads] * 2
        assert set(both[0]["tokens"]) == set(both[1]["tokens"]) == {128, 64}


def test_only_the_first_process_writes(together: list[tuple[Ended, dict[str, Any]]]) -> None:
    (first, _), (second, _) = together
    assert "Written to irg-out" in first.out
    assert second.out == ""


def test_mistakes_are_told_before_the_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="parallel must be one of tensor, guidance, got 'pipeline'"):
        join("pipeline")  # type: ignore[arg-type]
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="needs several processes: torchrun"):
        join("tensor")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="give cpu or cuda, not 'cuda:0,cuda:1'"):
        join("tensor", "cuda:0,cuda:1")
    with pytest.raises(ValueError, match="3 processes can't share the model's num_attention_heads, 4"):
        check_heads(DecoderConfig(8, 32, 64, 1, 4, 2), 3)
    with pytest.raises(ValueError, match="give budget_images, not budget_seconds"):
        Settings(budget_seconds=3.0).check_same_everywhere()
    with pytest.raises(ValueError, match="endpoint:x may answer each process differently"):
        Settings(critic="endpoint:x").check_same_everywhere()
