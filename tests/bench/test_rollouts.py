"""The ways of writing that the benchmark of rollouts compares write the same texts."""

import json
from pathlib import Path

import pytest

from rollouts import TEXTS, WAYS, Options, main


def test_all_ways_write_the_same_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options("tiny", prompts=2, samples=3, max_tokens=4, repeats=1, json=tmp_path / "out.json")
    assert main(options) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == set(TEXTS)
    for row in report.values():
        assert row["equal_texts"] == 1 and set(row["tokens_per_second"]) == set(WAYS)
    assert "| thinking |" in capsys.readouterr().out
