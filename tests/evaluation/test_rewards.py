"""Judges of benchmarks as rewards, on answers whose worth is known."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from irg import recipes
from irg.evaluation.rewards import GenEvalReward, OCRReward, VQAReward
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Rewards, RewardTerm, Score
from irg.results.trajectory import Trajectory, Turn

pytestmark = pytest.mark.usefixtures("own_plugins")


def answers(path: Path, kind: str, *values: Any) -> str:
    """A judge whose answer to the n-th trajectory is the n-th value."""
    lines = [{"judge": "known"}] + [{"prompt": str(i), "kind": kind, "value": v} for i, v in enumerate(values)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return f"file:{path}"


def drawn(image: bool = True) -> Trajectory:
    turns = [Turn("plan", Image.new("RGB", (8, 8)) if image else None)]
    return Trajectory("p", "think", 0, "tiny", {}, turns)


def values(found: list[Any]) -> list[float | None]:
    return [one.value if isinstance(one, Score) else None for one in found]


def test_geneval_counts_what_the_rules_accept(tmp_path: Path) -> None:
    truth = {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]}
    cat, dog = [[0, 0, 4, 4, 0.9]], [[5, 5, 8, 8, 0.8]]
    seen = [{"boxes": boxes} for boxes in ({"cat": cat, "dog": dog}, {"cat": cat}, {}, {"cat": cat})]
    judge = answers(tmp_path / "a.jsonl", "detect", *seen)
    prompts = [Prompt("a cat and a dog", truth)] * 3 + [Prompt("anything")]
    found = GenEvalReward(judge=judge).scores(prompts, [drawn()] * 4)
    assert values(found) == [1.0, 0.0, 0.0, None] and "no GenEval metadata" in str(found[3])
    assert isinstance(found[1], Score) and found[1].reasons == "expected dog>=1, found 0"
    assert values(GenEvalReward(judge=judge, partial=True).scores(prompts, [drawn()] * 4))[:3] == [1.0, 0.5, 0.0]
    assert "there is no image" in str(GenEvalReward(judge=judge).scores(prompts[:1], [drawn(False)])[0])


def test_ocr_measures_the_distance_to_the_text(tmp_path: Path) -> None:
    pytest.importorskip("rapidfuzz")
    judge = answers(tmp_path / "a.jsonl", "ocr", "OPEN", "OPE", "far too much text here", "x", "OPEN\n24 h")
    prompts = [Prompt('a sign that says "OPEN"')] * 3 + [
        Prompt("a sign"),
        Prompt("", {"text_content": ["OPEN", "24 h"]}),
    ]
    found = OCRReward(judge=judge).scores(prompts, [drawn()] * 5)
    assert values(found) == [1.0, 0.75, 0.0, None, 1.0] and "says no text" in str(found[3])


def test_the_chance_of_a_yes(tmp_path: Path) -> None:
    judge = answers(tmp_path / "a.jsonl", "yes", 0.8)
    found = VQAReward(judge=judge).scores([Prompt("a"), Prompt("b")], [drawn()] * 2)
    assert values(found) == [0.8, None] and "no answer" in str(found[1])
    assert VQAReward(judge=judge)(Prompt("a"), drawn()).value == 0.8
    assert VQAReward(judge="x", question_text="{prompt}? {yes}").question(Prompt("a cat")).text == "a cat? {yes}"


def test_a_weighted_sum_whose_terms_fail_apart(tmp_path: Path) -> None:
    judge = answers(tmp_path / "a.jsonl", "yes", 0.5)
    rewards = Rewards([RewardTerm("vqa", 2.0, {"judge": judge}), RewardTerm("geneval", 1.0, {"judge": judge})])
    with pytest.raises(ValueError, match="it answers yes, not detect"):
        rewards.prepare()
    rewards = Rewards([RewardTerm("vqa", 2.0, {"judge": judge})])
    rewards.prepare()
    judged = rewards.judge([Prompt("a"), Prompt("b")], [drawn()] * 2)
    assert [one.total for one in judged] == [1.0, None] and "vqa: " in judged[1].failure


def test_wrong_options_are_told_by_name() -> None:
    with pytest.raises(ValueError, match="judge must name one that says yes or no"):
        VQAReward()
    with pytest.raises(ValueError, match=r"jugde: unknown field \(did you mean 'judge'"):
        recipes.build(GenEvalReward, {"jugde": "mini"})
    with pytest.raises(ValueError, match="no judge 'nobody'"):
        GenEvalReward(judge="nobody").prepare()
