"""``irg bench run | score | table`` as they are called: what they print, write and refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from irg.cli.main import main
from irg.files import read_json_lines
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder

LINES = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "red"}], "prompt": "a photo of a red bus"},
    {"tag": "single_object", "include": [{"class": "dragon", "count": 1}], "prompt": "a photo of a dragon"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def call(*words: object) -> int:
    return main(["bench", *map(str, words)])


def test_draw_score_and_tabulate_for_real(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two direct images of irg-mini with few steps, judged by the bundled detector."""
    run = tmp_path / "run"
    words = ("run", "geneval", "--mode", "direct", "-n", 1, "--prompts", prompts, "--out", run)
    assert call(*words, "--num-timesteps", 3) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(run) and "2 of 3 prompts are covered, 2 are drawn" in told.err
    assert Image.open(run / "images/00001/samples/0000.png").size == (128, 128)
    assert not (run / "images/00002").exists()
    assert call(*words) == 2 and "--resume" in capsys.readouterr().err
    assert call(*words, "--num-timesteps", 3, "--resume") == 0
    assert "0 images drawn, 2 are in" in capsys.readouterr().err
    assert call(*words, "--resume") == 2 and "settings was" in capsys.readouterr().err

    assert call("score", "geneval", "--images", run, "--judge", "mini", "--prompts", prompts) == 0
    table = capsys.readouterr().out
    assert "judged by mini detector" in table and "2 of 3 prompts are covered by its vocabulary" in table
    assert "| IRG (paper) |" not in table and "| mini, direct |" in table  # another judge's
    assert call("table", run, "--format", "html", "--out", tmp_path / "table.html") == 0
    assert "<table" in (tmp_path / "table.html").read_text()
    capsys.readouterr()
    assert call("table", run, "--format", "csv", "--no-reported") == 0
    assert capsys.readouterr().out.startswith("table,row,column,value,low,high,n,partial,")


KILLED = """
import os, sys
from pathlib import Path
from irg.cli.main import main
replace, records = Path.replace, []
def die(path, target):
    if "trajectories" in target.parts:
        records.append(target)
        if len(records) == 2:
            os.kill(os.getpid(), 9)
    replace(path, target)
Path.replace = die
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="needs locks that end with their process")
def test_a_killed_run_goes_on(prompts: Path, tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    """Killed between an image and the record that makes it count: that one is drawn again, what was finished stays."""
    run = tmp_path / "run"
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", tiny_loaded.config, "irg")
    words = ("run", "geneval", "--model", tmp_path / "model", "--prompts", prompts, "--mode", "direct", "-n", 1)
    words += ("--size", "32x32", "--num-timesteps", 2, "--batch-size", 1, "--out", run)
    command = [sys.executable, "-c", KILLED, "bench", *map(str, words)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -9
    (finished,) = run.glob("trajectories/*/0.json")
    assert len([*run.glob("images/*/samples/*.png")]) == 2 and [*run.rglob(".tmp-*")]
    before = finished.read_bytes()
    assert call(*words, "--resume") == 0
    assert finished.read_bytes() == before
    assert len([*run.glob("images/*/samples/*.png")]) == 3 == len([*run.glob("trajectories/*/0.json")])
    assert not [*run.rglob(".tmp-*")]
    assert [line["images"] for line in read_json_lines(run / "sessions.jsonl")] == [2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "genevl"), "did you mean 'geneval'"),
        (("run", "geneval", "--colour", "3"), "--colour"),
        (("run", "geneval", "--mode", "direct", "--rounds", "2"), "rounds has no meaning in mode 'direct'"),
        (("run", "geneval", "--set", "steps"), "should be name=value"),
        (("run", "geneval", "--offline"), "--prompts PATH"),
        (("run", "geneval", "--batch-size", "0"), "--batch-size"),
        (("run", "geneval", "--prompts", "{prompts}", "--limit", "0"), "--limit"),
        (("run", "geneval", "--prompts", "{prompts}", "--model", "none-such"), "unknown model"),
        (("run", "geneval", "--prompts", "{prompts}", "--model", "no", "--out", "{prompts}"), "is a file, a folder"),
        (("score", "geneval"), "give the benchmark and its images"),
        (("score", "geneval", "--images", "{empty}", "--prompts", "{prompts}"), "a judge is needed"),
        (
            ("score", "geneval", "--images", "{empty}", "--judge", "mini", "--prompts", "{prompts}"),
            "no image is where",
        ),
        (("score", "wise", "--images", "{empty}", "--judge", "mini", "--rubric", "{prompts}"), "holds no {prompt}"),
        (("table",), "name the runs"),
        (("table", "{empty}"), "has no score"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], told: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("IRG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"{empty}": str(tmp_path / "empty"), "{prompts}": str(prompts)}
    assert call(*(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error and error.startswith("irg bench: error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "evaluation_metadata.jsonl"]


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("run", "score", "table", "mini"))
    for name, option in (("run", "--resume"), ("score", "--official-skips"), ("table", "--no-reported")):
        with pytest.raises(SystemExit) as exit_:
            call(name, "--help")
        assert exit_.value.code == 0 and option in capsys.readouterr().out
