"""From verdicts to table rows: what each way of reasoning scores, with intervals, and what reflection changes.

A line of a run holds, for one request, whether each of its images is ``right`` and whether each reflection said that
it is ``done``. From a run that always looked again follow the shorter ones, with and without the stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from irg.evaluation.statistics import Estimate, repair_and_damage, share, stratified_interval

COLUMNS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "compound", "stacking")
_BEST = "best of 2, picked by its reflections"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """The final image of every request: its prompt, form, whether it is right, and how many images that took."""

    name: str
    prompts: tuple[str, ...]
    tags: tuple[str, ...]
    right: tuple[bool, ...]
    drawn: tuple[int, ...]
    first: tuple[bool, ...] | None = None
    """Whether the first image was right, where it was looked at."""
    seconds: tuple[float, ...] = ()
    """Of each request in its batch; empty where the row follows from another run."""

    def score(self) -> dict[str, float]:
        """Share of right images per form, and ``overall``, the plain mean of the forms (GenEval's way)."""
        tags, right = np.array(self.tags), np.array(self.right, float)
        per_tag = {tag: float(right[tags == tag].mean()) for tag in COLUMNS if (tags == tag).any()}
        return per_tag | {"overall": float(np.mean(list(per_tag.values())))}

    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap of ``overall``, prompts drawn within their form (images of one prompt stay
        together)."""
        return _interval(self, np.array(self.right, float))

    def repair_and_damage(self) -> tuple[Estimate, Estimate] | None:
        """Wrong -> right among wrong first images, right -> wrong among right ones."""
        if self.first is None:
            return None
        pairs = [(p, [a], [b]) for p, a, b in zip(self.prompts, self.first, self.right, strict=True)]
        return repair_and_damage(pairs)


def difference(one: Row, other: Row) -> tuple[float, float, float]:
    """Overall of ``one`` minus that of ``other`` on the same requests, with its 95 % interval (paired by prompt).

    Raises:
        ValueError: the rows are not of the same requests.
    """
    if one.prompts != other.prompts:
        raise ValueError(f"{one.name} and {other.name} are not of the same requests")
    gap = np.array(one.right, float) - np.array(other.right, float)
    low, high = _interval(one, gap)
    return one.score()["overall"] - other.score()["overall"], low, high


def _interval(row: Row, values: np.ndarray) -> tuple[float, float]:
    """The interval of the mean over the forms, from the mean value of each prompt."""
    groups: dict[str, dict[str, list[float]]] = {}
    for tag, prompt, value in zip(row.tags, row.prompts, values, strict=True):
        groups.setdefault(tag, {}).setdefault(prompt, []).append(float(value))
    forms = [[float(np.mean(v)) for v in prompts.values()] for prompts in groups.values()]
    return stratified_interval(forms, resamples=4000, seed=0)  # those of the published tables


# ---- rows


def _row(name: str, lines: Sequence[Line], last: Sequence[int], drawn: Sequence[int], looked: bool) -> Row:
    """The row whose final image of line i is ``right[last[i]]``."""
    return Row(
        name,
        tuple(line["prompt"] for line in lines),
        tuple(line["tag"] for line in lines),
        tuple(bool(line["right"][k]) for line, k in zip(lines, last, strict=True)),
        tuple(drawn),
        tuple(bool(line["right"][0]) for line in lines) if looked else None,
    )


def stop_at(line: Line, rounds: int) -> int:
    """The image that is final if the program ends with the first reflection that finds nothing wrong."""
    for turn, done in enumerate(line["done"][:rounds]):
        if done:
            return turn
    return min(rounds, len(line["right"]) - 1)


def rows(results: Mapping[str, Sequence[Line]]) -> list[Row]:
    """All rows that the runs allow."""
    out: list[Row] = []
    for name, lines in results.items():
        if name != "always":
            last = [len(line["right"]) - 1 for line in lines]
            looked, searched = any(line["done"] for line in lines), any("kept" in line for line in lines)
            if name == "irg":  # a longer loop that stops when done holds the shorter ones
                for rounds in range(1, max(last)):
                    ends = [min(n, rounds) for n in last]
                    out.append(_row(f"irg, {_up_to(rounds)}", lines, ends, [n + 1 for n in ends], True))
            kept = [line.get("kept", n) for line, n in zip(lines, last, strict=True)]
            drawn = [line.get("drawn", n + 1) for line, n in zip(lines, last, strict=True)]
            row = _row(name, lines, kept, drawn, looked)
            out.append(replace(row, seconds=tuple(line["seconds"] for line in lines if "seconds" in line)))
            if looked and name != "irg" and not searched:
                stops = [stop_at(line, n) for line, n in zip(lines, last, strict=True)]
                out.append(_row(f"{name}, stops when done", lines, stops, [n + 1 for n in stops], True))
    always = results.get("always")
    if not always:
        return out
    firsts = [0] * len(always)
    out.append(_row("first image (think)", always, firsts, [1] * len(always), False))
    for rounds in range(1, len(always[0]["right"])):
        stops = [stop_at(line, rounds) for line in always]
        out.append(_row(f"irg, {_up_to(rounds)}, stops when done", always, stops, [n + 1 for n in stops], True))
        out.append(
            _row(f"irg, {_up_to(rounds)}, always", always, [rounds] * len(always), [rounds + 1] * len(always), True)
        )
    if "redraw" in results:
        out.append(_redrawn(always, results["redraw"]))
    if "again" in results:
        out.append(_best_of_two(always, results["again"]))
    return out


def _up_to(rounds: int) -> str:
    return "1 round" if rounds == 1 else f"{rounds} rounds"


def _best_of_two(always: Sequence[Line], again: Sequence[Line]) -> Row:
    """Of two independent images the one that its own reflection finds nothing wrong with; the first where that is
    both or neither."""
    pairs = list(zip(always, again, strict=True))
    taken = [other if other["done"][0] and not line["done"][0] else line for line, other in pairs]
    row = _row(_BEST, always, [0] * len(always), [2] * len(always), True)
    return replace(row, right=tuple(bool(line["right"][0]) for line in taken))


def _redrawn(always: Sequence[Line], redraw: Sequence[Line]) -> Row:
    """The first image where the reflection finds nothing wrong, else an independent second one: what the redrawing
    from a reflection has to beat at equal cost."""
    right = [
        line["right"][0] if line["done"][0] else other["right"][0] for line, other in zip(always, redraw, strict=True)
    ]
    row = _row("independent redraw where reflection finds a flaw", always, [0] * len(always), [1] * len(always), True)
    drawn = tuple(1 if line["done"][0] else 2 for line in always)
    return replace(row, right=tuple(map(bool, right)), drawn=drawn)


# ---- the table


def table(results: Mapping[str, Sequence[Line]]) -> str:
    """Markdown: a row per way of reasoning, and what the reflections got right."""
    made = rows(results)
    tags = [tag for tag in COLUMNS if any(tag in row.tags for row in made)]
    head = [*tags, "overall", "95 % interval", "repair", "damage", "images", "n"]
    text = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    text += [_line(row, tags) for row in made]
    named = {row.name: row for row in made}
    first, ours = named.get("first image (think)"), named.get("irg, 1 round, stops when done")
    other = named.get("independent redraw where reflection finds a flaw")
    text.append("")
    text += _gains(results)
    if first and ours:
        text.append(_compare("irg (1 round, stops) minus its first image", difference(ours, first)))
    if ours and other:
        text.append(
            _compare("irg (1 round, stops) minus an independent redraw of the same images", difference(ours, other))
        )
    if first and (best := named.get(_BEST)):
        text.append(_compare(f"{_BEST}, minus the first image", difference(best, first)))
    if any("kept" in line for lines in results.values() for line in lines):
        text += ["", *costs([row for row in made if row.seconds])]
    if "always" in results:
        text.append(reading(results["always"]))
        if all("planned" in line for line in results["always"]):  # runs of before did not say
            text.append(planning(results["always"]))
    return "\n".join(text)


def _gains(results: Mapping[str, Sequence[Line]]) -> list[str]:
    """What a loop that stops when done gains over its own first images, for each number of rounds."""
    loops = rows({"irg": results["irg"]}) if "irg" in results else []
    pairs = [(row, replace(row, right=row.first)) for row in loops if row.first is not None]
    return [_compare(f"{row.name} minus its first image", difference(row, before)) for row, before in pairs]


def costs(made: Sequence[Row]) -> list[str]:
    """Markdown: what each way of reasoning costs and brings, compared with the first one."""
    lines = ["| | overall | 95 % interval | images | s | points per s | points more | per s more |", "|---" * 8 + "|"]
    first, least = made[0], float(np.mean(made[0].seconds))
    for row in made:
        score, (low, high), seconds = row.score()["overall"], row.interval(), float(np.mean(row.seconds))
        cells = [f"{100 * score:.1f}", f"{100 * low:.1f}–{100 * high:.1f}", f"{np.mean(row.drawn):.2f}"]
        cells += [f"{seconds:.2f}", f"{100 * score / seconds:.1f}"]
        if row is first:
            cells += ["–", "–"]
        else:
            gap, least_gap, most_gap = (100 * value for value in difference(row, first))
            more = f"{gap / (seconds - least):.1f}" if seconds > least else "–"
            cells += [f"{gap:+.1f} ({least_gap:+.1f} to {most_gap:+.1f})", more]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return lines


def _line(row: Row, tags: Sequence[str]) -> str:
    score, (low, high) = row.score(), row.interval()
    cells = [f"{100 * score[tag]:.1f}" if tag in score else "–" for tag in (*tags, "overall")]
    both = row.repair_and_damage()
    shares = [_share(s) for s in both] if both else ["–", "–"]
    cells += [f"{100 * low:.1f}–{100 * high:.1f}", *shares, f"{np.mean(row.drawn):.2f}", str(len(row.right))]
    return f"| {row.name} | " + " | ".join(cells) + " |"


def _share(value: Estimate) -> str:
    if value.value is None or value.low is None or value.high is None:
        return "–"
    return f"{100 * value.value:.0f} ({100 * value.low:.0f}–{100 * value.high:.0f}) of {value.of}"


def _compare(what: str, found: tuple[float, float, float]) -> str:
    gap, low, high = (100 * value for value in found)
    return f"{what}: {gap:+.1f} points ({low:+.1f} to {high:+.1f})."


def reading(lines: Sequence[Line]) -> str:
    """How often the first reflection notices a wrong image, and how often it finds fault with a right one."""
    wrong = [(line["prompt"], float(not line["done"][0])) for line in lines if not line["right"][0]]
    right = [(line["prompt"], float(not line["done"][0])) for line in lines if line["right"][0]]
    noticed, false = (share([(value, 1.0) for _, value in some]) for some in (wrong, right))
    return (
        f"Reflection finds a flaw in {_share(noticed)} wrong first images, and in {_share(false)} right ones "
        "(percent, by the detector)."
    )


def planning(lines: Sequence[Line]) -> str:
    """How many wrong first images follow from a wrong plan, and how many wrong plans the first reflection corrects."""
    wrong = [(line["prompt"], float(not line["planned"][0])) for line in lines if not line["right"][0]]
    corrected = [(line["prompt"], float(bool(line["planned"][1]))) for line in lines if not line["planned"][0]]
    planned_wrong, ends_right = (share([(value, 1.0) for _, value in some]) for some in (wrong, corrected))
    return (
        f"The plan was already wrong in {_share(planned_wrong)} wrong first images; reflections end with a right one "
        f"in {_share(ends_right)} wrong plans (percent)."
    )
