"""The mini evaluation's arithmetic and its held-out prompts."""

import math

from irg import miniworld as world
from irg.evaluation.mini import TAGS, Verdicts, held_out_requests, interval, table


def verdicts(first, last):
    v = Verdicts()
    v.first["counting"], v.last["counting"] = first, last
    return v


def test_repair_and_damage_are_shares_of_wrong_and_of_right_pictures():
    changes = verdicts([False, False, False, True], [True, False, False, False]).changes()
    assert math.isclose(changes["repair"], 1 / 3) and changes["damage"] == 1.0
    assert (changes["wrong_first"], changes["right_first"]) == (3, 1)


def test_overall_is_the_plain_mean_of_the_forms():
    v = verdicts([True], [True, True])
    v.last["position"] = [False] * 8
    assert v.score()["overall"] == 0.5


def test_the_interval_holds_the_share_and_shrinks_with_the_sample():
    few, many = interval([True, False] * 10), interval([True, False] * 500)
    assert few[0] < 0.5 < few[1] and many[1] - many[0] < 0.08 < few[1] - few[0]


def test_held_out_requests_cover_the_forms_equally_and_were_never_trained_on():
    requests = held_out_requests(60, seed=0)
    assert {tag: sum(r.tag == tag for r in requests) for tag in TAGS} == dict.fromkeys(TAGS, 10)
    combined = [r for r in requests if r.tag != "single_object"]  # a single object combines nothing
    assert all(world.held_out(r) for r in combined)


def test_the_table_has_a_row_for_the_first_picture_of_irg():
    text = table({"irg": verdicts([False, True], [True, True])})
    assert "| irg, first picture |" in text and "repair 100.0 % of 1" in text
