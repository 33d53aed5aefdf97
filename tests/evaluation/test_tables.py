"""Scored runs: repair and damage, the report, and tables that say which judge saw which prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench_images import EVERYTHING, NOTHING, QUIET, grey

from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.judges import Answer
from irg.evaluation.reported import reported
from irg.evaluation.results import Result
from irg.evaluation.scoring import score
from irg.evaluation.table_formats import to_csv, to_html, to_markdown
from irg.evaluation.tables import tables


def test_a_run_is_scored_by_turn(run, fake_judge):
    judge = fake_judge(lambda job: Answer(EVERYTHING if grey(job) % 2 else NOTHING))
    folder, result = score(run, [judge], QUIET)
    assert folder.parent == run.images / "scores"
    assert [turn.scores["overall"] for turn in result.turns] == [pytest.approx(2 / 3)] * 2
    assert (result.changes.repair.value, result.changes.damage.value) == (1.0, 0.5)
    assert (result.seconds, result.tokens, result.latency_by_turn) == (2.5, 8.0, [1.0, 2.0])
    page = (folder / "report" / "index.html").read_text()
    for change in ("repaired", "damaged", "right"):
        assert page.count(f'data-change="{change}"') == 1
    assert "first &amp; foremost" in page and "<think>" not in page
    assert 'src="../../../turns/2/00001/samples/0000.png"' in page
    assert (folder / "report" / "../../../turns/2/00001/samples/0000.png").is_file()
    assert "<li><b>repair</b> 100.0 % (20.7–100.0, n 1)</li>" in page and "2.50 s and 8 tokens" in page
    assert "data-gap" not in page and '<option value="gap">' not in page
    _, last = score(replace(run, turns="last"), [judge], QUIET)
    assert len(last.turns) == 1 and last.changes is None


def test_the_report_counts_a_missing_image_as_the_table_does(run, fake_judge):
    """What was right and is gone is damage, unless missing images are skipped; why one is wrong stands below it."""
    (run.images / "turns/2/00000/samples/0000.png").unlink()
    (run.images / "turns/1/00001/samples/0000.png").write_bytes(b"junk")

    def reply(job):
        try:
            return Answer(EVERYTHING if grey(job) != 15 else NOTHING)
        except ValueError as error:
            return Answer(None, "unreadable", str(error))

    judge = fake_judge(reply)
    for skips, damaged in ((False, 1), (True, 0)):
        folder, result = score(replace(run, official_skips=skips), [judge], QUIET)
        page = (folder / "report" / "index.html").read_text()
        assert page.count('data-change="damaged"') == damaged == result.changes.damage.of
        assert page.count("data-gap") == 2 and '<option value="gap">missing or not judged (2)</option>' in page
    assert '<div class="gone">unreadable</div>' in page and '<div class="gone">missing</div>' in page
    assert '<span class="why">expected bus' in page
    assert '<option value="colors">colors (1)</option>' in page


def test_a_run_remembers_where_its_prompts_were_given(run, fake_judge, tmp_path, monkeypatch):
    monkeypatch.setenv("IRG_OFFLINE", "1")
    monkeypatch.setenv("IRG_CACHE", str(tmp_path / "cache"))
    request_ = replace(run, prompts=None)
    judge = fake_judge(lambda job: Answer(EVERYTHING))
    assert score(request_, [judge], QUIET)[1].complete
    Path(run.prompts).rename(Path(run.prompts).with_name("moved.jsonl"))
    with pytest.raises(ValueError, match="--prompts PATH"):
        score(request_, [judge], QUIET)


def test_what_a_kill_left_behind_is_passed_over_or_named(run, fake_judge):
    judge = fake_judge(lambda job: Answer(EVERYTHING))
    with (run.images / "sessions.jsonl").open("a") as file:
        file.write('{"images": 4, "sec')
    assert score(run, [judge], QUIET)[1].seconds == 2.5
    record = run.images / "trajectories/00001/0.json"
    record.write_text("{")
    with pytest.raises(ValueError, match=r"00001/0\.json: damaged; remove it, and irg bench run --resume"):
        score(run, [judge], QUIET)


def test_later_turns_have_names_of_their_own(run, fake_judge):
    _, result = score(run, [fake_judge(lambda job: Answer(EVERYTHING))], QUIET)
    three = replace(result, turns=[*result.turns, replace(result.turns[1], turn=3)])
    names = [row.name for row in tables([three], with_reported=False)[0].rows]
    assert names == ["m, irg, initial", "m, irg, improved", "m, irg, improved 2"]


def test_a_run_wants_the_prompts_it_was_drawn_from(run, tmp_path, fake_judge):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(run.prompts).read_text().replace("cat", "cow"))
    with pytest.raises(ValueError, match="was drawn from prompts"):
        score(replace(run, prompts=str(other)), [fake_judge(lambda job: Answer(NOTHING))], QUIET)
    with pytest.raises(ValueError, match="is a run of geneval, not of wise"):
        replace(run, benchmark="wise").check()


def test_tables_never_mix_judges_and_each_number_says_its_own(run, fake_judge):
    results = [
        score(run, [fake_judge(lambda job: Answer(EVERYTHING), label=label)], QUIET)[1] for label in ("one", "two")
    ]
    made = tables([*results, replace(results[0], model="another")])
    # by category, by edit budget and, of two runs, by cost
    assert [len(one.rows) for one in made[:5]] == [4, 12, 2, 2, 6]
    assert [{row.reported for row in one.rows} for one in made] == [{False}] * 5 + [{True}] * 2
    text = to_markdown(made)
    assert "[a] judge: one; prompts: original" in text and "[a] judge: two; prompts: original" in text
    assert "**GenEval, as reported**" in text and "judge: GenEval's Mask2Former (mmdet)" in text
    assert "| IRG (paper) | 0.980 [a] | 0.940 [a] | 0.830 [a] |" in text and "not to be compared" in text
    rows = to_csv(made).splitlines()
    assert any(',"m, irg, improved",overall,1.0,,,,,"judge: one; ' in row for row in rows)
    assert any(',"m, irg, initial","images, 95 %",1.0,0.438' in row for row in rows)
    assert '<td title="judge: two' in to_html(made)
    with pytest.raises(ValueError, match=r"has 2 scores .*name one"):
        Result.load(run.images)
    assert tables(results, with_reported=False)[0].rows[0].name == "m, irg, initial"


def test_the_papers_rows_stand_beside_scores_of_its_own_judge_only(run, fake_judge):
    own = score(run, [fake_judge(lambda job: Answer(EVERYTHING), label="official detector (mmdet)")], QUIET)[1]
    made = tables([own])[0]
    assert [row.reported for row in made.rows][-3:] == [True] + [False] * 2
    assert "| IRG (paper) | 0.980 [a] | 0.830 [a] |" in to_markdown([made]) and "not to be compared" not in made.notes
    icons = replace(own, judge="mini detector")
    assert [{row.reported for row in table.rows} for table in tables([icons])] == [{False}] * 2 + [{True}] * 2
    assert not {row.reported for table in tables([icons], with_reported=False) for row in table.rows} - {False}
    assert not any(row.name == "UniReason 1.0 (reported)" for row in made.rows)  # its detector is not stated


def test_paper_rows_are_the_papers():
    assert {name for name in BENCHMARKS if any(row.by == "paper" for row in reported(name))} == set(BENCHMARKS)
    assert {row.name: row.final("overall") for row in reported("geneval")}["IRG (paper)"] == 0.85
