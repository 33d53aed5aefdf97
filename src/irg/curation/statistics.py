"""What is in a build: sources, rejections, lengths, scores, times, as tables."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from irg.curation.build_folder import BuildFolder
from irg.curation.finished import RowFilter, all_score_columns, records


def tables(folder: BuildFolder) -> Iterator[Table]:
    """Tables of rows by source, of texts' lengths and judges' scores (quartiles), and of what the export leaves out."""
    row_filter = RowFilter.of(folder)
    by_source: Counter[tuple[str, str]] = Counter()
    verdicts: Counter[str] = Counter()
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))  # a tenth of what a list would take
    for block in folder.blocks():
        for record in records(folder, block):
            by_source[(record.source, record.license)] += 1
            verdicts[row_filter.rejects(record) or "exported"] += 1
            values["words of T1"].append(len(record.thinking.split()))
            if record.reflection is not None:
                values["words of T2"].append(len(record.reflection.split()))
            values["cost"].append(record.cost)
            values["seconds"].append(record.seconds or 0.0)
            for name, score in record.scores.items():
                if score is not None:
                    values[name].append(score)
    yield _table("finished rows", ("source", "licence", "rows"), [[*k, f"{n:,}"] for k, n in by_source.most_common()])
    if folder.filtered is not None:
        yield _table("filter", ("verdict", "prompts"), [[how, f"{n:,}"] for how, n in _filtered(folder).most_common()])
    order = ["words of T1", "words of T2", *all_score_columns(folder), "cost", "seconds"]
    rows = [[name, f"{len(values[name]):,}", *_spread(values[name])] for name in order if values[name]]
    yield _table("numbers", ("column", "rows", "mean", "least", "1/4", "1/2", "3/4", "most"), rows)
    yield _table("export", ("verdict", "rows"), [[reason, f"{n:,}"] for reason, n in verdicts.most_common()])


def _filtered(folder: BuildFolder) -> Counter[str]:
    counts: Counter[str] = Counter()
    assert folder.filtered is not None
    for block in folder.filtered.blocks():
        for row in folder.filtered.read(block, ["id", "how", "benchmark"]).values():
            counts["passed" if row["how"] is None else f"{row['how']} {row['benchmark'] or ''}".strip()] += 1
    return counts


def _spread(numbers: Sequence[float]) -> list[str]:
    return [f"{value:.3g}" for value in (np.mean(numbers), *np.percentile(numbers, [0, 25, 50, 75, 100]))]


def _table(title: str, heads: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        right = bool(number) and head != "licence"  # the first column says what a row is about: it is never cut
        table.add_column(head, justify="right" if right else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    return table
