"""The table of plans, from verdicts; what is no layout is neither right nor accepted."""

from irg_mini import world
from irg_mini.measure.plans import Planned, _planned, table


class NoDetector:
    def detect(self, *args: object) -> None:
        raise AssertionError("what is no layout is not rendered")


def test_what_is_no_layout_counts_as_wrong() -> None:
    request = world.make_request([world.Include("dog")])
    planned = _planned(request, "a dog", NoDetector())  # type: ignore[arg-type]
    assert planned == Planned("single_object", "a photo of a dog", "a dog", False, False, ())


def test_the_table() -> None:
    rows = [
        Planned("compound", "a", "", True, True, ("small", "medium")),
        Planned("compound", "b", "", True, False, ("small",)),
        Planned("stacking", "c", "", False, False, ("large",)),
        Planned("stacking", "d", "", False, False, ()),
    ]
    lines = table(rows).splitlines()
    assert lines[2].startswith("| compound | 100.0 (") and "| 50.0 (0.0–100.0) | 2 |" in lines[2]
    assert lines[3].startswith("| stacking | 0.0 (") and lines[4].startswith("| all | 50.0 (0.0–100.0) | 25.0 (")
    assert lines[6] == "sizes: small 50%, medium 25%, large 25%, huge 0%"
