"""The arithmetic of the mini benchmark's table."""

from typing import Any

import pytest

from irg_mini.measure.table import difference, rows, stop_at, table


def line(prompt: str, right: list[bool], done: list[bool] = [], tag: str = "counting") -> dict[str, Any]:  # noqa: B006
    return {"prompt": prompt, "tag": tag, "right": right, "done": done}


ALWAYS = [
    line("a", [False, True, True], [False, True]),  # repaired, then left alone
    line("b", [True, False, False], [True, True]),  # right, and wrong if it is drawn again
    line("c", [True, True, False], [False, False]),
    line("d", [False, False, True], [True, False], tag="position"),  # a flaw that is not noticed
]


def by_name(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {row.name: row for row in rows(results)}


def test_one_run_that_always_looks_again_holds_the_shorter_ones() -> None:
    found = by_name({"always": ALWAYS})
    assert found["first image (think)"].right == (False, True, True, False)
    assert found["irg, 1 round, always"].right == (True, False, True, False)
    assert found["irg, 1 round, stops when done"].right == (True, True, True, False)
    assert found["irg, 2 rounds, always"].right == (True, False, False, True)
    two = found["irg, 2 rounds, stops when done"]
    assert two.right == (True, True, False, False) and two.drawn == (2, 1, 3, 1)
    assert [stop_at(one, 2) for one in ALWAYS] == [1, 0, 2, 0]


def test_overall_is_the_plain_mean_of_the_forms() -> None:
    score = by_name({"always": ALWAYS})["irg, 1 round, stops when done"].score()
    assert score == {"counting": 1.0, "position": 0.0, "overall": 0.5}


def test_repair_and_damage_are_shares_of_wrong_and_of_right_images() -> None:
    repair, damage = by_name({"always": ALWAYS})["irg, 1 round, always"].repair_and_damage()
    assert (repair.value, repair.of, damage.value, damage.of) == (0.5, 2, 0.5, 2)
    assert by_name({"think": [line("a", [True])]})["think"].repair_and_damage() is None


def test_the_independent_redraw_is_taken_only_where_the_reflection_finds_a_flaw() -> None:
    redraw = [line(prompt, [True]) for prompt in "abcd"]
    best = by_name({"always": ALWAYS, "redraw": redraw})["independent redraw where reflection finds a flaw"]
    assert best.right == (True, True, True, False) and best.drawn == (2, 1, 2, 1)


def test_of_two_images_that_is_taken_which_its_own_reflection_accepts() -> None:
    again = [
        line("a", [True, True], [True]),  # accepted, the first was not
        line("b", [False, True], [True]),  # both accepted: the first
        line("c", [False, True], [False]),  # neither: the first
        line("d", [True, True], [True], tag="position"),  # the first was accepted, wrongly
    ]
    results = {"always": ALWAYS, "again": again}
    best = by_name(results)["best of 2, picked by its reflections"]
    assert best.right == (True, True, True, False) and best.drawn == (2, 2, 2, 2)
    assert "best of 2, picked by its reflections, minus the first image: +16.7 points" in table(results)


def test_the_interval_holds_the_share_and_shrinks_with_the_sample() -> None:
    def row(n: int) -> Any:
        return rows({"think": [line(f"p{i}", [i % 2 == 0]) for i in range(n)]})[0]

    few, many = row(20).interval(), row(1000).interval()
    assert few[0] < 0.5 < few[1] and many[1] - many[0] < 0.08 < few[1] - few[0]


def test_images_of_one_prompt_are_drawn_together() -> None:
    """Ten times the same prompt says no more than once."""
    alone = rows({"think": [line("a", [True]), line("b", [False])]})[0]
    copied = rows({"think": [line("a", [True])] * 10 + [line("b", [False])] * 10})[0]
    assert alone.interval() == copied.interval() == (0.0, 1.0)


def test_differences_are_paired() -> None:
    better = rows({"think": [line(f"p{i}", [True]) for i in range(50)]})[0]
    worse = rows({"redraw": [line(f"p{i}", [i % 10 > 0]) for i in range(50)]})[0]
    gap, low, high = difference(better, worse)
    assert gap == pytest.approx(0.1) and 0 < low < 0.1 < high < 0.25
    with pytest.raises(ValueError, match="not of the same requests"):
        difference(better, rows({"redraw": [line("x", [True])]})[0])


def test_the_table_tells_what_reflections_notice() -> None:
    text = table({"always": ALWAYS})
    assert "| first image (think) |" in text and "irg (1 round, stops) minus its first image: +25.0 points" not in text
    assert "finds a flaw in 50 " in text and "of 2 wrong first images" in text


def test_the_table_tells_what_was_planned_wrong() -> None:
    wrong_plan, right_plan = {"planned": [False, True]}, {"planned": [True, None]}
    lines = [
        line("a", [False, True], [False]) | wrong_plan,
        line("b", [False, False], [True]) | {"planned": [None, False]},  # no layout is no right plan
        line("c", [False, True], [False]) | right_plan,
        line("d", [True, True], [True]) | right_plan,
    ]
    text = table({"always": lines})
    assert "The plan was already wrong in 67 " in text and "of 3 wrong first images" in text
    assert "reflections end with a right one in 50 " in text and "of 2 wrong plans" in text
    assert "The plan was" not in table({"always": [*lines, line("e", [True, True], [True])]})  # an older run's line


def test_a_loop_that_stops_is_compared_with_its_first_images() -> None:
    """Repaired, spoiled, repaired, left alone: two points of four, minus one."""
    loop = [
        line("a", [False, True], [False]),
        line("b", [True, False], [False]),
        line("c", [False, False, True], [False, False]),
        line("d", [True], [True]),
    ]
    text = table({"irg": loop})
    assert "irg, 1 round minus its first image: +0.0 points" in text  # the repair of c takes two
    assert "irg minus its first image: +25.0 points" in text
    assert [row.name for row in rows({"irg": loop})] == ["irg, 1 round", "irg"]
    assert "minus" not in table({"direct": [line("a", [True])]})


def test_of_a_search_the_image_that_was_kept_counts_and_its_cost_is_told() -> None:
    one = [{**line("a", [False]), "seconds": 1.0}, {**line("b", [True]), "seconds": 1.0}]
    best = [
        {**line("a", [True]), "kept": 0, "drawn": 4, "seconds": 4.0},
        {**line("b", [True, False], [False]), "kept": 0, "drawn": 2, "seconds": 2.0},
    ]
    made = by_name({"think": one, "keep-best": best})
    assert made["keep-best"].right == (True, True) and made["keep-best"].drawn == (4, 2)
    assert "keep-best, stops when done" not in made
    text = table({"think": one, "keep-best": best})
    assert "| think | 50.0 |" in text and "| 1.00 | 1.00 | 50.0 | – | – |" in text
    # 50 points more for 3 - 1 seconds more
    assert "| 3.00 | 3.00 | 33.3 | +50.0 (" in text and text.count("| 25.0 |") == 1
    assert "points per s" not in table({"think": one})
