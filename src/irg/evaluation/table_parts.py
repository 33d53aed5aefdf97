"""What tables of scores are made of: cells, rows, footnotes; :mod:`irg.evaluation.table_formats` writes them.

Every number carries a mark, and a footnote says for each mark which judge saw which prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from irg.evaluation.reported import Reported
from irg.evaluation.results import Result
from irg.evaluation.statistics import Estimate

SHORT_NAMES = {
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
    estimate: Estimate | None = None
    partial: bool = False


NOTHING = Cell("–")


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]
    reported: bool = False


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


class Marks:
    """Footnote marks: a, b, c ... for each judge and prompt set."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], str] = {}

    def own(self, judge: str, prompts: str) -> str:
        """The mark of numbers of ours."""
        return self.known.setdefault((judge, prompts), _letters(len(self.known)))

    def reported(self, row: Reported) -> str:
        """The mark of what others report."""
        return self.own(f"{row.judge} (reported: {row.source})", row.prompts)

    def notes(self) -> list[str]:
        return [f"[{mark}] judge: {judge}; prompts: {prompts}" for (judge, prompts), mark in self.known.items()]


def _letters(number: int) -> str:
    return (_letters(number // 26 - 1) if number >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[number % 26]


def score_cell(value: float | None, mark: str, benchmark: str, partial: bool = False) -> Cell:
    """A benchmark's number in the digits that are usual for it."""
    if value is None:
        return NOTHING
    digits = _DIGITS.get(benchmark, 3)
    shown = f"{100 * value:.{digits}f}" if benchmark == "tiif" else f"{value:.{digits}f}"
    return Cell(shown + "*" * partial, mark, value, partial=partial)


def percent_cell(value: float | None, mark: str) -> Cell:
    """A share that others report."""
    return NOTHING if value is None else Cell(f"{100 * value:.1f} %", mark, value)


def share_cell(share: Estimate | None) -> Cell:
    """A share or a mean of scores in percent, with its interval."""
    return _estimate_cell(share, lambda value: f"{100 * value:.1f}", " %")


def change_cell(change: Estimate | None) -> Cell:
    """A difference of two scores in points, with its interval."""
    return _estimate_cell(change, lambda value: f"{100 * value:+.1f}", "")


def _estimate_cell(estimate: Estimate | None, shown: Callable[[float], str], unit: str) -> Cell:
    if estimate is None:
        return NOTHING
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Cell("– (of 0)")
    interval = (
        f"{shown(estimate.low)} to {shown(estimate.high)}"
        if not unit
        else f"{shown(estimate.low)}–{shown(estimate.high)}"
    )
    text = f"{shown(estimate.value)}{unit} ({interval}, n {estimate.of})"
    return Cell(text, value=estimate.value, estimate=estimate)


def run_name(result: Result) -> str:
    """How tables name a run: model, mode, and the search at test time, if there was one."""
    settings = result.run.get("settings", {})
    parts = [result.model, result.mode]
    if settings.get("candidates", 1) > 1:
        parts.append(f"best of {settings['candidates']}")
    if settings.get("keep_best"):
        parts.append("best of its rounds")
    if len(parts) > 2:
        parts[-1] += f" by {settings[settings['select']] if settings['select'] == 'critic' else settings['select']}"
    return ", ".join(part for part in parts if part)


def prompts_label(result: Result) -> str:
    """The prompt set, and how many of it were chosen if not all."""
    covered = result.coverage
    drawn = "" if covered["chosen"] == covered["in_set"] else f", {covered['chosen']} of {covered['in_set']}"
    return f"{result.prompts}{drawn}"
