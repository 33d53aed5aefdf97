"""irg-mini's training in the kit, with a trainer that only pretends to: what a second run does again, and what not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import gpu_mini
from irg.learning.recipe import TrainRecipe


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, in order. Training is cut by the clock at its first call."""
    made: list[str] = []

    def train(recipe: TrainRecipe, trainer: type | None = None) -> None:
        out, kind = Path(recipe.out), Path(recipe.out).name
        cut = kind == "run" and "cut" not in made
        made.append("cut" if cut else f"{kind} {recipe.steps}, stop after {recipe.stop_after}")
        out.mkdir(exist_ok=True)
        step = 3 if cut or recipe.stop_after else recipe.steps
        (out / "log.jsonl").write_text(json.dumps({"step": step, "step_seconds": 0.5}) + "\n")
        if cut:
            raise KeyboardInterrupt

    def convert(source: Path, out: Path, *_: object, **__: object) -> None:
        out.mkdir(exist_ok=True)
        (out / "weights.safetensors").write_bytes(bytes(range(25)))

    def draw(measure: gpu_mini.drawing.DrawingMeasure) -> list[gpu_mini.drawing.Drawing]:
        made.append(f"draw by {Path(measure.model).name}")
        return []

    def build(data: gpu_mini.MiniData) -> None:
        made.append(f"{data.rows} rows")
        Path(data.out).mkdir(exist_ok=True)
        (Path(data.out) / "part-00000.parquet").touch()

    monkeypatch.setattr(gpu_mini, "build", build)
    monkeypatch.setattr(gpu_mini, "train", train)
    monkeypatch.setattr(gpu_mini, "convert", convert)
    monkeypatch.setattr(gpu_mini, "PART", 10)
    monkeypatch.setattr(gpu_mini.drawing, "draw", draw)
    monkeypatch.setattr(gpu_mini.drawing, "table", lambda found: f"{len(found)} images")
    monkeypatch.setattr(gpu_mini.drawing, "sheet", lambda found: gpu_mini.drawing.Image.new("RGB", (1, 1)))
    return made


def test_a_second_run_goes_on_where_time_ran_out(tmp_path: Path, calls: list[str]) -> None:
    """Weights are written of what was trained by then. The steps stay those of the first run's trial."""
    out = tmp_path / "7_mini.result.json"
    options = gpu_mini.Options(out, seconds=gpu_mini.RESERVE, train_seconds=5, rows=(2, 1), trial_steps=4)
    assert gpu_mini.main(options) == 1
    assert calls == ["2 rows", "1 rows", "trial 4, stop after None", "cut", "run 10, stop after 1"]
    parts = sorted((tmp_path / "7_mini").glob("weights.safetensors.*"))
    assert b"".join(part.read_bytes() for part in parts) == bytes(range(25)) and len(parts) == 3
    assert json.loads(out.read_text())["last"]["step"] == 3

    calls[:] = ["cut"]
    assert gpu_mini.main(replace(options, seconds=900, train_seconds=50)) == 0
    assert calls == ["cut", "2 rows", "1 rows", "run 10, stop after None", "draw by model", "draw by mini"]
    assert json.loads(out.read_text())["after"] == ["0 images"]
    assert not (tmp_path / "7_mini" / "work").exists()


def test_who_interrupts_before_the_time_is_over_ends_it(tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        gpu_mini.main(gpu_mini.Options(tmp_path / "mini.json", trial_steps=0))
    assert calls[-1] == "cut" and (tmp_path / "mini" / "work").is_dir()


def test_a_measurement_that_has_no_time_is_left_to_the_next_run(tmp_path: Path, calls: list[str]) -> None:
    calls.append("cut")
    options = gpu_mini.Options(tmp_path / "mini.json", seconds=gpu_mini.MEASURING, trial_steps=0)
    assert gpu_mini.main(options) == 1
    assert "draw by model" not in calls and (tmp_path / "mini" / "weights.safetensors.00").exists()
