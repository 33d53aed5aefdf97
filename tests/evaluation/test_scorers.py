"""The five scorers on small literal cases; the official cases are in test_official.py."""

import subprocess
import sys

import pytest

from irg.evaluation import statistics
from irg.evaluation.benchmarks import genai_bench, geneval, oneig, tiif, wise
from irg.evaluation.benchmarks.base import ScoringOptions
from irg.evaluation.benchmarks.geneval_rules import relations
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.benchmarks.text_distance import levenshtein, match_words
from irg.promptsets import BenchPrompt

# ------------------------------------------------------------------------------------------------ GenEval

LEFT, RIGHT = [0, 40, 20, 60, 0.9], [80, 40, 100, 60, 0.95]


def metadata_of(*clauses, tag="two_object", **more):
    return {"tag": tag, "include": [{"count": 1, **clause} for clause in clauses], **more}


@pytest.mark.parametrize(
    ("metadata", "boxes", "colors", "correct", "reason"),
    [
        (metadata_of({"class": "cat"}), {"cat": [LEFT]}, None, True, ""),
        (metadata_of({"class": "cat"}), {"cat": [[0, 0, 9, 9, 0.3]]}, None, False, "expected cat>=1, found 0"),
        (metadata_of({"class": "cat"}), {}, None, False, "expected cat>=1, found 0"),
        (
            metadata_of({"class": "cat", "count": 2}, tag="counting"),
            {"cat": [LEFT, RIGHT]},
            None,
            False,
            "expected cat>=2, found 1",
        ),
        (metadata_of({"class": "cat", "color": "red"}), {"cat": [LEFT, RIGHT]}, {"cat": ["red", "blue"]}, False, None),
        (metadata_of({"class": "cat", "color": "blue"}), {"cat": [LEFT, RIGHT]}, {"cat": ["red", "blue"]}, True, ""),
        (
            metadata_of({"class": "cat"}, {"class": "dog", "position": ["right of", 0]}),
            {"cat": [LEFT], "dog": [RIGHT]},
            None,
            True,
            "",
        ),
        (
            metadata_of({"class": "cat"}, {"class": "dog", "position": ["left of", 0]}),
            {"cat": [LEFT], "dog": [RIGHT]},
            None,
            False,
            "expected dog left of target, found right of target",
        ),
        (
            metadata_of({"class": "cat"}, {"class": "dog", "position": ["left of", 0]}),
            {"dog": [RIGHT]},
            None,
            False,
            "expected cat>=1, found 0\nno target for dog to be left of",
        ),
        (
            metadata_of({"class": "cat"}, exclude=[{"class": "cat", "count": 2}]),
            {"cat": [LEFT, RIGHT]},
            None,
            False,
            "expected cat<2, found 2",
        ),
    ],
)
def test_geneval_verdicts(metadata, boxes, colors, correct, reason):
    found = geneval.judge(metadata, boxes, colors)
    assert found.correct is correct
    assert reason is None or found.reason == reason


def test_geneval_keeps_sixteen_and_takes_the_later_of_equal_scores():
    many = [[i, 0, i + 1, 1, 0.5] for i in range(20)]
    assert geneval.judge(metadata_of({"class": "cat"}), {"cat": many}).kept == {"cat": 16}
    # the surest box decides the color; of two equally sure ones the official order takes the later
    tied = {"cat": [[0, 0, 9, 9, 0.5], [20, 0, 29, 9, 0.5]]}
    assert geneval.judge(metadata_of({"class": "cat", "color": "blue"}), tied, {"cat": ["red", "blue"]}).correct
    # numpy's default sort leaves the order of these two open, on some CPUs the earlier came first
    more = {"cat": [[i, 0, i + 1, 1, score] for i, score in enumerate((0.9, 0.9, 0.2, 0.5))]}
    colors = {"cat": ["red", "blue", "red", "red"]}
    assert geneval.judge(metadata_of({"class": "cat", "color": "blue"}), more, colors).correct


def test_geneval_rules_import_nothing_heavy():
    """The mini world's worker processes import them."""
    code = "import sys, irg.evaluation.benchmarks.geneval_rules; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "irg.promptsets", "irg.evaluation.benchmarks.base"} & set(loaded)


def test_geneval_wants_a_color_for_each_box():
    with pytest.raises(ValueError, match="2 boxes, but 1 colors"):
        geneval.judge(metadata_of({"class": "cat", "color": "red"}), {"cat": [LEFT, RIGHT]}, {"cat": ["red"]})


def test_geneval_relations_shrink_by_a_tenth_of_both_sizes():
    assert relations([0, 0, 10, 10], [0, 0, 10, 10]) == set()
    assert relations([0, 0, 10, 10], [1.9, 0, 11.9, 10]) == set()  # offset 1.9 < 0.1 * (10 + 10)
    assert relations([0, 0, 10, 10], [5, 0, 15, 10]) == {"left of"}
    assert relations([0, 0, 10, 10], [20, 20, 30, 30]) == {"left of", "above"}


def test_geneval_summary_is_the_mean_of_tags():
    ours = geneval.summarize([("0", "colors", True), ("0", "colors", False), ("1", "counting", False)])
    assert ours == {"counting": 0.0, "colors": 0.5, "overall": 0.25, "images": pytest.approx(1 / 3), "prompts": 0.5}
    assert geneval.summarize([]) == {}


# --------------------------------------------------------------------------------------------------- WISE


@pytest.mark.parametrize(
    ("text", "strict", "tolerant"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", (2, 1, 0), (2, 1, 0)),
        ("**Consistency:** 1\n**Realism:** 2\n**Aesthetic Quality:** 1", None, (1, 2, 1)),
        ("Consistency：2\nRealism：1\nAesthetic Quality：1", None, (2, 1, 1)),
        ("consistency 1 realism 1 aesthetic quality 2", (1, 1, 2), (1, 1, 2)),
        ("Consistency (0-2): 1\nRealism (0-2): 2\nAesthetic Quality (0-2): 0", None, (1, 2, 0)),
        ('{"consistency": 1, "realism": "2", "aesthetic_quality": 0}', None, (1, 2, 0)),
        ("Consistency: 2/2\n- Realism: 1\n* Aesthetic Quality: 1/2", (2, 1, 1), (2, 1, 1)),
        ("2\n 1 \n0\n", (2, 1, 0), (2, 1, 0)),
        ("Consistency: 2.0\nRealism: 1.00\nAesthetic Quality: 0.0", (2, 1, 0), (2, 1, 0)),
        ("Consistency: 0-2 -> 2\nRealism: 0–2 → 1\nAesthetic Quality: 0 - 2: 1", (0, 0, 0), (2, 1, 1)),
        ("Consistency: 0-2\nRealism: 1-2\nAesthetic Quality: 1", (0, 1, 1), None),
        ("Consistency: 1\nConsistency: 2\nRealism: 1\nAesthetic Quality: 1", (2, 1, 1), (2, 1, 1)),
        ("I can't judge this.", None, None),
        ("2\n1", None, None),
    ],
)
def test_wise_parses(text, strict, tolerant):
    for how, expected in (("strict", strict), ("tolerant", tolerant)):
        found = wise.parse(text, how)
        values = tuple(found[name] for name in wise.CRITERIA) if set(found) == set(wise.CRITERIA) else None
        assert values == expected, how


def test_wise_tolerant_takes_no_number_beyond_two():
    assert wise.parse("Consistency: 10\nRealism: 3\nAesthetic Quality: 2.5") == {}


def test_wise_scores():
    assert wise.wiscore({"consistency": 2, "realism": 1, "aesthetic_quality": 0}) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="realism must be 0 to 2"):
        wise.wiscore({"consistency": 2, "realism": 9.9, "aesthetic_quality": 0})
    with pytest.raises(ValueError, match="aesthetic_quality"):
        wise.wiscore({"consistency": 2, "realism": 1})
    borders = {1: "culture", 400: "culture", 401: "time", 567: "time", 568: "space", 700: "space", 701: "biology"}
    assert {number: wise.category(number) for number in borders} == borders
    with pytest.raises(ValueError, match="1 to 1000"):
        wise.category(1001)


def test_wise_overall_needs_all_six():
    firsts = {"culture": 1, "time": 401, "space": 568, "biology": 701, "physics": 801, "chemistry": 901}
    scores = [(number, float(name == "culture")) for name, number in firsts.items()]
    ours = wise.summarize(scores)
    assert (ours["overall"], ours["overall_plain"]) == (pytest.approx(0.4), pytest.approx(1 / 6))
    assert "overall" not in wise.summarize(scores[:5])


# --------------------------------------------------------------------------------------------- TIIF-Bench


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("yes\nno", ["yes", "no"]),
        ("Yes, there is.\n\n  NO.\nmaybe\nyesterday\nno\tit is red", ["yes", "no", "no"]),
        ("1. yes\n2) No\n3 - yes", ["yes", "no", "yes"]),
        ("**Yes**\n_no_\n* yes\n**2.** no", ["yes", "no", "yes", "no"]),
        ("Q1: yes\nQuestion 2: no\nAnswer 3. yes", ["yes", "no", "yes"]),
        ("1. Is it red? yes\n12 yes\n1. nothing", []),
        ("yes: a\r\nno: b", ["yes", "no"]),
        ("", []),
    ],
)
def test_tiif_parses(text, answers):
    assert tiif.parse(text) == answers


def test_tiif_counts_must_agree():
    assert tiif.right(["yes", "no"], ["Yes", "yes"]) == [True, False]
    with pytest.raises(ValueError, match="2 questions, but 1 answers"):
        tiif.right(["yes"], ["yes", "no"])


def test_tiif_groups():
    assert len(tiif.ATTRIBUTES) == 39 and len(set(tiif.ATTRIBUTES)) == 39
    pooled = tiif.accuracies([("text", [True, False]), ("text", [True]), ("style", [])])
    assert {name: one.share for name, one in pooled.items()} == {"text": 0.6667}
    ours = tiif.summarize({"text": 0.5, "negation": 1.0, "numeracy": 0.5, "real_world": 0.0})
    assert ours["Basic/Reasoning"] == 0.75 and "Advanced/Style" not in ours
    assert ours["Overall"] == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert (ours["Basic/Avg"], ours["Advanced/Avg"]) == (0.75, 0.5)
    with pytest.raises(ValueError, match="unknown TIIF attribute 'colour'"):
        tiif.summarize({"colour": 1.0})


def test_tiif_text_match():
    assert tiif.text_match(["tea", "cake"], ["Cake tea"]) == (0.0, 1.0)
    assert tiif.text_match(["tea"], [""]) == (1.0, 0.0)
    gned, recall = tiif.text_match(["delight"], ["dlight", "noise"])
    assert (gned, recall) == (pytest.approx((1 / 7 + 1) / 2), 1.0)


# ----------------------------------------------------------------------------------- GenAI-Bench and OneIG


def test_genai_bench_all_leaves_out_untagged():
    ours = genai_bench.summarize([(("basic", "scene"), 0.8), (("advanced",), 0.4), ((), 0.0)])
    assert ours == {
        "scene": 0.8,
        "basic": 0.8,
        "advanced": 0.4,
        "all": pytest.approx(0.6),
        "every": pytest.approx(0.4),
    }


def test_oneig_alignment_zeroes_children_but_not_grandchildren():
    depends = {"1": [0], "2": [1], "3": [2]}
    score, fulfilled = oneig.alignment([{"1": "No", "2": "Yes", "3": "Yes"}], depends)
    assert fulfilled == [[False, False, True]] and score == pytest.approx(1 / 3)
    assert oneig.alignment([{"1": "Yes."}, {"1": "Yes"}], {"1": [0]})[0] == 0.5
    with pytest.raises(ValueError, match="at least one image"):
        oneig.alignment([], depends)


def test_oneig_text():
    match = oneig.text_match(["Stop, now!", "50%"], "addCriterion\nStop  now\n50")
    assert (match.distance, match.right, match.matched, match.words) == (0, True, 3, 3)
    nothing = oneig.text_match(["Stop"], "No text recognized.")
    assert (nothing.distance, nothing.right, nothing.matched) == (4, False, 0)
    ours = oneig.summarize_text([match, nothing])
    assert ours == {"ED": 2.0, "CR": 0.5, "WAC": 0.75, "score": pytest.approx(1 - 2 * 0.5 * 0.25 / 100)}
    far = oneig.TextMatch(300, False, 0, 4)
    assert oneig.summarize_text([far])["score"] == 0.0


def test_oneig_overall_needs_all_dimensions():
    assert oneig.overall(dict.fromkeys(oneig.DIMENSIONS, 0.5)) == 0.5
    assert oneig.overall({"text": 0.5}) is None


# -------------------------------------------------------------------------------- distances and statistics


def test_levenshtein_counts_characters():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == 3 and levenshtein("😀a", "a") == 1


def test_words_are_matched_at_least_total_distance():
    """Greedy matching would give "ab" to "abc" first; the wanted words' distances come first, in their order."""
    assert match_words(["abc", "ab"], ["ab", "abd"]) == [pytest.approx(1 / 3), 0.0]
    assert match_words(["a"], ["b", "a", "c"]) == [0.0, 1.0, 1.0]
    assert match_words(["a", "b"], []) == [1.0, 1.0]


@pytest.mark.parametrize("library", ["rapidfuzz.distance", "scipy.optimize"])
def test_missing_libraries_are_named_before_anything_is_judged(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    prompt = BenchPrompt("text/1", "a sign", "text", {"text_content": ["STOP"]})
    with pytest.raises(ValueError, match=r"needs rapidfuzz and scipy .*pip install 'irg\[eval\]'"):
        BENCHMARKS["oneig"].questions(prompt, ScoringOptions())


def test_repair_and_damage_with_intervals():
    before = [("a", [False, True]), ("b", [True]), ("c", [False])]
    after = {"a": [True, True], "b": [False], "c": [False]}
    repair, damage = statistics.repair_and_damage([(name, values, after[name]) for name, values in before])
    assert (repair.value, repair.of) == (0.5, 2)
    assert (damage.value, damage.of) == (0.5, 2)
    assert repair.low == 0.0 and repair.high == 1.0
    none, kept = statistics.repair_and_damage([("a", [True], [True])])
    assert none.value is None and kept.value == 0.0


def test_intervals_draw_whole_prompts():
    alone = statistics.bootstrap_interval([(float(i % 2), 1.0) for i in range(400)])
    together = statistics.bootstrap_interval([(4.0 * (i % 2), 4.0) for i in range(100)])
    assert alone is not None and together is not None
    assert alone[0] < 0.5 < alone[1] and together[1] - together[0] > 1.5 * (alone[1] - alone[0])
