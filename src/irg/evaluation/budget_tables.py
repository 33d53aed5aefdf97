"""Tables with edit budgets as columns: what stands after at most 0, 1, 2 ... edits, what it repairs and damages."""

from collections.abc import Sequence

from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.reported import Reported
from irg.evaluation.results import Result, TurnScore
from irg.evaluation.table_parts import (
    NOTHING,
    SHORT_NAMES,
    Cell,
    Marks,
    Row,
    Table,
    change_cell,
    percent_cell,
    prompts_label,
    run_name,
    score_cell,
    share_cell,
)

_SHARES = ("repair", "damage")
_NOTE = (
    "A request that stopped early keeps its last image. Repair is the share of what was wrong in the first image and "
    "is right, damage the share of what was right and is wrong{unit}; change is that of the images' mean score, in "
    "points."
)


def budget_table(group: Sequence[Result], reported: Sequence[Reported]) -> Table | None:
    """Scores of one benchmark, judge and prompt set by edit budget, below what is reported that way; None where no run
    has a second turn."""
    if not any(turn.edits for result in group for turn in result.turns):
        return None
    first, marks = group[0], Marks()
    budgets = sorted({turn.edits for result in group for turn in result.turns})
    rows = _reported_rows(first.benchmark, reported, budgets, marks)
    for result in group:
        rows += _rows(result, budgets, marks)
    unit = BENCHMARKS[first.benchmark].unit
    note = _NOTE.format(unit="" if unit == "image" else f", by {unit}")
    title = (
        f"{BENCHMARKS[first.benchmark].title} by edit budget, judged by {first.judge}, prompts {prompts_label(first)}"
    )
    return Table(title, _heads(budgets), tuple(rows), (*marks.notes(), note))


def reported_budget_table(name: str, reported: Sequence[Reported]) -> Table | None:
    """What is reported of a benchmark by edit budget, alone; None where nothing is."""
    headline, marks = BENCHMARKS[name].headline, Marks()
    most = max((len(one.by_budget(figure)) for one in reported for figure in (*headline, *_SHARES)), default=0)
    rows = _reported_rows(name, reported, range(most), marks)
    title = f"{BENCHMARKS[name].title} by edit budget, as reported"
    return Table(title, _heads(range(most)), tuple(rows), tuple(marks.notes())) if rows else None


def _heads(budgets: Sequence[int]) -> tuple[str, ...]:
    return tuple("first image" if edits == 0 else "1 edit" if edits == 1 else f"{edits} edits" for edits in budgets)


def _reported_rows(name: str, reported: Sequence[Reported], budgets: Sequence[int], marks: Marks) -> list[Row]:
    rows = []
    for one in reported:
        for figure in (*BENCHMARKS[name].headline, *_SHARES):
            values = dict(enumerate(one.by_budget(figure)))
            if any(values.get(edits) is not None for edits in budgets):
                mark = marks.reported(one)
                found = [values.get(edits) for edits in budgets]
                cells = [
                    percent_cell(value, mark) if figure in _SHARES else score_cell(value, mark, name) for value in found
                ]
                rows.append(Row(f"{one.name}: {SHORT_NAMES.get(figure, figure)}", tuple(cells), reported=True))
    return rows


def _rows(result: Result, budgets: Sequence[int], marks: Marks) -> list[Row]:
    """A row for each quantity."""
    turns = {turn.edits: turn for turn in result.turns}
    found = [_quantities(result, turns[edits], marks) if edits in turns else {} for edits in budgets]
    names = dict.fromkeys(name for cells in found for name in cells)
    return [Row(f"{run_name(result)}: {name}", tuple(cells.get(name, NOTHING) for cells in found)) for name in names]


def _quantities(result: Result, turn: TurnScore, marks: Marks) -> dict[str, Cell]:
    """What is known of one turn."""
    cells = {}
    for name in BENCHMARKS[result.benchmark].headline:
        mark = marks.own(result.column_judges.get(name, result.judge), prompts_label(result))
        shown = SHORT_NAMES.get(name, name)
        cells[shown] = score_cell(turn.scores.get(name), mark, result.benchmark, bool(turn.gaps))
    cells["images, 95 %"] = share_cell(turn.mean)
    if turn.changes is not None:
        cells["repair"], cells["damage"] = share_cell(turn.changes.repair), share_cell(turn.changes.damage)
        cells["change"] = change_cell(turn.changes.score)
    if (drawn := turn.images_per_request) is not None:
        cells["images a request"] = Cell(f"{drawn:.2f}", value=drawn)
    return cells
