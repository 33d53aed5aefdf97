"""The benchmark of memory modes on a tiny model: what is equal is reported as equal, what is not is not."""

import pytest

from memory_modes import MemoryModeOptions, main


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    options = MemoryModeOptions(
        "tiny", prompts=1, num_timesteps=2, size=32, thinking_tokens=3, memory_modes=("offload", "int4")
    )
    assert main(options) == 0
    base, offload, int4 = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:])
    assert base[0] == "| bf16" and offload[2:4] == base[2:4] == ["equal", "equal"]
    assert offload[4].startswith("100.0 % of ") and offload[5] == "1 of 1"
    assert 10 < float(int4[2]) < 90 and float(int4[1]) < float(base[1])
