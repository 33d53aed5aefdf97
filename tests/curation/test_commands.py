"""``irg data build`` and what goes with it, as typed."""

import json
import re
from pathlib import Path

import pytest
from faulty_server import FaultyServer
from teachers import recipe_file, reply

from irg.cli import data_build as factory
from irg.cli import main as cli

RECIPE = """
out: {out}
prompts:
  sources: [{{kind: miniworld, rows: 9, sprites: builtin}}]
  repeats: true
filter: {{decontaminate: false, near_duplicates: null}}
draft: {{kind: miniworld, size: 32, sprites: builtin}}
reflect: {{kind: miniworld, size: 32, sprites: builtin}}
target: {{kind: miniworld, size: 32, sprites: builtin}}
think: {{kind: miniworld, sprites: builtin}}
judges: [{{kind: miniworld, name: world, size: 32, sprites: builtin}}]
rows_per_block: 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(out=tmp_path / "out"))
    return str(path)


def test_from_recipe_to_shards(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["data", "build", recipe, "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "0 rows finished" in said and re.search(r"judge-world .* 9 ", said)  # the rows that would be made
    assert [f.name.split("-")[0] for f in (tmp_path / "out" / "stages").iterdir()] == ["prompts"]
    assert cli.main(["data", "build", recipe, "--processes", "2"]) == 0
    assert "9 rows finished" in capsys.readouterr().out
    assert cli.main(["data", "status", out]) == 0
    assert re.search(r"draft .* 0 ", capsys.readouterr().out)
    assert cli.main(["data", "stats", recipe]) == 0
    assert "Apache-2.0" in capsys.readouterr().out
    assert cli.main(["data", "sample", out, "--rows", "2"]) == 0
    assert (tmp_path / "out" / "sample.html").read_text().count("<article") == 2
    assert cli.main(["data", "export", out, "--export.validation", "0.0"]) == 0
    assert "9 train rows in 1 files" in capsys.readouterr().out
    assert cli.main(["data", "validate", f"{out}/export"]) == 0
    assert "all of them can be trained on" in capsys.readouterr().out
    assert cli.main(["data", "export", recipe, "--export.keep.following", "11"]) == 2
    assert "no row to export (9 world: following below 11)" in capsys.readouterr().err


def test_a_build_of_which_nothing_is_left_fails_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    said = "I'm sorry, but I can't help with that."
    with FaultyServer(lambda path, body: said if path == "chat/completions" else reply(path, body)) as server:
        file = recipe_file(tmp_path / "recipe.yaml", server.url, tmp_path / "out", 4)
        assert cli.main(["data", "build", file]) == 1
    told = capsys.readouterr().out
    assert re.search(r"reflect: \d rejected: bad_answer, such as: vlm: 3 unusable answers: ", told), told
    assert "0 rows finished" in told


def test_a_changed_recipe_says_what_it_means(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "build", recipe]) == 0
    capsys.readouterr()
    assert cli.main(["data", "build", recipe, "--draft.flawed", "0.5"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"draft: settings have changed; its \d rows are made again, the old ones are kept", said)
    assert "prompts" not in said
    assert cli.main(["data", "build", recipe, "--draft.flawed", "0.5", "--export.keep.gain", "3.0"]) == 0
    assert "made again" not in capsys.readouterr().err  # thresholds are no content


def test_without_a_terminal_progress_is_told_in_lines(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(factory, "LINE_EVERY_S", 0.0)
    assert cli.main(["data", "build", recipe]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "prompts 4"
    assert re.search(r"draft \d/\d, reflect \d/\d, target \d/9, .*judge-world \d/9; about \d+ min left", lines[4])
    assert re.search(r"judge-world 9/9; about 0 min left$", lines[-1])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["build"], "usage: irg data build"),
        (["build", "--redo"], "usage: irg data build"),
        (["build", "none.yaml"], "can't read the recipe"),
        (["build", "--out", "x"], "the recipe's file comes first"),
        (["status"], "usage: irg data status RECIPE.yaml|FOLDER"),
        (["status", "."], "no build here"),
        (["status", "none"], "none: neither a build's folder nor a recipe's file is there"),
        (["validate", "."], "no parquet files"),
        (["push", "x"], "usage: irg data push"),
        (["sampel", "x"], "did you mean 'sample'?"),
    ],
)
def test_mistakes(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *words]) == 2
    streams = capsys.readouterr()
    assert told in streams.out + streams.err and not list(tmp_path.iterdir())


def test_a_field_that_does_not_exist_is_named(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "build", recipe, "--draft.flawd", "0.5"]) == 2
    assert "draft.flawd: unknown field (did you mean 'flawed'?)" in capsys.readouterr().err


def test_the_recipe_that_was_built_lies_with_it(recipe: str, tmp_path: Path) -> None:
    assert cli.main(["data", "build", recipe, "--seed", "5"]) == 0
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert set(state) == {"prompts", "draft", "reflect", "target", "think", "judge-world"}
    assert (tmp_path / "out").rename(tmp_path / "moved") and cli.main(["data", "status", str(tmp_path / "moved")]) == 0
