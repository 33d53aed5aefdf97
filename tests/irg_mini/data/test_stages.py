"""The mini world as judge: scores follow the flaws, and both orders agree."""

import json

import numpy as np
import pytest

from irg_mini import world
from irg_mini.data.judging import MiniRowJudge, preserved, verdict
from irg_mini.data.requests import drawable, random_request
from irg_mini.data.stages import MiniDrafts, MiniReflections, MiniTargets

REQUEST = world.make_request([world.Include("apple", 2, "red"), world.Include("cup")])


def scene(text: str) -> list[world.Seen]:
    return world.see(world.parse_layout(f"Scene: studio. Things: {text}."), 96)


RIGHT = "medium red apple at (2,6); medium red apple at (6,6); medium cup at (10,6)"


@pytest.mark.parametrize(
    ("things", "following"),
    [
        (RIGHT, 10.0),
        (RIGHT.replace("red apple at (6,6)", "green apple at (6,6)"), 5.0),
        ("medium red apple at (2,6); medium cup at (10,6)", 5.0),
        ("medium red apple at (2,6)", 3.333),
    ],
)
def test_following_falls_with_the_flaws(things: str, following: float) -> None:
    assert verdict(REQUEST, scene(things), None, 96) == (following, 10.0)


def test_a_spoiled_image_has_less_quality() -> None:
    assert verdict(REQUEST, scene(RIGHT), "blurred", 96) == (10.0, 4.0)


def test_preservation_counts_what_was_right_and_stayed() -> None:
    before = scene(RIGHT.replace("red apple at (6,6)", "green apple at (6,6)"))
    assert preserved(REQUEST, before, scene(RIGHT), 96) == 10.0
    moved = RIGHT.replace("cup at (10,6)", "cup at (10,2)")
    assert preserved(REQUEST, before, scene(moved), 96) == 5.0
    assert preserved(REQUEST, [], scene(RIGHT), 96) == 10.0


def test_rows_are_mended_and_the_judge_sees_it() -> None:
    gains = []
    for seed in range(30):
        row = {"id": str(seed), "prompt": "", "request": json.dumps(REQUEST.to_json()), "turns": 2, "seed": seed}
        row |= MiniDrafts("miniworld", sprites="builtin").make(row)
        row |= MiniReflections("miniworld", sprites="builtin").make(row)
        row |= MiniTargets("miniworld", sprites="builtin").make(row)
        scores = MiniRowJudge("miniworld", sprites="builtin").make(row)
        assert scores["world_target_following"] == 10.0 and scores["world_gain_1"] == scores["world_gain_2"] >= 0
        nothing = "nothing is wrong" in world.parse_reflection(row["reflection"]).analysis
        assert nothing == (scores["world_gain_1"] == 0)
        gains.append(scores["world_gain_1"])
    assert 5 < np.count_nonzero(gains) < 30


def test_the_same_row_is_the_same_whoever_makes_it() -> None:
    row = {"id": "a", "prompt": "", "request": json.dumps(REQUEST.to_json()), "turns": 2, "seed": 3}
    one, two = (MiniDrafts("miniworld", sprites="builtin").make(dict(row)) for _ in range(2))
    assert one == two


def test_only_what_there_are_sprites_of_is_asked_for() -> None:
    some = world.Sprites("some", dict.fromkeys(["cat", "hawk", "bus", "oven"], np.zeros((1, 1, 4), np.uint8)))
    assert drawable("core", some).nouns == ("bus", "cat")
    known = drawable("geneval", some)
    assert known.nouns == ("bus", "cat", "oven") and "behind" in known.relations and known.max_count == 5
    with pytest.raises(ValueError, match="unknown vocabulary 'all'"):
        drawable("all", some)


def test_prompts_are_never_genevals_nor_held_out() -> None:
    sprites = world.Sprites("all", dict.fromkeys(world.classes("geneval"), np.zeros((1, 1, 4), np.uint8)))
    rng, tags = np.random.default_rng(0), set()
    for _ in range(300):
        request, prompt = random_request(rng, drawable("geneval", sprites))
        tags.add(request.tag)
        known = all(entry.unknown is None for entry in request.include) and request.background is None
        assert not world.held_out(request)
        assert not (known and world.in_geneval(request)) or prompt != world.caption(request)
        assert request.tag == "single_object" or not world.in_geneval(request)
    assert tags == set(world.FULL_TAGS)
