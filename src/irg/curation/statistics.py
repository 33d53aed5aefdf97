"""What is in a build: sources, rejections, lengths, scores, times, told as tables."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from irg.curation.build import Layout
from irg.curation.finished import Gate, records, score_columns


def tables(layout: Layout) -> Iterator[Table]:
    """Tables of rows by source, of texts' lengths and judges' scores (quartiles), and of what the export leaves out."""
    gate = Gate.of(layout)
    by_source: Counter[tuple[str, str]] = Counter()
    verdicts: Counter[str] = Counter()
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))  # a tenth of what a list would take
    for block in layout.blocks():
        for record in records(layout, block):
            by_source[(record.source, record.license)] += 1
            verdicts[gate.refuses(record) or "exported"] += 1
            values["words of T1"].append(len(record.thinking.split()))
            if record.reflection is not None:
                values["words of T2"].append(len(record.reflection.split()))
            values["cost"].append(record.cost)
            values["seconds"].append(record.seconds or 0.0)
            for name, score in record.scores.items():
                if score is not None:
                    values[name].append(score)
    yield _table("finished rows", ("source", "licence", "rows"), [[*k, f"{n:,}"] for k, n in by_source.most_common()])
    if layout.sift is not None:
        yield _table("sift", ("verdict", "prompts"), [[how, f"{n:,}"] for how, n in _sifted(layout).most_common()])
    order = ["words of T1", "words of T2", *score_columns(layout), "cost", "seconds"]
    rows = [[name, f"{len(values[name]):,}", *_spread(values[name])] for name in order if values[name]]
    yield _table("numbers", ("column", "rows", "mean", "least", "1/4", "1/2", "3/4", "most"), rows)
    yield _table("export", ("verdict", "rows"), [[reason, f"{n:,}"] for reason, n in verdicts.most_common()])


def _sifted(layout: Layout) -> Counter[str]:
    counts: Counter[str] = Counter()
    assert layout.sift is not None
    for block in layout.sift.blocks():
        for row in layout.sift.read(block, ["id", "how", "benchmark"]).values():
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
