"""``irg data checks``: conversations and rows of one turn from a model's own plans."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from irg.learning.data.conversations import parse_conversation
from irg.results.reflection import is_done
from irg_mini import world
from irg_mini.data.checks import Checks, _far, _requests, borderline_scene, build
from irg_mini.measure.compare_critic import CompareCritic
from irg_mini.world.rules import TOUCHING, relation_strength, worst_overlap


def test_rows_and_resuming(tmp_path: Path) -> None:
    options = Checks(str(tmp_path), scenes=5, prompts=2, rows_per_shard=4, sprites="builtin", vocab="core")
    made = build(options)
    names = ["planned-00000.parquet", "planned-00001.parquet", "scenes-00000.parquet", "scenes-00001.parquet"]
    files = sorted((tmp_path / "checks").iterdir())
    rows = [text for file in files for text in pq.read_table(file)["conversation"].to_pylist()]
    assert [file.name for file in files[-2:]] == names[2:] and made == len(rows)
    for row in rows:
        system, _, listed, question, answer = parse_conversation(row, "row")
        assert (system.text, question.text, answer.loss) == ("Think, then draw.", "Is it right?", True)
        assert listed.text is not None and listed.text.startswith(("Scene: ", "in the picture: ", "Unknown: "))
        assert answer.text is not None and answer.text.startswith("<think> Analysis: ")
    assert {is_done(json.loads(row)[-1]["content"][0]["content"]) for row in rows} == {True, False}
    critic = CompareCritic()
    for file in (tmp_path / "plans").iterdir():  # right ones alone
        for plan in pq.read_table(file).to_pylist():
            assert critic.accepts(plan["prompt"], plan["thinking"]) and plan["reflection"] is None
    critic.close()
    assert build(options) == 0
    before = files[-1].read_bytes()
    files[-1].unlink()
    assert build(options) == 1 and files[-1].read_bytes() == before


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="one must be positive, got 0 and 0"):
        Checks("out", scenes=0, prompts=0)
    with pytest.raises(ValueError, match="question must not be empty"):
        Checks("out", question=" ")


def test_others_than_the_first_two_things_are_related_in_many_prompts() -> None:
    """Else a model learns to look up the first two places."""
    requests = _requests(Checks("out", sprites="builtin"), np.random.default_rng(1))
    far = [_far(next(requests)[0]) for _ in range(200)]
    assert 0.2 < sum(far) / len(far) < 0.5
    request = world.parse_prompt("a dog left of a cat, a bus and a train")
    other = world.parse_prompt("a photo of a bus, a train and a dog left of a cat")
    assert request is not None and other is not None
    assert not _far(request) and _far(other)


def test_what_barely_holds_and_what_barely_fails_is_as_frequent() -> None:
    """Else a model takes whatever nearly stands on another thing for standing on it."""
    rng = np.random.default_rng(3)
    request = world.parse_prompt("a photo of a cat on a couch")
    assert request is not None
    answers = []
    for _ in range(60):
        scene = borderline_scene(request, world.sample_scene(request, rng), rng)
        if scene is not None:
            cat, couch = sorted(scene.things, key=lambda thing: thing.name)
            assert abs(relation_strength(cat.box, couch.box, "on") - 0.5) < 0.3
            answers.append(is_done(world.check(request, scene, True, 128)))
    assert len(answers) > 50 and 0.3 < sum(answers) / len(answers) < 0.7
    empty = world.Scene("sea", ())
    assert borderline_scene(request, empty, rng) is None
    alone = world.Scene("sea", world.sample_scene(request, rng).things[:1])
    assert borderline_scene(request, alone, rng) is None


def test_pairs_that_barely_overlap() -> None:
    rng = np.random.default_rng(3)
    request = world.parse_prompt("a photo of a cat, a couch and a bus")
    assert request is not None
    scenes = [borderline_scene(request, world.sample_scene(request, rng), rng) for _ in range(20)]
    found = [scene for scene in scenes if scene is not None]
    assert len(found) > 10 and all(worst_overlap(request, scene) > 0.02 for scene in found)
    crowded = [worst_overlap(request, scene) > TOUCHING for scene in found]
    assert {True, False} == set(crowded)
