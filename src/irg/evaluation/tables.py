"""Scores and what models' authors report side by side, by category, by edit budget and by cost.

Scores by different judges or prompt sets are in separate tables. What is reported stands beside scores of its own
judge, else in a table of its own: numbers of another judge, or of a detector that knows another world, can't be set
against it.
"""

from collections.abc import Sequence

from irg.evaluation.benchmarks.geneval_rules import COUNTING_SCORE_ABOVE
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.budget_tables import budget_table, reported_budget_table
from irg.evaluation.cost_tables import cost_table
from irg.evaluation.reported import Reported, reported
from irg.evaluation.results import Result
from irg.evaluation.table_parts import (
    NOTHING,
    SHORT_NAMES,
    Cell,
    Marks,
    Row,
    Table,
    prompts_label,
    run_name,
    score_cell,
    share_cell,
)


def tables(results: Sequence[Result], with_reported: bool = True) -> list[Table]:
    """For each benchmark, judge, prompt set and set of options, in the order of the results: a table by category, one
    by edit budget where a run has several turns, one by cost where there are several runs; then, ``with_reported``,
    what another judge scored."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        how = (str(result.judge_identity), str(result.official_skips), str(result.options))
        groups.setdefault((result.benchmark, result.judge, prompts_label(result), *how), []).append(result)
    made: list[Table | None] = []
    shown: set[str] = set()
    for group in groups.values():
        every = reported(group[0].benchmark) if with_reported else ()
        beside = [one for one in every if one.is_judged_by(group[0].judge)]
        shown |= {group[0].benchmark + one.name + one.source for one in beside}
        made += [_table(group, beside), budget_table(group, beside), cost_table(group)]
    if with_reported:
        for name in dict.fromkeys(result.benchmark for result in results):
            rest = [one for one in reported(name) if name + one.name + one.source not in shown]
            made += [_reported_table(name, rest), reported_budget_table(name, rest)]
    return [table for table in made if table is not None]


def _reported_table(name: str, rows: Sequence[Reported]) -> Table | None:
    """What is reported of a benchmark, alone; None where nothing is."""
    benchmark, marks = BENCHMARKS[name], Marks()
    columns = tuple(column for column in benchmark.columns if any(one.final(column) is not None for one in rows))
    heads = tuple(SHORT_NAMES.get(column, column) for column in columns)
    notes = "Judged otherwise than the scores above: not to be compared with them."
    made = _reported_rows(name, rows, columns, marks)
    return Table(f"{benchmark.title}, as reported", heads, tuple(made), (*marks.notes(), notes)) if made else None


def _reported_rows(name: str, rows: Sequence[Reported], columns: Sequence[str], marks: Marks) -> list[Row]:
    return [
        Row(
            one.name,
            tuple(score_cell(one.final(column), marks.reported(one), name) for column in columns),
            reported=True,
        )
        for one in rows
        if any(one.final(column) is not None for column in columns)
    ]


def _table(group: Sequence[Result], beside: Sequence[Reported]) -> Table:
    """By category: a row for each turn of each run."""
    first = group[0]
    benchmark = BENCHMARKS[first.benchmark]
    used = {name for result in group for turn in result.turns for name in turn.scores}
    columns = tuple(name for name in benchmark.columns if name in used)
    marks = Marks()
    rows = [
        Row(row.name, (*row.cells, NOTHING, NOTHING), reported=True)
        for row in _reported_rows(first.benchmark, beside, columns, marks)
    ]
    for result in group:
        rows += _rows(result, columns, marks)
    notes = [note for result in group for note in _option_notes(result)] + _shared_notes(group)
    heads = (*(SHORT_NAMES.get(name, name) for name in columns), "images, 95 %", "s, tokens")
    title = f"{benchmark.title}, judged by {first.judge}, prompts {prompts_label(first)}"
    if first.official_skips:
        notes.insert(0, "Missing images are left out, as the official scripts do (--official-skips).")
    return Table(title, heads, tuple(rows), (*marks.notes(), *dict.fromkeys(notes)))


def _rows(result: Result, columns: Sequence[str], marks: Marks) -> list[Row]:
    """One row per turn; the cost is in the last."""
    rows = []
    for turn in result.turns:
        cells = [
            score_cell(
                turn.scores.get(name),
                marks.own(result.column_judges.get(name, result.judge), prompts_label(result)),
                result.benchmark,
                bool(turn.gaps),
            )
            for name in columns
        ]
        cells += [share_cell(turn.mean), _cost(result) if turn is result.turns[-1] else NOTHING]
        name = run_name(result) + ("" if len(result.turns) == 1 else f", {turn_name(turn.turn)}")
        rows.append(Row(name, tuple(cells)))
    return rows


def headline(result: Result) -> list[tuple[str, str]]:
    """The main numbers of a result, as (name, value)."""
    facts = [(turn_name(turn.turn), share_cell(turn.mean).text) for turn in result.turns]
    if result.changes is not None:
        what = "" if result.unit == "image" else f", by {result.unit}"
        facts += [
            (f"repair{what}", share_cell(result.changes.repair).text),
            ("damage", share_cell(result.changes.damage).text),
        ]
    if result.seconds is not None:
        tokens = f" and {result.tokens:.0f} tokens" if result.tokens else ""
        facts.append(("a request", f"{result.seconds:.2f} s{tokens}"))
    return facts


def turn_name(turn: int) -> str:
    """How tables and reports name the image of a turn (1 is the first)."""
    return "initial" if turn == 1 else "improved" if turn == 2 else f"improved {turn - 1}"


def _cost(result: Result) -> Cell:
    if result.seconds is None:
        return NOTHING
    tokens = f", {result.tokens:.0f}" if result.tokens else ""
    return Cell(f"{result.seconds:.2f} s{tokens}", value=result.seconds)


def _option_notes(result: Result) -> list[str]:
    """Options that differ from the benchmark's official rules, or that it leaves open."""
    notes = []
    if result.benchmark == "geneval" and result.options.get("geneval_counting_above") != COUNTING_SCORE_ABOVE:
        notes.append(f"Counting takes boxes above {result.options['geneval_counting_above']}; officially above 0.9.")
    if result.benchmark == "wise":
        rubric = "the text given with --rubric" if result.options.get("rubric") else "ours"
        notes.append(
            f"The judge's instruction is {rubric}; its answers were parsed in the way {result.options['wise_parse']!r}."
        )
    return notes


def _shared_notes(group: Sequence[Result]) -> list[str]:
    """The notes of all results, each once, after the names of the results that it holds for; then the license."""
    names: dict[str, list[str]] = {}
    for result in group:
        for note in _result_notes(result):
            names.setdefault(note, []).append(run_name(result))
    shared = [f"{'; '.join(dict.fromkeys(own))}: {note}" for note, own in names.items()]
    return shared + _license_notes(group[0].license)


def _result_notes(result: Result) -> list[str]:
    """Coverage, limits, and gaps of any turn."""
    covered, notes = result.coverage, []
    if covered["covered"] < covered["in_set"]:
        notes.append(
            f"{covered['covered']} of {covered['in_set']} prompts are covered by its vocabulary "
            f"({covered['covered_by']}); the others do not count."
        )
    if covered["chosen"] < covered["covered"]:
        notes.append(f"only {covered['chosen']} prompts of {covered['covered']} were drawn (--limit).")
    for turn in result.turns:
        if turn.gaps:
            counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in sorted(turn.gaps.items()))
            how = "left out" if result.official_skips else "missing ones count as wrong, the others are left out"
            notes.append(f"* turn {turn.turn}: of {sum(turn.states.values())} images {counts} ({how}).")
    return notes


def _license_notes(license: str) -> list[str]:
    if "none stated" in license:
        return ["The prompt set is UNLICENSED: its authors have granted no rights."]
    return [f"The prompt set is for NON-COMMERCIAL use only ({license})."] if "NC" in license else []
