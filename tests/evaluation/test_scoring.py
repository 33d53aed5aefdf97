"""Scoring: raw answers are kept, nothing is judged twice, what is missing is counted, tables say who judged what."""

import io
import json
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from irg import files, promptsets, registry
from irg.evaluation.benchmarks.base import Question, ScoringOptions
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.generation import draw_missing, save_sample
from irg.evaluation.image_folders import LAYOUTS, ImageFile
from irg.evaluation.judges import Answer, Job, JudgeOptions, make_judges
from irg.evaluation.judges.file import FileJudge
from irg.evaluation.paper import REPORTED
from irg.evaluation.results import Result
from irg.evaluation.runs import RunInfo, Sample, new_run, open_run
from irg.evaluation.scoring import ScoreRequest, score
from irg.evaluation.table_formats import to_csv, to_html, to_markdown
from irg.evaluation.tables import tables
from irg.reasoning.settings import Settings
from irg.results.trajectory import Trajectory, Turn
from irg_mini import world
from irg_mini.measure.judge import MiniJudge

QUIET = Console(file=io.StringIO())
CAT = {"boxes": {"cat": [[0, 0, 9, 9, 0.9]]}, "colors": {}}
EVERYTHING = {
    "boxes": {
        "cat": [[0, 0, 9, 9, 0.95]],
        "dog": [[0, 0, 4, 4, 0.95], [5, 5, 9, 9, 0.95]],
        "bus": [[0, 0, 9, 9, 0.95]],
    },
    "colors": {"bus": ["red"]},
}
NOTHING = {"boxes": {}, "colors": {}}


def flat(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


def images(folder: Path, prompts, layout="geneval", samples=4, first=10) -> Path:
    for index, prompt in enumerate(prompts):
        for sample in range(samples):
            LAYOUTS[layout].write(folder, prompt, sample, "m", flat(first + 20 * index + sample))
    return folder


def grey(job) -> int:
    return job.image.pixels().getpixel((0, 0))[0]


@pytest.fixture
def request_(geneval_prompts, geneval_json, tmp_path):
    """A folder of images, one for each prompt and sample, and the request to score it."""
    folder = images(tmp_path / "images", geneval_prompts.prompts)
    return ScoreRequest("geneval", folder, out=tmp_path / "scores", prompts=str(geneval_json))


def test_nothing_is_judged_twice_and_raw_answers_can_be_graded_again(request_, fake_judge):
    judge = fake_judge(lambda job: Answer(EVERYTHING if grey(job) % 2 else NOTHING))
    folder, result = score(request_, [judge], QUIET)
    assert len(judge.jobs) == 12
    assert result.turns[0].scores["overall"] == 0.5 and result.turns[0].states == {"graded": 12}
    assert result.complete and result.seconds is None and result.changes is None
    again = fake_judge(lambda job: pytest.fail("sent again"))
    assert score(request_, [again], QUIET)[1].turns == result.turns
    assert Result.load(request_.out / folder.name) == Result.load(folder) == result
    # without the judge's answers on disk it would have been sent again
    (folder / "judgements.jsonl").unlink()
    assert score(request_, [judge], QUIET)[1].turns == result.turns and len(judge.jobs) == 24


def test_an_interrupted_judge_goes_on_where_it_stood(request_, fake_judge):
    def stop_at_five(job):
        if len(judge.jobs) > 5:
            raise KeyboardInterrupt
        return Answer(EVERYTHING)

    judge = fake_judge(stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        score(request_, [judge], QUIET)
    (folder,) = request_.out.iterdir()
    path = folder / "judgements.jsonl"
    assert len(path.read_text().splitlines()) == 5
    path.write_text(path.read_text()[:-20])  # and the machine lost the end of the last line
    rest = fake_judge(lambda job: Answer(EVERYTHING))
    _, result = score(request_, [rest], QUIET)
    assert len(rest.jobs) == 12 - 4 and result.turns[0].scores["overall"] == 1.0
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 12


def test_two_at_once_are_refused(request_, run, fake_judge):
    def meanwhile(job):
        with pytest.raises(ValueError, match="another irg bench score is at work"):
            score(request_, [fake_judge(lambda job: pytest.fail("sent twice"))], QUIET)
        return Answer(EVERYTHING)

    assert score(request_, [fake_judge(meanwhile)], QUIET)[1].complete
    info = RunInfo.load(run.images)
    with files.locked(run.images / ".lock", ""), pytest.raises(ValueError, match="another irg bench run is drawing it"):
        draw_missing(run.images, info, (), None, 1, QUIET)


def test_a_damaged_line_in_the_middle_is_named(request_, fake_judge):
    folder, _ = score(request_, [fake_judge(lambda job: Answer(EVERYTHING))], QUIET)
    path = folder / "judgements.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"judgements\.jsonl, line 2: no JSON .*remove that line"):
        score(request_, [fake_judge(lambda job: Answer(EVERYTHING))], QUIET)


def test_gaps_are_counted_and_shown(request_, fake_judge):
    (request_.images / "00000/samples/0000.png").unlink()
    (request_.images / "00000/samples/0001.png").write_bytes(b"no picture")
    failures = {12: "refused", 13: "outage"}

    def reply(job):
        try:
            failure = failures.get(grey(job))
        except ValueError as error:
            return Answer(None, "unreadable", str(error))
        return Answer(None, failure, "why") if failure else Answer(EVERYTHING)

    judge = fake_judge(reply)
    _, result = score(request_, [judge], QUIET)
    states = {"missing": 1, "unreadable": 1, "refused": 1, "outage": 1, "graded": 8}
    assert result.turns[0].states == states and result.gaps == {k: 1 for k in states if k != "graded"}
    assert result.turns[0].scores["single_object"] == 0.0  # the missing one is the only one that counts
    text = to_markdown(tables([result]))
    assert "of 12 images 1 missing, 1 outage, 1 refused, 1 unreadable" in text and "0.000* [b]" in text
    # an outage is sent again, a refusal only on demand, and as the official scripts do it missing ones are left out
    failures.clear()
    before = len(judge.jobs)
    _, result = score(request_, [judge], QUIET)
    assert len(judge.jobs) - before == 1 and result.gaps == {"missing": 1, "unreadable": 1, "refused": 1}
    _, result = score(replace(request_, retry_failed=True, official_skips=True), [judge], QUIET)
    assert len(judge.jobs) - before == 3 and result.gaps == {"missing": 1, "unreadable": 1}
    assert result.turns[0].scores["single_object"] == 1.0
    assert "--official-skips" in to_markdown(tables([result]))


def test_prompts_that_a_judge_does_not_cover_are_not_sent_and_noted(request_, fake_judge):
    judge = fake_judge(lambda job: Answer(EVERYTHING), covered="dogs")
    _, result = score(request_, [judge], QUIET)
    assert len(judge.jobs) == 4 and set(result.turns[0].scores) >= {"counting", "overall"}
    assert "images: 1 of 3 prompts are covered by its vocabulary (fake)" in to_markdown(tables([result]))


def test_a_limit_is_no_small_vocabulary(run, fake_judge):
    info = RunInfo.load(run.images)
    replace(info, prompt_ids=info.prompt_ids[:1]).save(run.images)
    text = to_markdown(tables([score(run, [fake_judge(lambda job: Answer(EVERYTHING))], QUIET)[1]]))
    assert "only 1 prompts of 3 were drawn (--limit)" in text and "vocabulary" not in text


def test_the_reason_of_a_failure_is_printed(request_, fake_judge):
    out = io.StringIO()
    score(
        request_, [fake_judge(lambda job: Answer(None, "outage", "HTTP 401: wrong key"))], Console(file=out, width=300)
    )
    assert "12 answers failed (outage: HTTP 401: wrong key); see " in out.getvalue()


def test_a_judge_must_answer_the_kind_of_question(request_, fake_judge):
    with pytest.raises(ValueError, match="geneval needs a judge that answers 'detect'; fake does not"):
        score(request_, [fake_judge(lambda job: Answer(""), kinds=("chat",))], QUIET)


def test_a_judge_for_nothing_is_refused(tmp_path, fake_judge):
    (tmp_path / "OneIG-Bench.csv").write_text("category,id,prompt_en\nText_Rendering,002,a sign\n")
    (tmp_path / "text_content.csv").write_text(",id,prompt_en,text_content\n0,002,a sign,['STOP']\n")
    prompts = promptsets.load("oneig", tmp_path / "OneIG-Bench.csv").prompts
    folder = images(tmp_path / "m", prompts, "oneig", 1)
    with pytest.raises(ValueError, match="fake can't answer any of OneIG-Bench"):
        answered("oneig", tmp_path / "OneIG-Bench.csv", folder, [fake_judge(lambda job: Answer({}))], tmp_path)


def test_an_empty_folder_says_where_images_are_looked_for(request_, fake_judge, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty/00000/samples/0000\.png"):
        score(replace(request_, images=tmp_path / "empty"), [fake_judge(lambda job: Answer(""))], QUIET)
    with pytest.raises(ValueError, match="no such folder"):
        replace(request_, images=tmp_path / "nothing").check()


def test_counting_takes_another_threshold_on_demand(request_, fake_judge):
    dogs = {"boxes": {"dog": [[0, 0, 4, 4, 0.5], [5, 5, 9, 9, 0.5]]}, "colors": {}}
    judge = fake_judge(lambda job: Answer(dogs))
    assert score(request_, [judge], QUIET)[1].turns[0].scores["counting"] == 0.0
    assert score(replace(request_, counting_above=0.3), [judge], QUIET)[1].turns[0].scores["counting"] == 1.0


def test_mini_judge_sees_what_the_world_renders(tmp_path):
    try:
        world.load_sprites("fluent")
    except ValueError as error:
        pytest.skip(str(error))  # the judge has never seen the built-in sprites
    request = world.make_request([world.Include("cat", color="red")])
    scene = world.sample_scene(request, np.random.default_rng(0))
    Image.fromarray(world.render(scene)).save(tmp_path / "cat.png")
    judge = MiniJudge()
    prompt = promptsets.BenchPrompt("0", "x", "colors", request.to_json())
    ((_, answer),) = judge.answers([Job(prompt, 0, 1, ImageFile(tmp_path / "cat.png"), Question("detect", "objects"))])
    assert max(box[4] for box in answer.raw["boxes"]["cat"]) > 0.3


def test_mini_judge_tells_its_weights_and_what_it_covers():
    judge = MiniJudge()
    assert judge.identity()["weights_sha256"] == MiniJudge().identity()["weights_sha256"]
    known = promptsets.BenchPrompt("0", "x", "single_object", {"include": [{"class": "cat", "count": 1}]})
    unknown = promptsets.BenchPrompt("0", "x", "single_object", {"include": [{"class": "dragon", "count": 1}]})
    assert judge.covers(known) and not judge.covers(unknown)


# ---------------------------------------------------------------------------------- the other benchmarks


def answered(name, prompts, folder, judges, tmp_path, **more):
    return score(ScoreRequest(name, folder, out=tmp_path / "scores", prompts=str(prompts), **more), judges, QUIET)[1]


def test_wise_through_a_judge(tmp_path, fake_judge):
    entries = [{"Prompt": "p", "Explanation": "e", "Category": "c", "prompt_id": number} for number in (1, 500)]
    (tmp_path / "wise.json").write_text(json.dumps(entries))
    prompts = promptsets.load("wise", tmp_path / "wise.json").prompts
    folder = images(tmp_path / "images", prompts, "wise", 1)
    text = "**Consistency:** 2\n**Realism:** 1\n**Aesthetic Quality:** 0"
    judge = fake_judge(lambda job: Answer(text), kinds=("chat",))
    result = answered("wise", tmp_path / "wise.json", folder, [judge], tmp_path)
    assert result.turns[0].scores == {"culture": pytest.approx(0.8), "time": pytest.approx(0.8)}
    assert '"e"' in judge.jobs[0].question.text and "p" in judge.jobs[0].question.text
    with pytest.raises(ValueError, match="consistency"):
        judge.jobs[0].question.check("no scores")
    strict = answered("wise", tmp_path / "wise.json", folder, [judge], tmp_path, wise_parse="strict")
    assert strict.gaps == {"bad_answer": 2} and len(judge.jobs) == 2  # the same answers, read otherwise


def test_tiif_through_a_judge(tmp_path, fake_judge):
    line = {"type": "text", "short_description": "s", "long_description": "l"}
    questions = {"type": "text", "yn_question_list": ["A?", "B?"], "yn_answer_list": ["Yes", "no"]}
    (tmp_path / "text_prompts.jsonl").write_text(json.dumps(line))
    (tmp_path / "text_eval_prompts.jsonl").write_text(json.dumps(questions))
    prompts = promptsets.load("tiif", tmp_path / "text_prompts.jsonl").prompts
    folder = images(tmp_path / "m", prompts, "tiif", 1)
    (folder / "text/m/long_description/0.png").unlink()
    judge = fake_judge(lambda job: Answer("yes it is\nyes it is"), kinds=("chat",))
    result = answered("tiif", tmp_path / "text_prompts.jsonl", folder, [judge], tmp_path)
    assert (result.turns[0].scores["Overall short"], result.turns[0].scores["Overall long"]) == (0.5, 0.0)
    assert result.unit == "question"
    with pytest.raises(ValueError, match="2 questions, but 1 answers"):
        judge.jobs[0].question.check("yes")


def test_tiif_reads_text_on_demand(tmp_path, fake_judge):
    line = {"type": "text", "short_description": "s", "long_description": "l"}
    questions = {
        "type": "text",
        "yn_question_list": ["Is the text 'Open Day' in the image?"],
        "yn_answer_list": ["Yes"],
    }
    (tmp_path / "text_prompts.jsonl").write_text(json.dumps(line))
    (tmp_path / "text_eval_prompts.jsonl").write_text(json.dumps(questions))
    prompts = promptsets.load("tiif", tmp_path / "text_prompts.jsonl").prompts
    folder = images(tmp_path / "m", prompts, "tiif", 1)
    judges = [
        fake_judge(lambda job: Answer("no"), kinds=("chat",)),
        fake_judge(lambda job: Answer("open"), kinds=("ocr",)),
    ]
    where = (tmp_path / "text_prompts.jsonl", folder)
    sums = answered("tiif", *where, judges, tmp_path, text_extra=True).turns[0].scores
    assert (sums["GNED short"], sums["recall short"], sums["Overall short"]) == (0.5, 0.5, 0.0)
    assert "GNED short" not in answered("tiif", *where, judges, tmp_path).turns[0].scores
    with pytest.raises(ValueError, match="--text-extra needs a judge that reads text"):
        answered("tiif", *where, judges[:1], tmp_path, text_extra=True)


def test_a_folder_may_hold_fewer_samples(request_, fake_judge):
    judge = fake_judge(lambda job: Answer(EVERYTHING))
    _, result = score(replace(request_, samples=1), [judge], QUIET)
    assert len(judge.jobs) == 3 and result.complete
    with pytest.raises(ValueError, match="--num-images must be 1"):
        replace(request_, benchmark="wise", samples=2).check()


def test_genai_bench_from_a_file_of_answers(tmp_path):
    (tmp_path / "genai_image.json").write_text(json.dumps({"00001": {"prompt": "a"}, "00002": {"prompt": "b"}}))
    (tmp_path / "genai_skills.json").write_text(json.dumps({"basic": [1], "advanced": [2]}))
    prompts = promptsets.load("genai_bench", tmp_path / "genai_image.json").prompts
    folder = images(tmp_path / "images", prompts, "genai_bench", 1)
    lines = [{"judge": "CLIP-FlanT5"}, {"prompt": "00001", "kind": "yes", "value": 0.75}]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, lines)))
    (judge,) = make_judges([f"file:{answers}"], JudgeOptions())
    assert isinstance(judge, FileJudge)
    result = answered("genai_bench", tmp_path / "genai_image.json", folder, [judge], tmp_path)
    assert result.judge == "CLIP-FlanT5" and result.turns[0].scores["basic"] == 0.75
    assert result.gaps == {"outage": 1}
    answers.write_text(json.dumps(lines[1]))
    with pytest.raises(ValueError, match="first line must name the judge"):
        make_judges([f"file:{answers}"], JudgeOptions())


def test_oneig_takes_a_judge_for_each_dimension(tmp_path, fake_judge):
    (tmp_path / "OneIG-Bench.csv").write_text(
        "category,id,prompt_en,type,prompt_length,class\n"
        "Portrait,001,a man,NP,short,\nText_Rendering,002,a sign,NP,short,\n"
    )
    (tmp_path / "text_content.csv").write_text(",id,prompt_en,text_content\n0,002,a sign,['STOP']\n")
    (tmp_path / "Q_D").mkdir()
    questions = {"001": {"question": '{"1": "A man?", "2": "Old?"}', "dependency": '{"1": [0], "2": [1]}'}}
    (tmp_path / "Q_D" / "human.json").write_text(json.dumps(questions))
    prompts = promptsets.load("oneig", tmp_path / "OneIG-Bench.csv").prompts
    folder = images(tmp_path / "m", prompts, "oneig", 3)
    chat = fake_judge(lambda job: Answer("Yes" if "man" in job.question.text else "No"), kinds=("chat",), label="vlm")
    reader = fake_judge(lambda job: Answer("STOP"), kinds=("ocr",), label="reader")
    csv = tmp_path / "OneIG-Bench.csv"
    result = answered("oneig", csv, folder, [chat, reader], tmp_path, official_skips=True)
    assert result.turns[0].scores == {"alignment": 0.5, "text": 1.0, "ED": 0.0, "CR": 1.0, "WAC": 1.0}
    assert result.column_judges == {"alignment": "vlm", "text": "reader"}
    assert result.turns[0].states == {"graded": 6, "missing": 2}
    counted = answered("oneig", csv, folder, [chat, reader], tmp_path)
    assert counted.turns[0].scores["alignment"] == pytest.approx(0.375) and counted.turns[0].scores["CR"] == 0.75
    alone = answered("oneig", csv, folder, [reader], tmp_path)
    assert "alignment" not in alone.turns[0].scores and alone.turns[0].states["no judge"] == 3


# ------------------------------------------------------------------------------- runs, reports and tables


@pytest.fixture
def run(geneval_prompts, geneval_json, tmp_path):
    """A run of two turns: the cat is repaired, the dogs are damaged, the bus stays."""
    facts = {"covered_by": None, "covered": 3, "model": "m", "model_fingerprint": "", "model_name": "m", "seed": 0}
    info = new_run(geneval_prompts, geneval_prompts.prompts, 1, mode="irg", settings=Settings().to_dict(), **facts)
    folder = tmp_path / "run"
    open_run(folder, info, resume=False)
    for prompt, values in zip(geneval_prompts.prompts, ((10, 11), (13, 14), (15, 17)), strict=True):
        turns = [
            Turn("<think>first & foremost</think>", flat(values[0]), seconds={"drawing": 1.0}, tokens=5),
            Turn("better", flat(values[1]), seconds={"drawing": 2.0}, tokens=3),
        ]
        save_sample(folder, info, Sample(prompt, 0), Trajectory(prompt.text, "irg", 0, "m", {}, turns))
    (folder / "sessions.jsonl").write_text('{"images": 1, "seconds": 3.5}\n{"images": 2, "seconds": 4.0}\n')
    return ScoreRequest("geneval", folder, prompts=str(geneval_json))


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
    assert "<li><b>repair</b> 100.0 % (100.0–100.0, n 1)</li>" in page and "2.50 s and 8 tokens" in page
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


def test_a_run_remembers_where_its_prompts_were_given(run, fake_judge, monkeypatch):
    monkeypatch.setenv("IRG_OFFLINE", "1")
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
    names = [row.name for row in tables([three], paper=False)[0].rows]
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
    assert len(made) == 2 and [len([row for row in one.rows if not row.paper]) for one in made] == [4, 2]
    text = to_markdown(made)
    assert "[b] judge: one; prompts: original" in text and "[b] judge: two; prompts: original" in text
    assert "| IRG (paper) | 0.980 [a] | 0.830 [a] |" in text and "judge: GenEval's Mask2Former (mmdet)" in text
    rows = to_csv(made).splitlines()
    assert any(',"m, irg, improved",overall,1.0,,,,,"judge: one; ' in row for row in rows)
    assert any(',"m, irg, initial","images, 95 %",1.0,1.0,1.0,3,,' in row for row in rows)
    assert '<td title="judge: two' in to_html(made)
    with pytest.raises(ValueError, match=r"has 2 scores .*name one"):
        Result.load(run.images)
    assert tables(results, paper=False)[0].rows[0].name == "m, irg, initial"


def test_paper_rows_are_the_papers():
    assert set(REPORTED) == set(BENCHMARKS)
    for name, rows in REPORTED.items():
        for row in rows:
            assert set(row.scores) <= set(BENCHMARKS[name].columns), row
    assert {row.model: row.scores["overall"] for row in REPORTED["geneval"]}["IRG (paper)"] == 0.85


def test_every_judge_is_an_entry_point():
    """The built-in ones come in by the same door as a plug-in's, and each has a line of help."""
    assert {"file", "geneval", "hf", "mini", "ocr", "openai", "vqascore"} <= set(registry.names(registry.JUDGES))
    with pytest.raises(ValueError, match="a judge is needed") as caught:
        make_judges([], JudgeOptions())
    for name in registry.names(registry.JUDGES):
        assert re.search(rf"\n  {name} +\S.{{10}}", str(caught.value)), name
    assert "can't be loaded" not in str(caught.value)


def test_the_packages_own_judge_wins_over_a_plugin_of_its_name(monkeypatch):
    plugin = metadata.EntryPoint("ocr", "json:loads", registry.JUDGES)
    monkeypatch.setattr(registry, "entry_points", lambda group: [*metadata.entry_points(group=group), plugin])
    registry._found.cache_clear()
    try:
        assert registry.load(registry.JUDGES, "ocr").__module__ == "irg.evaluation.judges.ocr"
    finally:
        registry._found.cache_clear()


def test_judges_by_name():
    with pytest.raises(ValueError, match="did you mean 'openai'"):
        make_judges(["openia:x"], JudgeOptions())
    with pytest.raises(ValueError, match="hf needs more: hf:MODEL"):
        make_judges(["hf"], JudgeOptions())


def test_a_rubric_fills_in_prompt_and_explanation():
    prompt = promptsets.BenchPrompt("1", "a {prompt}", "c", {"Explanation": "{x}"})
    (ask,) = BENCHMARKS["wise"].questions(prompt, ScoringOptions(rubric="{prompt}|{explanation}"))
    assert ask.text == "a {prompt}|{x}"
