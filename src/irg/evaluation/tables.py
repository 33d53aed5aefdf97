"""Scores and the paper's numbers side by side, as rows and footnotes; :mod:`irg.evaluation.table_formats` writes them.

Every number carries a mark, and a footnote says for each mark which judge saw which prompts. Scores by different judges
or prompt sets are in separate tables. The paper's rows stand beside scores of its own judge, else in a table of their
own: numbers of another judge, or of a detector that knows another world, can't be set against them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from irg.evaluation.benchmarks.geneval_rules import COUNTING_SCORE_ABOVE
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.paper import REPORTED, is_papers_judge
from irg.evaluation.results import Result
from irg.evaluation.statistics import Share

_SHORT_NAMES = {
    "single_object": "single",
    "two_object": "two",
    "counting": "count",
    "colors": "color",
    "color_attr": "attribute",
    "overall_plain": "plain mean",
}
_DIGITS = {"tiif": 2, "oneig": 3}


@dataclass(frozen=True)
class Cell:
    """One number.

    Attributes:
        text: as it is shown.
        mark: of its judge and prompts.
        value: in full precision; None where there is no number.
        partial: some images are missing or have no grade.
    """

    text: str
    mark: str = ""
    value: float | None = None
    share: Share | None = None
    partial: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]
    paper: bool = False


@dataclass(frozen=True)
class Table:
    """A table; ``notes`` are its footnotes."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def by_mark(self) -> dict[str, str]:
        """The judge and prompts that each mark refers to."""
        notes = (note for note in self.notes if note.startswith("["))
        return {note[1 : note.index("]")]: note[note.index("]") + 2 :] for note in notes}


class _Marks:
    """Footnote marks: a, b, c ... for each judge and prompt set."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], str] = {}

    def __getitem__(self, key: tuple[str, str]) -> str:
        return self.known.setdefault(key, _letters(len(self.known)))

    def notes(self) -> list[str]:
        return [f"[{mark}] judge: {judge}; prompts: {prompts}" for (judge, prompts), mark in self.known.items()]


def _letters(number: int) -> str:
    return (_letters(number // 26 - 1) if number >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[number % 26]


def tables(results: Sequence[Result], paper: bool = True) -> list[Table]:
    """One table for each benchmark, judge, prompt set and set of options, in the order of the results; then, with
    ``paper``, one of the paper's rows for each benchmark that another judge than the paper's has scored."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        how = (str(result.judge_identity), str(result.official_skips), str(result.options))
        groups.setdefault((result.benchmark, result.judge, _prompts_label(result), *how), []).append(result)
    made = [_table(group, paper and is_papers_judge(group[0].benchmark, group[0].judge)) for group in groups.values()]
    if paper:
        others = [result for result in results if not is_papers_judge(result.benchmark, result.judge)]
        made += [_paper_table(name) for name in dict.fromkeys(result.benchmark for result in others)]
    return made


def _paper_table(name: str) -> Table:
    """The paper's rows alone."""
    benchmark, reported, marks = BENCHMARKS[name], REPORTED[name], _Marks()
    columns = tuple(column for column in benchmark.columns if any(column in row.scores for row in reported))
    heads = tuple(_SHORT_NAMES.get(column, column) for column in columns)
    title = f"{benchmark.title}, as reported by the paper"
    notes = "Judged otherwise than the scores above: not to be compared with them."
    return Table(title, heads, tuple(_paper_rows(name, columns, marks)), (*marks.notes(), notes))


def _paper_rows(name: str, columns: Sequence[str], marks: _Marks) -> list[Row]:
    rows = []
    for reported in REPORTED[name]:
        mark = marks[f"{reported.judge} (reported by the paper)", reported.prompts]
        cells = tuple(_cell(reported.scores.get(column), mark, name) for column in columns)
        rows.append(Row(reported.model, cells, paper=True))
    return rows


def _prompts_label(result: Result) -> str:
    covered = result.coverage
    drawn = "" if covered["chosen"] == covered["in_set"] else f", {covered['chosen']} of {covered['in_set']}"
    return f"{result.prompts}{drawn}"


def _table(group: Sequence[Result], paper: bool) -> Table:
    first = group[0]
    benchmark = BENCHMARKS[first.benchmark]
    used = {name for result in group for turn in result.turns for name in turn.scores}
    columns = tuple(name for name in benchmark.columns if name in used)
    marks, rows = _Marks(), []
    if paper:
        for row in _paper_rows(first.benchmark, columns, marks):
            rows.append(replace(row, cells=(*row.cells, *[Cell("–")] * 4)))
    for result in group:
        rows += _rows(result, columns, marks)
    notes = [note for result in group for note in _option_notes(result)] + _shared_notes(group)
    heads = (*(_SHORT_NAMES.get(name, name) for name in columns), "images, 95 %", "repair", "damage", "s, tokens")
    title = f"{benchmark.title}, judged by {first.judge}, prompts {_prompts_label(first)}"
    if first.official_skips:
        notes.insert(0, "Missing images are left out, as the official scripts do (--official-skips).")
    return Table(title, heads, tuple(rows), (*marks.notes(), *dict.fromkeys(notes)))


def _rows(result: Result, columns: Sequence[str], marks: _Marks) -> list[Row]:
    """One row per turn; repair, damage and cost are in the last."""
    rows = []
    for turn in result.turns:
        last = turn is result.turns[-1]
        cells = [
            _cell(
                turn.scores.get(name),
                marks[result.column_judges.get(name, result.judge), _prompts_label(result)],
                result.benchmark,
                bool(turn.gaps),
            )
            for name in columns
        ]
        change = result.changes if last else None
        shares = (turn.mean, change.repair if change else None, change.damage if change else None)
        cells += [_share(one) for one in shares]
        cells.append(_cost(result) if last else Cell("–"))
        name = _run_name(result) + ("" if len(result.turns) == 1 else f", {turn_name(turn.turn)}")
        rows.append(Row(name, tuple(cells)))
    return rows


def _cell(value: float | None, mark: str, benchmark: str, partial: bool = False) -> Cell:
    if value is None:
        return Cell("–")
    digits = _DIGITS.get(benchmark, 3)
    shown = f"{100 * value:.{digits}f}" if benchmark == "tiif" else f"{value:.{digits}f}"
    return Cell(shown + "*" * partial, mark, value, partial=partial)


def _share(share: Share | None) -> Cell:
    if share is None:
        return Cell("–")
    if share.value is None or share.low is None or share.high is None:
        return Cell("– (of 0)")
    shown = f"{100 * share.value:.1f} % ({100 * share.low:.1f}–{100 * share.high:.1f}, n {share.of})"
    return Cell(shown, value=share.value, share=share)


def headline(result: Result) -> list[tuple[str, str]]:
    """The main numbers of a result, as (name, value)."""
    facts = [(turn_name(turn.turn), _share(turn.mean).text) for turn in result.turns]
    if result.changes is not None:
        what = "" if result.unit == "image" else f", by {result.unit}"
        facts += [(f"repair{what}", _share(result.changes.repair).text), ("damage", _share(result.changes.damage).text)]
    if result.seconds is not None:
        tokens = f" and {result.tokens:.0f} tokens" if result.tokens else ""
        facts.append(("a request", f"{result.seconds:.2f} s{tokens}"))
    return facts


def turn_name(turn: int) -> str:
    """How tables and reports name the image of a turn (1 is the first)."""
    return "initial" if turn == 1 else "improved" if turn == 2 else f"improved {turn - 1}"


def _cost(result: Result) -> Cell:
    if result.seconds is None:
        return Cell("–")
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
            names.setdefault(note, []).append(_run_name(result))
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


def _run_name(result: Result) -> str:
    return f"{result.model}, {result.mode}" if result.mode else result.model
