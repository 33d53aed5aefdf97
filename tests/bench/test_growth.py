"""The scripts that measure and count how cost grows, on a tiny network."""

import json
from pathlib import Path

import pytest
import torch

import growth
import roofline
from gpu_7b import GpuOptions, new_runner, random_networks, run


def test_work_is_counted_by_row(tmp_path: Path) -> None:
    """Twice the requests are twice the work; an image of four times the tokens, and another round, are more."""
    out = tmp_path / "growth.json"
    options = growth.Options(
        config="tiny", requests=(1, 2), sizes=(64, 128), rounds=(1, 2), thoughts=(5, 9), num_timesteps=3, json=out
    )
    assert growth.main(options) == 0
    points = json.loads(out.read_text())["points"]
    ratio = {a["what"]: b["tflop"] / a["tflop"] for a, b in zip(points[::2], points[1::2], strict=True)}
    assert 1.99 < ratio["requests"] < 2.01
    assert ratio["size"] > 3.5 and 1.4 < ratio["rounds"] < 2 and 1 < ratio["thinking_tokens"] < 1.1
    assert [point["relative"] for point in points[::2]] == [1.0] * 4


def test_what_is_counted_beforehand_is_what_the_engine_does() -> None:
    """Two requests, two rounds, guidance in a part of the first image's steps: FLOPs and bytes of every stage."""
    config = growth.config_of(growth.Options(config="tiny"))
    asked = {"requests": 2, "size": 64, "rounds": 2, "thinking_tokens": 7, "num_timesteps": 12}
    options = GpuOptions(**asked, device="cpu", dtype="float32")
    networks = random_networks(config, "bf16", torch.device("cpu"), torch.float32)
    done = run(new_runner(networks, options), options, "bf16", "irg", options.num_timesteps).work
    for stage, work in roofline.LoopWork(config, torch.float32).count(roofline.Loop(**asked)).items():
        assert (work.flops, work.bytes) == pytest.approx((done[stage].flops, done[stage].bytes), rel=1e-9), stage


def test_the_roofline_is_told(tmp_path: Path) -> None:
    """A stage takes as long as the slower of its products and its copies."""
    out = tmp_path / "counted.json"
    few = roofline.Options(
        config="tiny", flops=1e12, bandwidth=1e9, requests=(1, 2), sizes=(64,), rounds=(1,), thoughts=(5,), json=out
    )
    assert roofline.main(few) == 0
    one, two = json.loads(out.read_text())["points"][:2]
    assert two["stages"]["denoise"] == pytest.approx(2 * one["stages"]["denoise"])  # bound by products
    assert one["stages"]["decode"] < two["stages"]["decode"] < 2 * one["stages"]["decode"]  # by the weights' bytes
    assert 1.99 < two["cache"] / one["cache"] < 2.01
