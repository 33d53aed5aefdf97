"""A small run of the mini benchmark: its variants, its files, going on after an interruption."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irg_mini import world
from irg_mini.measure.benchmark import Evaluation, evaluate

FAST = {"num_timesteps": 2, "improve_num_timesteps": 2, "max_think_tokens": 30}


def test_right_images_by_the_world_show_what_the_detector_misses(tmp_path: Path) -> None:
    try:
        world.load_sprites("fluent")
    except ValueError as error:
        pytest.skip(str(error))
    evaluation = Evaluation(out=str(tmp_path), prompts=12, modes=("rendered",))
    assert "| rendered |" in evaluate(evaluation)
    lines = [json.loads(one) for one in (tmp_path / "rendered.jsonl").read_text().splitlines()]
    assert [one["planned"] for one in lines] == [[True]] * 12
    assert sum(one["right"][0] for one in lines) >= 10


def lines_of(folder: Path, mode: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{mode}.jsonl").read_text().splitlines()]


def test_reflections_are_the_models_own_or_anothers_or_true(tmp_path: Path) -> None:
    modes = ("always", "shuffled", "blind", "ground-truth")
    text = evaluate(Evaluation(out=str(tmp_path), prompts=6, modes=modes, settings=FAST, batch_size=4))
    lines = {mode: lines_of(tmp_path, mode) for mode in modes}
    assert all(len(found) == 6 for found in lines.values()) and "| blind |" in text
    assert all(len(line["right"]) == 2 for mode in ("always", "shuffled") for line in lines[mode])
    own = [line["thoughts"] for line in lines["always"]]
    assert [line["thoughts"][0] for line in lines["shuffled"]] == [texts[0] for texts in own]
    assert [line["thoughts"][1] for line in lines["shuffled"]] == [own[(i + 3) % 6][1] for i in range(6)]
    true = [line["thoughts"][1] for line in lines["ground-truth"]]
    assert [line["planned"][1] for line in lines["ground-truth"]] == [True] * 6
    assert all(text.startswith("<think> Analysis: in the picture: ") for text in true)
    assert [line["done"][0] for line in lines["ground-truth"]] == [". nothing is wrong. " in text for text in true]
    assert "| ground-truth, stops when done |" in text


def test_a_run_goes_on_after_a_line_cut_in_half_also_in_a_copied_folder(tmp_path: Path) -> None:
    evaluation = Evaluation(out=str(tmp_path / "a"), prompts=6, modes=("direct",), settings=FAST, batch_size=4)
    table = evaluate(evaluation)
    whole = lines_of(tmp_path / "a", "direct")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / "direct.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept[:2]) + kept[2][: len(kept[2]) // 2])
    assert evaluate(replace(evaluation, out=str(tmp_path / "b"))) == table
    for before, after in zip(whole, lines_of(tmp_path / "b", "direct"), strict=True):
        assert before | {"seconds": 0} == after | {"seconds": 0}
    with pytest.raises(ValueError, match="holds an evaluation with prompts 6, not 12"):
        evaluate(replace(evaluation, prompts=12))


def test_a_folder_of_an_earlier_version_is_taken_up(tmp_path: Path) -> None:
    evaluation = Evaluation(out=str(tmp_path), prompts=2, modes=("direct",), settings=FAST)
    evaluate(evaluation)
    file = tmp_path / "evaluation.json"
    before = json.loads(file.read_text())
    del before["detector"]
    file.write_text(json.dumps(before | {"referee": "mini-referee"}))
    assert "| direct |" in evaluate(evaluation)
    with pytest.warns(DeprecationWarning, match="mode told is now called ground-truth"):
        assert Evaluation(modes=("told",)).modes == ("ground-truth",)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown 'dream'"):
        Evaluation(modes=("dream",))
    with pytest.raises(ValueError, match="0 means all of GenEval's"):
        Evaluation(prompts=0)
