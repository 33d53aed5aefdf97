"""The ladder's benchmark on a model that runs in no time: what is equal is told as equal, what is not is not."""

import pytest

from ladder import LadderOptions, main


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    options = LadderOptions("tiny", prompts=1, num_timesteps=2, size=32, thought_tokens=3, rungs=("offload", "int4"))
    assert main(options) == 0
    base, offload, int4 = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:])
    assert base[0] == "| bf16" and offload[2:4] == base[2:4] == ["equal", "equal"]
    assert offload[4].startswith("100.0 % of ") and offload[5] == "1 of 1"
    assert 10 < float(int4[2]) < 90 and float(int4[1]) < float(base[1])
