"""Requests, captions, thoughts, reflections: what is written can be read back, and means what it should."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import irg_mini.world as mw
from irg.results.reflection import is_done

SHARED = Path(os.environ.get("IRG_SHARED", Path(__file__).parents[4] / "shared"))
GENEVAL = SHARED / "benchmarks" / "geneval"
needs_geneval = pytest.mark.skipif(
    not (GENEVAL / "evaluation_metadata.jsonl").exists(), reason=f"no GenEval files in {GENEVAL} (set IRG_SHARED)"
)

SEEDS = st.integers(0, 2**32 - 1)
A_DOG_RIGHT_OF_A_TIE = mw.Request(
    "position", (mw.Include("tie"), mw.Include("dog", position=("right of", 0))), (), None
)


def metadata() -> list[dict]:
    return [json.loads(line) for line in (GENEVAL / "evaluation_metadata.jsonl").read_text().splitlines()]


# ---- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "prompt"),
    [
        ([mw.Include("umbrella")], "a photo of an umbrella"),
        ([mw.Include("boat"), mw.Include("dog")], "a photo of a boat and a dog"),
        ([mw.Include("handbag", 4)], "a photo of four handbags"),
        ([mw.Include("bus", 3)], "a photo of three buses"),
        ([mw.Include("knife", 4)], "a photo of four knifes"),
        ([mw.Include("orange", color="orange")], "a photo of an orange orange"),
        ([mw.Include("tie"), mw.Include("dog", position=("right of", 0))], "a photo of a dog right of a tie"),
        ([mw.Include("dog", color="red"), mw.Include("bus", color="green")], "a photo of a red dog and a green bus"),
        (
            [mw.Include("bus"), mw.Include("apple", 3, "red", ("left of", 0))],
            "a photo of three red apples left of a bus",
        ),
    ],
)
def test_plain_captions(include: list[mw.Include], prompt: str) -> None:
    request = mw.make_request(include)
    assert mw.caption(request) == prompt
    assert mw.parse_prompt(prompt) == request


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("draw two dogs", "a photo of two dogs"),
        ("Draw 2 dogs.", "a photo of two dogs"),
        ("two people at night", "a photo of two persons at night"),
        ("three red apples to the left of a bus on a meadow", "a photo of three red apples left of a bus on a meadow"),
        ("an image of a pair of skis under one cat", "a photo of a skis below a cat"),
        ("there are two pairs of pink scissors, a dog and a cow", "a photo of two pink scissorses, a dog and a cow"),
        ("an orange", "a photo of an orange"),
        ("an orange and a cup", "a photo of an orange and a cup"),
        ("an orange cup", "a photo of an orange cup"),
    ],
)
def test_paraphrases_are_understood(prompt: str, plain: str) -> None:
    request = mw.parse_prompt(prompt)
    assert request is not None
    assert mw.caption(request) == plain


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a photo of",
        "a wug",
        "a dog and",
        "a dog left of",
        "a dog and a dog",
        "a dog left of a cat left of a cow",
    ],
)
def test_prompts_beyond_the_grammar_are_not_guessed(prompt: str) -> None:
    assert mw.parse_prompt(prompt) is None


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_captions_are_read_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    request = mw.sample_request(rng, background=0.4)
    assert mw.parse_prompt(mw.caption(request)) == request
    assert mw.parse_prompt(mw.caption(request, rng, "varied")) == request
    assert mw.Request.from_json(json.loads(json.dumps(request.to_json()))) == request


@needs_geneval
def test_geneval_prompts_to_the_letter() -> None:
    for line in metadata():
        prompt = line.pop("prompt")
        request = mw.Request.from_json(line)
        assert mw.caption(request) == prompt
        assert request.to_json() == line
        assert mw.parse_prompt(prompt) == request


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tag": "counting"}, "include"),
        ({"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "mauve"),
        ({"tag": "position", "include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "not before it"),
        ({"tag": "position", "include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}, "near"),
    ],
)
def test_bad_requests_are_named(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mw.Request.from_json(data)


# ---- the split -------------------------------------------------------------------------------------------------------


def test_training_never_sees_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    train = [mw.sample_request(rng) for _ in range(800)]
    test = [mw.sample_request(rng, dict.fromkeys(mw.ALL_TAGS[1:], 1.0), split="test") for _ in range(400)]
    assert not any(mw.held_out(request) for request in train)
    assert all(mw.held_out(request) for request in test)
    assert {request.tag for request in train} == set(mw.ALL_TAGS)


def test_about_a_tenth_is_held_out() -> None:
    names = list(mw.classes())
    pairs = [mw.make_request([mw.Include(a), mw.Include(b)]) for i, a in enumerate(names) for b in names[:i]]
    assert 0.08 < np.mean([mw.held_out(pair) for pair in pairs]) < 0.12
    swapped = [mw.make_request(pair.include[::-1]) for pair in pairs]
    assert [mw.held_out(pair) for pair in pairs] == [mw.held_out(pair) for pair in swapped]


def test_a_person_is_never_asked_in_a_color() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        request = mw.sample_request(rng, vocab=["person", "dog", "cup", "bus"])
        assert all(entry.color is None for entry in request.include if entry.name == "person")


# ---- thoughts --------------------------------------------------------------------------------------------------------


def test_a_thought_to_the_letter() -> None:
    request = mw.parse_prompt("a photo of two red apples left of a bus")
    assert request is not None
    bus, near, far = (
        mw.Thing("bus", None, 9, 5, "medium"),
        mw.Thing("apple", "red", 6, 7, "large"),
        mw.Thing("apple", "red", 3, 7, "large"),
    )
    text = mw.think(request, mw.Scene("meadow", (bus, near, far)))
    assert text == ("Scene: meadow. Things: large red apple at (3,7); large red apple at (6,7); medium bus at (9,5).")
    assert mw.parse_layout(text) == mw.Scene("meadow", (far, near, bus))
    assert mw.parse_layout("Scene: sea. Things: none.") == mw.Scene("sea", ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("large apple at (3,7)", "not of the form"),
        ("Scene: moon. Things: none.", "unknown background 'moon'"),
        ("Scene: sea. Things: large wug at (3,7).", "unknown class 'wug'"),
        ("Scene: sea. Things: giant apple at (3,7).", "unknown size 'giant'"),
        ("Scene: sea. Things: large apple at (3,12).", "outside the 12 x 12 grid"),
        ("Scene: sea. Things: large apple (3,2).", "not of the form"),
        ("Scene: sea. Things: large apple at (3,2); .", "not of the form"),
    ],
)
def test_bad_layouts_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        mw.parse_layout(text)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_thoughts_and_reflections_are_read_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    request = mw.sample_request(rng, background=0.3)
    scene = mw.sample_scene(request, rng)
    assert mw.parse_layout(mw.think(request, scene)) == scene
    flawed, flaws = mw.corrupt(request, scene, rng)
    seen = mw.see(flawed)
    corrected = mw.correct(request, seen, scene, rng)
    text = mw.reflect(request, flaws, corrected, seen)
    reflection = mw.parse_reflection(text)
    assert mw.parse_layout(reflection.final_prompt) == corrected
    assert is_done(text) == (not flaws)
    assert text.startswith("<think> Analysis: ") and text.endswith(" </think>")
    assert len(text.split()) <= 160
    shown = mw.parse_layout(f"Scene: studio. Things: {reflection.seen}.").things
    assert sorted(t.label for t in shown) == sorted(f"{s.color} {s.name}" if s.color else s.name for s in seen)
    counts = [int(word) for word in mw.split_words(reflection.steps) if word.isdigit()]
    keep, fix, add, remove = counts
    assert keep + fix + add == len(corrected.things)
    assert keep + fix + remove == len(flawed.things)


def test_what_is_seen_stands_before_what_is_wrong() -> None:
    full = mw.Reflection("in the picture: small red cup at (1,2). one cup is missing.", "", "", "")
    assert (full.seen, full.faults) == ("small red cup at (1,2)", "one cup is missing.")
    bare = mw.Reflection("nothing is wrong.", "", "", "")
    assert (bare.seen, bare.faults) == ("", "nothing is wrong.")
    nothing = mw.Reflection("in the picture: none. nothing is wrong.", "", "", "")
    assert (nothing.seen, nothing.faults) == ("none", "nothing is wrong.")


def test_a_reflection_to_the_letter() -> None:
    request = mw.parse_prompt("three red apples left of a bus on a meadow")
    assert request is not None
    apples = [mw.Thing("apple", color, col, 9, "small") for color, col in (("green", 1), ("red", 4))]
    bus, cup = mw.Thing("bus", None, 9, 5, "medium"), mw.Thing("cup", None, 6, 10, "small")
    seen = mw.see(mw.Scene("meadow", (*apples, bus, cup)))
    flaws = mw.find_flaws(request, seen, quality="blurred")
    corrected = mw.correct(request, seen, None, np.random.default_rng(0))
    assert mw.reflect(request, flaws, corrected, seen) == (
        "<think> Analysis: in the picture: small green apple at (1,9); small red apple at (4,9); "
        "medium bus at (9,5); small cup at (6,10). "
        "the apple at (1,9) is green, not red; the cup at (6,10) should be an apple; "
        "the picture is blurred. Improvements: recolor the apple at (1,9) to red; remove the cup at (6,10); "
        "add a small red apple at (2,6); sharpen the picture. Steps: keep 2 things, fix 1, add 1, remove 1. "
        "Final prompt: Scene: meadow. Things: small red apple at (1,9); small red apple at (2,6); "
        "small red apple at (4,9); medium bus at (9,5). </think>"
    )


def test_nothing_wrong_is_said_so() -> None:
    scene = mw.Scene("room", (mw.Thing("dog", None, 8, 5, "medium"), mw.Thing("tie", None, 2, 5, "medium")))
    seen = mw.see(scene)
    corrected = mw.correct(A_DOG_RIGHT_OF_A_TIE, seen, scene, np.random.default_rng(0))
    assert corrected == scene
    assert mw.reflect(A_DOG_RIGHT_OF_A_TIE, [], corrected, seen) == (
        "<think> Analysis: in the picture: medium dog at (8,5); medium tie at (2,5). nothing is wrong. "
        "Improvements: none. Steps: keep 2 things, fix 0, add 0, remove 0. "
        "Final prompt: Scene: room. Things: medium dog at (8,5); medium tie at (2,5). </think>"
    )


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ValueError, match="Improvements:"):
        mw.parse_reflection("<think> Analysis: all bad. Steps: none. Final prompt: x </think>")


# ---- words -----------------------------------------------------------------------------------------------------------


def test_the_vocabulary_covers_all_texts() -> None:
    words = set(mw.vocabulary())
    texts = mw.sample_texts(np.random.default_rng(3), 1200)
    assert len(texts) == 1200
    assert {word for text in texts for word in mw.split_words(text)} <= words
