"""Scoring: raw answers are kept, nothing is judged twice, what is missing is counted, each benchmark has its judges."""

import io
import json
from dataclasses import replace

import pytest
from bench_images import EVERYTHING, NOTHING, QUIET, grey, images
from rich.console import Console

from irg import files, promptsets
from irg.evaluation.benchmarks.base import ScoringOptions
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.generation import draw_missing
from irg.evaluation.judges import Answer, JudgeOptions, make_judges
from irg.evaluation.judges.file import FileJudge
from irg.evaluation.results import Result
from irg.evaluation.runs import RunInfo
from irg.evaluation.scoring import ScoreRequest, score
from irg.evaluation.table_formats import to_markdown
from irg.evaluation.tables import tables


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
    assert "of 12 images 1 missing, 1 outage, 1 refused, 1 unreadable" in text and "0.000* [a]" in text
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


def test_a_rubric_fills_in_prompt_and_explanation():
    prompt = promptsets.BenchPrompt("1", "a {prompt}", "c", {"Explanation": "{x}"})
    (ask,) = BENCHMARKS["wise"].questions(prompt, ScoringOptions(rubric="{prompt}|{explanation}"))
    assert ask.text == "a {prompt}|{x}"
