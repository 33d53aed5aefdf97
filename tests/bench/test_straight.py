"""The straight way of running IRG, which the engine is measured against, gives the engine's outputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine import Case, Options, build_case, compare, main

TINY = Options("tiny", concurrent=2, repeats=1, thinking_tokens=5, num_timesteps=4)


def chosen(case: Case) -> Case:
    """The same requests with the model's own texts."""
    return replace(case, texts=None)


def longer(case: Case) -> Case:
    """Two rounds of improvement."""
    jobs = [replace(job, settings=replace(job.settings, rounds=2)) for job in case.jobs]
    return replace(case, jobs=jobs, texts=None)


def guided_first(case: Case) -> Case:
    """Image guidance of the first image too, which has no image to leave out."""
    initial = replace(case.jobs[0].settings.initial, cfg_img_scale=1.5, cfg_renorm_type="channel")
    return replace(case, jobs=[replace(job, settings=replace(job.settings, initial=initial)) for job in case.jobs])


@pytest.mark.parametrize("changed", [lambda case: case, chosen, longer, guided_first])
def test_straight_is_engine(changed) -> None:  # type: ignore[no-untyped-def]
    agreement = compare(changed(build_case(TINY)))
    assert agreement.same_texts
    assert agreement.latents <= 1e-5 and agreement.gray_levels <= 1


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("straight._combine", lambda main, *others: main)
    assert not compare(build_case(TINY)).holds("float32")


def test_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replace(TINY, json=tmp_path / "out.json")) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report["loads"]) == {"1", "2"}
    rows = {row["name"]: row for row in report["loads"]["2"]["rows"]}
    assert rows["total"]["engine"] > 0 and {"prefill", "decode", "denoise", "vae", "tokens/s"} <= set(rows)
    printed = capsys.readouterr().out
    assert "outputs agree" in printed and "| 2 requests at once, seconds |" in printed
