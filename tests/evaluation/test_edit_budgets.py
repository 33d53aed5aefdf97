"""What stands after at most k edits: scores, repair, damage and change by budget, against numbers counted by hand."""

import json
from dataclasses import replace

import pytest
from bench_images import EVERYTHING, NOTHING, QUIET, flat, grey

from irg.evaluation import statistics
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.generation import save_sample
from irg.evaluation.judges import Answer
from irg.evaluation.reported import reported
from irg.evaluation.results import RESULT_FILE, Result
from irg.evaluation.runs import Sample, new_run, open_run
from irg.evaluation.scoring import ScoreRequest, score
from irg.evaluation.table_formats import to_csv, to_html, to_markdown
from irg.evaluation.tables import tables
from irg.reasoning.settings import Settings
from irg.results.trajectory import Trajectory, Turn

DRAWN = {
    ("cat", 0): "wr",  # repaired by the first edit, then finished
    ("cat", 1): "wwwr",  # repaired by the third
    ("dogs", 0): "rwr",  # damaged, and mended by the second
    ("dogs", 1): "rrrw",
    ("bus", 0): "r",  # finished at once
    ("bus", 1): "wwww",
}


@pytest.fixture
def scored(geneval_prompts, geneval_json, tmp_path, fake_judge):
    """Two images a prompt and up to three edits; an image is right where its gray is odd."""
    facts = {"covered_by": None, "covered": 3, "model": "m", "model_fingerprint": "", "model_name": "m", "seed": 0}
    settings = Settings(rounds=3).to_dict()
    info = new_run(geneval_prompts, geneval_prompts.prompts, 2, mode="irg", settings=settings, **facts)
    open_run(tmp_path / "run", info, resume=False)
    grays = iter(range(0, 200, 2))
    for prompt, name in zip(geneval_prompts.prompts, ("cat", "dogs", "bus"), strict=True):
        for number in range(2):
            turns = [Turn("t", flat(next(grays) + (what == "r"))) for what in DRAWN[name, number]]
            if len(turns) < 4:
                turns.append(Turn("nothing to improve", None))
            trajectory = Trajectory(prompt.text, "irg", 0, "m", {}, turns, stopped=turns[-1].image is None)
            save_sample(tmp_path / "run", info, Sample(prompt, number), trajectory)
    request = ScoreRequest("geneval", tmp_path / "run", prompts=str(geneval_json))
    judge = fake_judge(lambda job: Answer(EVERYTHING if grey(job) % 2 else NOTHING))
    return *score(request, [judge], QUIET), judge


def test_every_budget_is_compared_with_the_first_image(scored):
    _, result, judge = scored
    assert [turn.edits for turn in result.turns] == [0, 1, 2, 3]
    assert [turn.mean.value for turn in result.turns] == pytest.approx([3 / 6, 3 / 6, 4 / 6, 4 / 6])
    # single object, counting, colors
    assert [turn.scores["overall"] for turn in result.turns] == pytest.approx([1.5 / 3, 1.5 / 3, 2 / 3, 2 / 3])
    assert result.turns[0].changes is None
    changes = [turn.changes for turn in result.turns[1:]]
    assert [(one.repair.value, one.repair.of) for one in changes] == [(1 / 3, 3), (1 / 3, 3), (2 / 3, 3)]
    assert [(one.damage.value, one.damage.of) for one in changes] == [(1 / 3, 3), (0.0, 3), (1 / 3, 3)]
    assert [one.score.value for one in changes] == pytest.approx([0, 1 / 6, 1 / 6])
    # resamples of +1, -1 and 0 of two images a prompt: one in 27 draws the worst three times
    assert (changes[0].score.low, changes[0].score.high, changes[0].score.of) == (-0.5, 0.5, 6)
    assert (changes[1].damage.low, changes[1].damage.high) == (0.0, pytest.approx(0.65762, abs=1e-5))
    assert [turn.images_per_request for turn in result.turns] == pytest.approx([1, 11 / 6, 15 / 6, 3])
    assert len(judge.jobs) == sum(len(drawn) for drawn in DRAWN.values())  # an image that stands is not judged again


def test_budgets_are_columns(scored):
    _, result, _ = scored
    by_category, by_budget = tables([result], with_reported=False)
    assert by_category.columns[-2:] == ("images, 95 %", "s, tokens")
    assert by_budget.columns == ("first image", "1 edit", "2 edits", "3 edits")
    cells = {row.name.removeprefix("m, irg: "): [cell.text for cell in row.cells] for row in by_budget.rows}
    assert cells["overall"] == ["0.500", "0.500", "0.667", "0.667"]
    assert cells["repair"][0] == "–" and cells["repair"][3].startswith("66.7 % (") and "n 3" in cells["repair"][3]
    assert cells["damage"][2] == "0.0 % (0.0–65.8, n 3)"
    assert cells["change"][1] == "+0.0 (-50.0 to +50.0, n 6)" and cells["change"][2].startswith("+16.7 (")
    assert cells["images a request"] == ["1.00", "1.83", "2.50", "3.00"]
    assert "| m, irg: damage | – |" in to_markdown([by_budget])
    assert '"m, irg: damage",2 edits,0.0,0.0,0.657' in to_csv([by_budget])
    assert "0.0 %<small>(0.0–65.8, n 3)</small>" in to_html([by_budget])


def test_runs_of_other_lengths_share_the_columns(scored):
    folder, long, _ = scored
    result = json.loads((folder / RESULT_FILE).read_text())
    result["turns"], result["mode"] = result["turns"][:1], "think"
    (folder / RESULT_FILE).write_text(json.dumps(result))
    short = Result.load(folder)
    by_budget = tables([short, long], with_reported=False)[1]
    assert [len(row.cells) for row in by_budget.rows] == [4] * len(by_budget.rows)
    assert [cell.text for cell in by_budget.rows[0].cells] == ["0.500", "–", "–", "–"]
    assert [row.name for row in by_budget.rows if row.name.startswith("m, think")] == [
        "m, think: overall",
        "m, think: images, 95 %",
        "m, think: images a request",
    ]
    assert len(tables([short], with_reported=False)) == 1  # and alone it has no budgets


def test_runs_by_what_they_cost(scored):
    _, result, _ = scored
    think = replace(result, mode="think", seconds=0.5, turns=result.turns[:1])
    loop = replace(result, seconds=1.5)
    by_cost = tables([loop, think], with_reported=False)[-1]
    assert by_cost.title.startswith("GenEval by cost")
    cells = {row.name: [cell.text for cell in row.cells[1:]] for row in by_cost.rows}
    # 3 of 6 images in 0.5 s, 4 of 6 in 1.5 s
    assert cells == {"m, irg": ["3.00", "1.50", "0.444", "+16.67"], "m, think": ["1.00", "0.50", "1.000", "–"]}
    assert not any("by cost" in table.title for table in tables([loop], with_reported=False))
    settings = loop.run["settings"] | {"candidates": 4, "select": "judge:hf:m"}
    best_of = replace(think, run={"settings": settings})
    kept = replace(loop, run={"settings": settings | {"keep_best": True, "select": "critic", "critic": "mini"}})
    assert [row.name for row in tables([best_of, kept], with_reported=False)[-1].rows] == [
        "m, think, best of 4 by judge:hf:m",
        "m, irg, best of 4, best of its rounds by mini",
    ]


def test_images_of_all_candidates_count(scored, tmp_path, geneval_json):
    _, result, judge = scored
    path = tmp_path / "run/trajectories/00000/0.json"
    record = json.loads(path.read_text())
    candidates = [{"seed": 0, "scores": [None] * n, "image": None} for n in (2, 1, 4)]
    path.write_text(json.dumps(record | {"search": {"candidates": candidates}}))
    _, again = score(ScoreRequest("geneval", tmp_path / "run", prompts=str(geneval_json)), [judge], QUIET)
    gained = [
        6 * (one.images_per_request - other.images_per_request)
        for one, other in zip(again.turns, result.turns, strict=True)
    ]
    assert gained == pytest.approx([3 - 1, 5 - 2, 6 - 2, 7 - 2])


def test_results_of_before_are_read(scored):
    folder, result, _ = scored
    data = json.loads((folder / RESULT_FILE).read_text())
    changes = [turn.pop("changes") for turn in data["turns"]][-1]
    changes.pop("score")
    data |= {"schema": 1, "changes": changes}
    (folder / RESULT_FILE).write_text(json.dumps(data))
    before = Result.load(folder)
    assert before.changes.repair == result.changes.repair and before.turns[1].changes is None
    assert before.changes.score.value is None
    data["schema"] = 3
    (folder / RESULT_FILE).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="schema 3 is not known"):
        Result.load(folder)


def test_what_is_reported_by_budget_stands_beside_its_own_judge_only(scored):
    _, result, _ = scored
    names = [table.title for table in tables([result])]
    assert names[1].startswith("GenEval by edit budget, judged by fake")
    assert names[2:] == ["GenEval, as reported", "GenEval by edit budget, as reported"]
    rows = {row.name: [cell.text for cell in row.cells] for row in tables([result])[3].rows}
    assert rows["UMM-Reflection RL (reported): overall"] == ["0.730", "0.820", "0.840", "0.840"]
    assert rows["UMM-Reflection RL (reported): repair"] == ["–", "–", "–", "64.9 %"]
    assert rows["UMM-Reflection SFT (reported): repair"][3] == "20.6 %"
    assert not any("paper" in name for name in rows)  # it reports no budgets


def test_each_reported_figure_has_a_source_and_a_column():
    for name, benchmark in BENCHMARKS.items():
        assert reported(name), name
        for row in reported(name):
            assert row.source and row.judge and row.prompts
            assert row.figures.keys() <= {*benchmark.columns, "repair", "damage"}, row
            values = [v for f in row.figures.values() for v in (f if isinstance(f, list) else [f]) if v is not None]
            assert values and all(0 < value <= 1 for value in values), row
            assert set(benchmark.headline) <= set(benchmark.columns)


def test_graded_benchmarks_have_paired_changes():
    found = statistics.mean_difference([("a", 0.25, 0.75), ("b", 0.5, 0.5), ("b", 1.0, 0.75), ("c", 0.5, 0.5)])
    assert found.value == pytest.approx(0.0625) and found.of == 4
    assert found.low == -0.125 and 0.25 < found.high <= 0.5  # prompt b three times; a in most of the best resamples
    same = statistics.mean_difference([("a", 0.25, 0.5), ("b", 0.5, 0.75)])
    assert (same.value, same.low, same.high) == (0.25, 0.25, 0.25)
    assert statistics.mean_difference([]).value is None


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (1, 20, 0.00888, 0.23613)],
)
def test_wilson(count, of, low, high):
    assert statistics.wilson_interval(count, of) == pytest.approx((low, high), abs=1e-5)


def test_a_share_without_events_has_an_interval_of_the_number_of_prompts():
    assert statistics.share([(0, 4), (0, 4), (0, 2)]) == statistics.Estimate(
        0.0, 0.0, statistics.wilson_interval(0, 3)[1], 10
    )
    assert statistics.share([(2, 2), (0, 0)]).low == pytest.approx(0.20655, abs=1e-5)
    assert statistics.share([(0, 0)]).value is None
