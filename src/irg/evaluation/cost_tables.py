"""What runs of the same prompts cost and bring: score per second, and per second more than the cheapest run took."""

from collections.abc import Sequence

from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.results import Result
from irg.evaluation.table_parts import NOTHING, Cell, Row, Table, prompts_label, run_name, share_cell

_NOTE = (
    "s: wall-clock seconds of a whole request in the batches of its run; compare runs of one machine, alone on it. "
    "Score per s: mean score of the final images by seconds. Points per s more: points above the fastest run, by the "
    "seconds that it took more."
)


def cost_table(group: Sequence[Result]) -> Table | None:
    """Scores of one benchmark, judge and prompt set by what they cost; None where fewer than two runs were timed."""
    timed = [result for result in group if result.seconds and result.turns and result.turns[-1].mean.value is not None]
    if len(timed) < 2:
        return None
    first = min(timed, key=lambda result: result.seconds or 0.0)
    rows = tuple(Row(run_name(result), _cells(result, first)) for result in timed)
    title = f"{BENCHMARKS[first.benchmark].title} by cost, judged by {first.judge}, prompts {prompts_label(first)}"
    heads = ("images, 95 %", "images a request", "s a request", "score per s", "points per s more")
    return Table(title, heads, rows, (_NOTE,))


def _cells(result: Result, cheapest: Result) -> tuple[Cell, ...]:
    last = result.turns[-1]
    value, seconds = last.mean.value, result.seconds
    base, least = cheapest.turns[-1].mean.value, cheapest.seconds
    assert value is not None and base is not None and seconds and least
    drawn, more = last.images_per_request, seconds - least
    return (
        share_cell(last.mean),
        NOTHING if drawn is None else Cell(f"{drawn:.2f}", value=drawn),
        Cell(f"{seconds:.2f}", value=seconds),
        Cell(f"{value / seconds:.3f}", value=value / seconds),
        Cell(f"{100 * (value - base) / more:+.2f}", value=(value - base) / more) if more else NOTHING,
    )
