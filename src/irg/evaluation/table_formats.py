"""``irg bench table``: tables of scores as Markdown, CSV or HTML."""

import csv
import io
from collections.abc import Sequence

from irg.evaluation.table_parts import Cell, Table
from irg.results.pages import render


def to_markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in tables:
        head = ["| " + " | ".join(("", *table.columns)) + " |", "|---" * (len(table.columns) + 1) + "|"]
        cells = ((_escaped(row.name), *(_with_mark(cell) for cell in row.cells)) for row in table.rows)
        rows = ["| " + " | ".join(row) + " |" for row in cells]
        notes = ["", *(f"- {_escaped(note)}" for note in table.notes)]
        parts.append("\n".join([f"**{_escaped(table.title)}**", "", *head, *rows, *notes]))
    return "\n\n".join(parts) + "\n"


def _with_mark(cell: Cell) -> str:
    return f"{cell.text} [{cell.mark}]" if cell.mark else cell.text


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def to_csv(tables: Sequence[Table]) -> str:
    """One line per number, in full precision, with its interval, judge and prompts: for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("table", "row", "column", "value", "low", "high", "n", "partial", "judge and prompts"))
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.value is not None:
                    bounds = (
                        (cell.estimate.low, cell.estimate.high, cell.estimate.of) if cell.estimate else ("", "", "")
                    )
                    judge = table.by_mark.get(cell.mark, "")
                    writer.writerow((table.title, row.name, column, cell.value, *bounds, "yes" * cell.partial, judge))
    return out.getvalue()


def to_html(tables: Sequence[Table]) -> str:
    """A page with all tables; a number's judge and prompts are also its tooltip."""
    return render("tables.html", title="Benchmarks", tables=tables)
