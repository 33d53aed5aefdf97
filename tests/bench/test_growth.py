"""The script that measures how cost grows, on a tiny network."""

import json
from pathlib import Path

import growth


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
