"""Our scorers against the official ones' outputs: every line of whatever cases are there, sums where a file is whole.

``pytest tests/evaluation --official DIR`` runs them on any folder laid out like the published cases.
"""

import csv
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irg import promptsets
from irg.evaluation.benchmarks import genai_bench, geneval, oneig, tiif, wise

pytestmark = pytest.mark.shared
IMAGES = 277  # of a model, each length, in TIIF's testmini


def need(official: Path, place: str) -> Path:
    path = official / place
    if not path.exists():
        pytest.skip(f"{official} has no {place}")
    return path


def need_prompts(official: Path, place: str) -> Path:
    """A prompt file of the folder of cases, or of the usual one when that has cases only."""
    usual = Path(os.environ.get("IRG_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "benchmarks"
    return need(official if (official / place).exists() else usual, place)


def lines(official: Path, place: str) -> list[dict[str, Any]]:
    text = need(official, place).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


# ------------------------------------------------------------------------------------------------ GenEval


def test_geneval_rules(official: Path) -> None:
    prompts = promptsets.load("geneval", need_prompts(official, "geneval/evaluation_metadata.jsonl")).prompts
    wrong = []
    for case in lines(official, "geneval/official/rule_cases.jsonl"):
        found = geneval.judge(prompts[case["index"]].metadata, case["raw_boxes"], case["box_colors"])
        same = found.correct == case["correct"] and found.kept == case["kept"]
        if not same or case.get("reason") not in (None, found.reason):
            wrong.append((case["index"], case.get("variant"), found, case["correct"], case["kept"], case["reason"]))
    assert not wrong, f"{len(wrong)} differ, such as {wrong[0]}"


def test_geneval_summary(official: Path) -> None:
    results = lines(official, "geneval/official/synthetic_results_compact.jsonl")
    printed = need(official, "geneval/official/synthetic_summary_stdout.txt").read_text()
    if f"Total images: {len(results)}" not in printed:
        pytest.skip(f"only {len(results)} lines are there: not what the official sums are of")
    ours = geneval.summarize((f"{one['index']}", one["tag"], one["correct"]) for one in results)
    assert f"Overall score (avg. over tasks): {ours['overall']:.5f}" in printed
    assert (
        f"% correct images: {ours['images']:.2%}" in printed and f"% correct prompts: {ours['prompts']:.2%}" in printed
    )
    for tag in {one["tag"] for one in results}:
        assert f"{tag:<16} = {ours[tag]:.2%} (" in printed


# --------------------------------------------------------------------------------------------------- WISE


def test_wise_parse(official: Path) -> None:
    for case in lines(official, "wise/official/parse_cases.jsonl"):
        assert wise.parse(case["text"], "strict") == case["wise_legacy_extract"], case["text"]
        assert wise.parse(case["text"], "bagel") == case["bagel_extract"], case["text"]


def test_wise_scores(official: Path) -> None:
    expected = json.loads(need(official, "wise/official/synthetic_expected.json").read_text())
    files = sorted(need(official, "wise/official").glob("synthetic_*_scores.jsonl"))
    scores = [(one["prompt_id"], wise.wiscore(one)) for file in files for one in lines(file.parent, file.name)]
    counts = {name: sum(wise.category(number) == name.lower() for number, _ in scores) for name in expected["n"]}
    ours = wise.summarize(scores)
    whole = [name for name, count in expected["n"].items() if counts[name] == count]
    if not whole:
        pytest.skip("no category is whole")
    for name in whole:
        assert ours[name.lower()] == pytest.approx(expected["category_means"][name], abs=1e-12)
    if len(whole) == len(expected["n"]):
        assert ours["overall"] == pytest.approx(expected["overall_weighted_official"], abs=1e-12)
        assert ours["overall_plain"] == pytest.approx(expected["overall_unweighted_bagel"], abs=1e-12)


# --------------------------------------------------------------------------------------------- TIIF-Bench


def tiif_raw(archive: Path) -> Iterator[dict[str, Any]]:
    """Judge files JUDGE/MODEL/ATTRIBUTE/LENGTH/IDX.json, with the model's name added."""
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            if member.isfile() and member.name.endswith(".json") and len(parts) >= 4:
                stream = files.extractfile(member)
                assert stream is not None
                yield {"model": parts[-4], "length": parts[-2], **json.load(stream)}


@pytest.fixture(scope="module")
def tiif_files(official: Path) -> list[dict[str, Any]]:
    archives = sorted(need(official, "tiif/official").glob("*_raw.tar.xz"))
    if not archives:
        pytest.skip("no raw judge outputs are there")
    return [
        {"judge": file.name.removesuffix("_raw.tar.xz").rsplit("_", 1)[-1], **one}
        for file in archives
        for one in tiif_raw(file)
    ]


def test_tiif_answers(tiif_files: list[dict[str, Any]]) -> None:
    wrong = [one for one in tiif_files if tiif.parse(one["model_output"]) != one["model_pred"]]
    assert not wrong, f"{len(wrong)} of {len(tiif_files)} differ, such as {wrong[0]}"


def test_tiif_groups(official: Path, tiif_files: list[dict[str, Any]]) -> None:
    checked = 0
    for judge in sorted({one["judge"] for one in tiif_files}):
        verdicts = defaultdict(list)
        for one in tiif_files:
            if one["judge"] == judge:
                right = tiif.right(tiif.parse(one["model_output"]), one["gt_answers"])
                verdicts[one["model"], one["length"]].append((one["attribute"], right))
        attributes = published_shares(official / f"tiif/official/accuracy_per_attribute_{judge}.csv")
        expected = json.loads(need(official, f"tiif/official/expected_{judge}.json").read_text())
        for (model, length), values in verdicts.items():
            shares = {name: one.share for name, one in tiif.accuracies(values).items()}
            # A model with all 277 x 2 images must agree. One with fewer may lack them in the published results
            # (then its attributes agree and its groups must) or only here (then there is nothing to compare with).
            if len(values) >= IMAGES or shares == attributes.get((model, length)):
                check_groups(shares, expected[model][length], f"{judge}, {model}, {length}")
                checked += 1
    if not checked:
        pytest.skip("no model's judge outputs are whole")


def check_groups(shares: dict[str, float], expected: dict[str, float], where: str) -> None:
    ours = tiif.summarize(shares)
    missing = [one for one in tiif.ATTRIBUTES if one not in shares and one != "real_world"]  # which is not counted
    assert len(missing) == expected.get("n_missing_attributes", 0), where
    for name, value in expected.items():
        if name == "n_missing_attributes":
            continue
        if value is None or np.isnan(value):
            assert name not in ours, (where, name)
        else:
            assert ours[name] == pytest.approx(value, abs=1e-12), (where, name)


def published_shares(table: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(model, length) -> accuracy per attribute, from the official script's table (columns ``attribute|length``)."""
    if not table.is_file():
        return {}
    shares: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            model = row.pop("")
            for column, value in row.items():
                attribute, _, length = column.partition("|")
                if attribute in tiif.GROUP_OF and value:
                    shares[model, length][attribute] = float(value)
    return shares


def test_tiif_text_extra(official: Path) -> None:
    for case in lines(official, "tiif/official/gned_recall_cases_synthetic_ocr.jsonl"):
        gned, recall = tiif.text_match(case["gt"], case["ocr"])
        assert (gned, recall) == (pytest.approx(case["gned"], abs=1e-12), pytest.approx(case["recall"], abs=1e-12)), (
            case
        )


# -------------------------------------------------------------------------------------------- GenAI-Bench


def test_genai_bench_means(official: Path) -> None:
    skills = json.loads(need_prompts(official, "genai_bench/genai_skills.json").read_text())
    scores = json.loads(need(official, "genai_bench/official/synthetic_scores_1600.json").read_text())
    expected = json.loads(need(official, "genai_bench/official/synthetic_expected.json").read_text())
    own: dict[int, list[str]] = defaultdict(list)
    for skill, numbers in skills.items():
        for number in numbers:
            own[int(number)].append(skill)
    values = scores if isinstance(scores, list) else [scores[key] for key in sorted(scores)]
    if max(own) >= len(values):
        pytest.skip("the scores are not whole")
    ours = genai_bench.summarize((own[number], value) for number, value in enumerate(values))
    assert ours["every"] == pytest.approx(expected.pop("plain_mean_of_1600"), abs=1e-12)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value["mean"], abs=1e-12), name


# -------------------------------------------------------------------------------------------------- OneIG


def test_oneig_text(official: Path) -> None:
    prompts = promptsets.load("oneig", need_prompts(official, "oneig/OneIG-Bench.csv")).by_id()
    cases = lines(official, "oneig/official/text_cases_synthetic_ocr.jsonl")
    every = []
    for case in cases:
        wanted = prompts[f"text/{case['id']}"].metadata["text_content"]
        assert oneig.clean_text(" ".join(wanted)) == case["gt_preprocessed"]
        matches = [oneig.text_match(wanted, read) for read in case["ocr_raw"]]
        assert [match.distance for match in matches] == case["ed"], case["id"]
        assert [match.right for match in matches] == [bool(value) for value in case["cr"]], case["id"]
        assert [match.matched / match.words for match in matches] == pytest.approx(case["wac"], abs=1e-9), case["id"]
        every += matches
    expected = json.loads(need(official, "oneig/official/synthetic_expected.json").read_text())["text_60_prompts_x4"]
    if sum(match.words for match in every) == expected["sum_gt_words"]:
        ours = oneig.summarize_text(every)
        assert sum(match.matched for match in every) == expected["sum_match"]
        for name in ("ED", "CR", "WAC"):
            assert ours[name] == pytest.approx(expected[name], abs=1e-12)
        assert ours["score"] == pytest.approx(expected["text_score"], abs=1e-12)


def test_oneig_alignment(official: Path) -> None:
    prompts = promptsets.load("oneig", need_prompts(official, "oneig/OneIG-Bench.csv")).by_id()
    whole = json.loads(need(official, "oneig/official/synthetic_expected.json").read_text())["alignment_120_prompts"]
    codes = whole["answer_codes"]
    scores = []
    for case in lines(official, "oneig/official/alignment_cases_synthetic_answers.jsonl"):
        facts = prompts[f"{case['class'].replace('portrait', 'human')}/{case['id']}"].metadata
        answers = [
            {str(number): codes[given[image]] for number, given in enumerate(case["answers"], start=1)}
            for image in range(case["n_images"])
        ]
        score, _ = oneig.alignment(answers, facts["dependency"])
        assert score == pytest.approx(case["score"], abs=1e-12), case["id"]
        scores.append(score)
    if len(scores) == whole["n_scored"]:
        assert np.mean(scores) == pytest.approx(whole["mean"], abs=1e-12)
