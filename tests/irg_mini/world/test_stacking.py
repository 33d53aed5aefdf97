"""On and behind: the rules for boxes, the places, the order of painting; and everything together in the full world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import irg_mini.world as mw
from irg.results.reflection import is_done
from irg_mini.world.geometry import behind_strength, on_strength
from irg_mini.world.rules import holds, placed
from irg_mini.world.scene import CONVERSE, drawing_order, related_cells

SEEDS = st.integers(0, 2**32 - 1)
COUCH = (20.0, 50.0, 80.0, 90.0)
A_CAT_ON_A_COUCH = mw.make_request([mw.Include("couch"), mw.Include("cat", position=("on", 0))])


@pytest.mark.parametrize(
    ("box", "relation"),
    [
        ((40, 32, 60, 52), "on"),  # its feet sink in by 2 px
        ((40, 33, 60, 50), "on"),  # it just touches
        ((40, 20, 60, 40), None),  # it floats
        ((78, 32, 98, 52), None),  # beside
        ((40, 45, 60, 65), None),  # three quarters of it are hidden: too much
        ((45, 30, 75, 66), "behind"),
        ((45, 55, 65, 75), None),  # wholly inside
        ((0, 0, 100, 70), None),  # larger than what would hide it
    ],
)
def test_on_and_behind_by_example(box: tuple[float, ...], relation: str | None) -> None:
    assert holds(box, COUCH, "on") == (relation == "on")
    assert holds(box, COUCH, "behind") == (relation == "behind")


def test_strengths_to_the_digit() -> None:
    # Mean height 30: sunk by 0.08 * 30 and in the middle is perfect; 0.18 * 30 = 5.4 px up or down is the limit.
    assert on_strength((40, 32.4, 60, 52.4), COUCH) == pytest.approx(1.0)
    assert on_strength((40, 27.0, 60, 47.0), COUCH) == pytest.approx(0.5)
    assert on_strength((40 + 0.36 * 60, 32.4, 60 + 0.36 * 60, 52.4), COUCH) == pytest.approx(0.5)
    assert on_strength((0, 0, 20, 10), COUCH) == -1
    # A box of 30 x 36 px with 16 x 30 px of it behind the couch: (16 / 36 - 0.4) / 0.25 from the ideal share;
    # 16 px down in mean heights of 38: 2 - 16 / 38 / 0.3 is worse, and so is the area, 1080 / 2400.
    expected = 1 - max((16 / 36 - 0.4) / 0.25, 2 - 16 / 38 / 0.3, 1080 / 2400) / 2
    assert behind_strength((45, 30, 75, 66), COUCH) == pytest.approx(expected)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=8, max_size=8))
def test_nothing_is_both_on_and_behind(values: list[float]) -> None:
    a, b = ((v[0], v[1], v[0] + v[2] + 1, v[1] + v[3] + 1) for v in (values[:4], values[4:]))
    strengths = [mw.relation_strength(a, b, relation) for relation in ("on", "behind")]
    assert min(strengths) <= 0.5 and all(-1 <= s <= 1 for s in strengths)
    if strengths[1] > 0.5:
        assert mw.relation_strength(b, a, "behind") <= 0.5


@pytest.mark.parametrize("relation", ["on", "behind"])
def test_cells_follow_the_rule_both_ways(relation: str) -> None:
    target = mw.Thing("couch", None, 5, 7, "huge")
    cells = related_cells("cat", "small", relation, target.box, 0.5)
    assert cells.any()
    cat = mw.Thing("cat", None, 5, 4, "small")
    converse = related_cells("couch", "huge", CONVERSE[relation], cat.box, 0.5)
    for col in range(mw.GRID):
        for row in range(mw.GRID):
            box = mw.Thing("cat", None, col, row, "small").box
            assert cells[row, col] == holds(box, target.box, relation)
            box = mw.Thing("couch", None, col, row, "huge").box
            assert converse[row, col] == holds(cat.box, box, relation)


def test_one_of_several_is_enough_to_stand_on() -> None:
    cat, near, far = (40.0, 32, 60, 52), COUCH, (0.0, 0, 10, 10)
    assert placed(cat, [far, near], "on") and not placed(cat, [far], "on")
    assert not placed((0, 0, 5, 5), [(10, 0, 15, 5), (-20, 0, -15, 5)], "left of")


def test_what_stands_on_something_is_painted_after_it_what_is_behind_before() -> None:
    couch = mw.Thing("couch", None, 6, 8, "huge")
    spots = related_cells("cat", "small", "on", couch.box, 0.62)
    row, col = (int(v[0]) for v in np.nonzero(spots))
    on = mw.Thing("cat", None, col, row, "small")
    assert drawing_order([on, couch]) == [couch, on]
    spots = related_cells("dog", "medium", "behind", couch.box, 0.62)
    row, col = (int(v[0]) for v in np.nonzero(spots))
    behind = mw.Thing("dog", None, col, row, "medium")
    assert drawing_order([couch, behind]) == [behind, couch]
    assert drawing_order([on, couch, behind])[-1] == on


def test_what_is_behind_is_hidden_in_the_image() -> None:
    sprites = mw.load_sprites("builtin")
    request = mw.make_request([mw.Include("book", color="blue"), mw.Include("apple", 1, "red", ("behind", 0))])
    for seed in range(4):
        scene = mw.sample_scene(request, np.random.default_rng(seed))
        apple, book = (next(t for t in scene.things if t.name == name) for name in ("apple", "book"))
        image = mw.render(scene, 128, sprites).astype(int)
        x0, y0 = (round(128 * max(a, b)) for a, b in zip(apple.box[:2], book.box[:2], strict=True))
        x1, y1 = (round(128 * min(a, b)) for a, b in zip(apple.box[2:], book.box[2:], strict=True))
        shared = image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        assert shared.size and (shared[..., 2] > shared[..., 0]).all()  # blue, not red


# ---- flaws and repairs -----------------------------------------------------------------------------------------------


def test_a_cat_that_is_not_on_the_couch() -> None:
    couch, cat = mw.Thing("couch", None, 6, 8, "huge"), mw.Thing("cat", None, 2, 2, "small")
    scene = mw.Scene("room", (cat, couch))
    seen = mw.see(scene)
    flaws = mw.find_flaws(A_CAT_ON_A_COUCH, seen)
    assert [(flaw.kind, flaw.thing, flaw.detail) for flaw in flaws] == [
        ("wrong_place", replace(cat, color="orange"), "couch")
    ]
    corrected = mw.correct(A_CAT_ON_A_COUCH, seen, scene, np.random.default_rng(0))
    assert couch in corrected.things
    moved = next(thing for thing in corrected.things if thing.name == "cat")
    assert mw.reflect(A_CAT_ON_A_COUCH, flaws, corrected, seen) == (
        "<think> Analysis: in the picture: small orange cat at (2,2); huge blue couch at (6,8). "
        "the cat at (2,2) is not on the couch. "
        f"Improvements: move the cat at (2,2) to {moved.place}. Steps: keep 1 things, fix 1, add 0, remove 0. "
        f"Final prompt: Scene: room. Things: small cat at {moved.place}; huge couch at (6,8). </think>"
    )


@pytest.mark.parametrize("relation", ["on", "behind"])
def test_mixing_up_on_and_behind_is_seen(relation: str) -> None:
    request = mw.make_request([mw.Include("couch"), mw.Include("cat", position=(relation, 0))])
    rng, mixed = np.random.default_rng(0), 0
    for _ in range(40):
        scene = mw.sample_scene(request, rng)
        flawed, flaws = mw.corrupt(request, scene, rng, kinds=["wrong_place"])
        assert [flaw.kind for flaw in flaws] == ["wrong_place"]
        cat, couch = (next(t for t in flawed.things if t.name == name) for name in ("cat", "couch"))
        mixed += holds(cat.box, couch.box, {"on": "behind", "behind": "on"}[relation])
    assert 0 < mixed < 40


@settings(max_examples=250, deadline=None)
@given(SEEDS, st.booleans())
def test_the_full_world_is_described_and_repaired(seed: int, with_plan: bool) -> None:
    """Corrupt, see, find the flaws, reflect, read back, correct: for up to six things of four kinds."""
    rng = np.random.default_rng(seed)
    request = mw.sample_request(rng, vocab="full", background=0.3, unknown=0.2)
    try:
        scene = mw.sample_scene(request, rng)
    except ValueError:
        return  # no room for these things in these relations
    for size in (96, 128, 256):
        assert mw.satisfied(request, mw.see(scene, size)) and mw.find_flaws(request, mw.see(scene, size), size) == []
    assert mw.parse_layout(mw.think(request, scene)) == scene
    flawed, flaws = mw.corrupt(request, scene, rng, vocab="full")
    seen = mw.see(flawed)
    corrected = mw.correct(request, seen, scene if with_plan else None, rng)
    assert mw.satisfied(request, mw.see(corrected)) and mw.find_flaws(request, mw.see(corrected)) == []
    if not flaws:
        assert corrected.things == flawed.things
    text = mw.reflect(request, flaws, corrected, seen)
    reflection = mw.parse_reflection(text)
    assert mw.parse_layout(reflection.final_prompt) == corrected
    assert is_done(text) == (not flaws) == (reflection.faults == "nothing is wrong.")
    keep, fix, add, remove = (int(word) for word in mw.split_words(reflection.steps) if word.isdigit())
    assert (keep + fix + add, keep + fix + remove) == (len(corrected.things), len(flawed.things))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_a_reflection_names_the_flaws_and_nothing_else(seed: int) -> None:
    """Every place among the faults is that of a flaw's thing; a thing without a flaw is only said to be there."""
    rng = np.random.default_rng(seed)
    request = mw.sample_request(rng, {"stacking": 1, "compound": 2, "counting": 1}, vocab="full")
    try:
        scene = mw.sample_scene(request, rng)
    except ValueError:
        return
    flawed, flaws = mw.corrupt(request, scene, rng, vocab="full")
    seen = mw.see(flawed)
    text = mw.reflect(request, flaws, mw.correct(request, seen, scene, rng), seen)
    reflection = mw.parse_reflection(text)
    assert len(mw.parse_layout(f"Scene: studio. Things: {reflection.seen}.").things) == len(seen)
    analysis = reflection.faults
    places = {place.split(")")[0] for place in analysis.split("(")[1:]}
    assert places == {flaw.thing.place.strip("()") for flaw in flaws if flaw.thing is not None}
    assert ("missing" in analysis) == any(flaw.kind == "missing" for flaw in flaws)
    assert ("picture is" in analysis) == any(flaw.kind == "poor_quality" for flaw in flaws)


def test_five_things_and_four_kinds_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    requests = [mw.sample_request(rng, {"counting": 1, "compound": 2}, vocab="full") for _ in range(600)]
    assert max(entry.count for request in requests for entry in request.include) == 5
    assert {len(request.include) for request in requests} == {1, 2, 3, 4}
    assert max(sum(entry.count for entry in request.include) for request in requests) == 6
    relations = {entry.position[0] for request in requests for entry in request.include if entry.position}
    assert relations == set(mw.ALL_RELATIONS)
    core = [mw.sample_request(rng) for _ in range(400)]
    assert all(len(r.include) <= 3 and all(e.count <= 4 for e in r.include) for r in core)
