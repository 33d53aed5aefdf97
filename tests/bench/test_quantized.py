"""Bytes that quantized products move, by formula, and the benchmark's dry run."""

import json
from pathlib import Path

import pytest

from irg.model.weights.quantized_product import Quantization
from quantized import KINDS, Options, main
from work import product_bytes

SHAPES = ((3584, 3584), (3584, 512), (3584, 18944), (18944, 3584))
FLOPS, BANDWIDTH = 790e12, 3e12  # of an H100


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_decoding_moves_fewer_bytes(inputs: int, outputs: int) -> None:
    """The stored ones: about a half, and a quarter, of bf16's."""
    for tokens in (1, 9):
        bf16 = product_bytes(None, tokens, inputs, outputs)
        for kind, share in (("int8", 0.5), ("fp8", 0.5), ("int4", 0.266)):
            assert product_bytes(kind, tokens, inputs, outputs) / bf16 == pytest.approx(share, abs=0.02)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "capability", "a_weight"), [("int8", 90, 5), ("fp8", 80, 5), ("int4", 90, 4.53)])
def test_drawing_dequantizes_behind_its_arithmetic(kind: Quantization, capability: int, a_weight: float) -> None:
    """A dequantized weight costs more bytes than bf16's two, which take less time than the arithmetic beside them."""
    for inputs, outputs in SHAPES:
        size = product_bytes(kind, 8192, inputs, outputs, capability) - 2 * 8192 * (inputs + outputs)
        assert size / (inputs * outputs) == pytest.approx(a_weight, abs=0.01)
        assert size / BANDWIDTH < 0.09 * (2 * 8192 * inputs * outputs) / FLOPS


def test_fp8_drawing_dequantizes_nothing() -> None:
    got = product_bytes("fp8", 8192, 3584, 18944)
    assert got == 2 * 8192 * (3584 + 18944) + 3584 * 18944 + 4 * 18944 + 2 * 8192 * (3584 + 4)


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Options(dry=True, json=tmp_path / "rows.json")) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 3 * len(KINDS) and all(row["error"] < 0.01 for row in rows)
    assert "| 64 x 32 | 9 | int4 |" in capsys.readouterr().out
