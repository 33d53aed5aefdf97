"""The page of a run: what the log says is drawn where it belongs, and nothing is fetched."""

import json
from pathlib import Path

import pytest
from PIL import Image

from irg.cli.main import main
from irg.learning.run_report import curves, read_log, write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run by reward leaves it, with a step taken twice and a line cut short by a kill."""
    lines = [
        {"step": 0, "held_out_reward": 0.25},
        {"step": 1, "reward": 0.9, "kl": 0.0},
        {"step": 1, "reward": 0.5, "kl": 0.0},
        {"step": 2, "reward": None, "kl": 0.0},
        {"step": 3, "reward": 0.75, "kl": 0.0, "held_out_reward": 0.5},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "rew')
    (tmp_path / "recipe.json").write_text(json.dumps({"kind": "rl", "model": "mini", "steps": 7}))
    text = {"step": 1, "prompt": "<b>a dog</b>", "text": "Scene", "reward": None, "reasons": {}, "failure": "judge: no"}
    (tmp_path / "texts.jsonl").write_text(json.dumps(text) + "\n")
    for step in range(1, 11):
        sample = tmp_path / "samples" / f"step-{step:08d}" / "00"
        sample.mkdir(parents=True)
        Image.new("RGB", (600, 300), (step, 0, 0)).save(sample / "image-1.png")
        (sample / "trajectory.json").write_text(json.dumps({"prompt": "a cat"}))
    return tmp_path


def test_curves_stand_where_the_log_says(run: Path) -> None:
    """The viewBox is 320 x 120, the highest number at the top; no number breaks the line; the later line counts."""
    drawn = {curve.name: curve for curve in curves(read_log(run / "log.jsonl"))}
    assert list(drawn) == ["held_out_reward", "reward", "kl"]
    reward = drawn["reward"]
    assert reward.lines == [[(0.0, 120.0)], [(320.0, 0.0)]]
    assert (reward.low, reward.high, reward.first, reward.last) == (0.5, 0.75, 0.5, 0.75)
    assert drawn["kl"].lines == [[(0.0, 60.0), (160.0, 60.0), (320.0, 60.0)]]
    held = drawn["held_out_reward"]
    assert held.lines == [[(0.0, 120.0), (320.0, 0.0)]] and (held.first_step, held.last_step) == (0, 3)


def test_the_page_has_all_and_fetches_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "by reward" in page and "3 of 7" in page and "0.5 → 0.75" in page and "0.25 → 0.5" in page
    assert page.count("<svg") == 3 and "&lt;b&gt;a dog&lt;/b&gt;" in page and "judge: no" in page
    shown = [step for step in range(1, 11) if f"<figcaption>step {step}</figcaption>" in page]
    assert len(shown) == 8 and shown[0] == 1 and shown[-1] == 10 and "00: a cat" in page
    assert page.count('src="data:image/png') == 8
    assert "http" not in page and "<script" not in page and "url(" not in page
    assert write_report(run, tmp_path / "there.html").read_text() == page


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a training run: it has no log.jsonl"):
        write_report(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="nothing was logged"):
        write_report(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"recipe.json can't be read"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="takes a run's folder and --out"):
        from irg.cli.train import main as command

        command(["report", str(tmp_path), "--to", "x"])
