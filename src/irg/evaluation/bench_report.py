"""A score to look at: every prompt with the images of its turns, thoughts and verdicts, to filter by what happened.

The page holds its texts; the images are linked where they lie. Its only script shows and hides cards, and keeps what
is chosen in the address, so that a view can be passed on.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.judging import JudgedImage
from irg.evaluation.results import Result
from irg.evaluation.runs import read_trajectory
from irg.evaluation.table import headline, tables
from irg.files import write_text
from irg.results.pages import render
from irg.results.reflection import without_tags

_UNTAGGED = "untagged"
CHANGES = ("repaired", "damaged", "right", "wrong", "mixed", "not judged")
_SHORT_LINE = 160  # characters
_HALF = 0.5  # of a graded score: from here on an image without right and wrong counts as right in the filter


@dataclass(frozen=True)
class Entry:
    """One request: the same prompt and sample in each turn, with the thoughts of its trajectory.

    Attributes:
        skips: missing images do not count; else they count as wrong, here as in the table.
    """

    turns: tuple[JudgedImage, ...]
    thoughts: tuple[str | None, ...]
    skips: bool = False

    @property
    def gap(self) -> bool:
        """Whether an image is missing or has no grade."""
        return any(one.grade is None for one in self.turns)

    @property
    def change(self) -> str:
        """Which of :data:`CHANGES` describes it."""
        ends = (self.turns[0], self.turns[-1])
        if any(one.grade is None and (self.skips or one.state != "missing") for one in ends):
            return "not judged"
        known = [one.grade.right or (one.grade.score >= _HALF,) for one in ends if one.grade]
        wrong = (False,) * len(known[0] if known else (False,))
        first, last = ((one.grade.right or (one.grade.score >= _HALF,)) if one.grade else wrong for one in ends)
        if len(self.turns) > 1 and len(first) == len(last):
            gained = sum(not was and is_ for was, is_ in zip(first, last, strict=True))
            lost = sum(was and not is_ for was, is_ in zip(first, last, strict=True))
            if gained != lost:
                return "repaired" if gained > lost else "damaged"
            if gained:
                return "mixed"
        return "right" if all(last) else "wrong"


def entries(items: Sequence[JudgedImage], trajectories: Path | None, skips: bool = False) -> list[Entry]:
    """The judged images by request, with thoughts where there are any; ``skips``: missing ones do not count."""
    grouped: dict[tuple[str, int], list[JudgedImage]] = {}
    for item in items:
        if item.state != "not covered":
            grouped.setdefault((item.prompt.id, item.sample), []).append(item)
    return [_entry(turns, trajectories, skips) for turns in grouped.values()]


def _entry(turns: Sequence[JudgedImage], trajectories: Path | None, skips: bool) -> Entry:
    record: dict[str, Any] = {}
    if trajectories is not None:
        path = trajectories / turns[0].prompt.id / f"{turns[0].sample}.json"
        record = read_trajectory(path) if path.is_file() else {}
    steps = record.get("turns", [])
    return Entry(tuple(turns), tuple(step.get("thinking") for step in steps), skips)


def write_report(folder: Path, result: Result, shown: Sequence[Entry]) -> Path:
    """Write ``index.html`` into ``folder``; returns it."""
    tags = Counter(entry.turns[0].prompt.tag or _UNTAGGED for entry in shown)
    happened = Counter(entry.change for entry in shown)
    page = render(
        "bench.html",
        title=f"{BENCHMARKS[result.benchmark].title}: {result.model}{f', {result.mode}' if result.mode else ''}",
        judge=result.judge,
        facts=headline(result),
        tables=tables([result]),
        categories={tag: tags[tag] for tag in sorted(tags, key=lambda tag: tag == _UNTAGGED)},
        changes={name: happened[name] for name in CHANGES if happened[name]},
        gaps=sum(entry.gap for entry in shown),
        cards=[_card(entry, folder) for entry in shown],
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _card(entry: Entry, folder: Path) -> dict[str, Any]:
    """What the page shows of a request."""
    first, turns = entry.turns[0], len(entry.turns)
    texts = []
    for number, text in enumerate(entry.thoughts):
        if text:
            name = "Reflection" if number else "Thinking"
            texts.append((name if number < 2 else f"Reflection {number}", without_tags(text)))
    for one in entry.turns:
        if (told := _told(one)) and told != _why(one):
            texts.append((f"Judge on the {_turn(one, turns)} image", told))
    return {
        "category": first.prompt.tag or _UNTAGGED,
        "change": entry.change,
        "gap": entry.gap,
        "tag": first.prompt.tag,
        "id": first.prompt.id,
        "sample": first.sample,
        "prompt": first.prompt.text,
        "images": [_image(one, folder, turns) for one in entry.turns],
        "texts": texts,
    }


def _told(one: JudgedImage) -> str:
    """What the answers came to, then the answers as they stand where they are texts that say more."""
    told = one.grade.detail if one.grade else one.message
    said = [f"{answer}" for answer in one.answers.values() if isinstance(answer, str) and len(answer) > len("Yes.")]
    return "\n\n".join([told, *(answer for answer in said if answer not in told)]).strip()


def _image(one: JudgedImage, folder: Path, turns: int) -> dict[str, Any]:
    """An image with its verdict; ``url`` is None where there is no image to see."""
    state = one.state.replace("_", " ")
    verdict = state if one.grade is None else _verdict(one)
    return {
        "label": _turn(one, turns),
        "state": state,
        "verdict": verdict,
        "why": _why(one),
        "url": None if one.image is None or one.state == "unreadable" else _url(one, folder),
    }


def _url(one: JudgedImage, folder: Path) -> str:
    """Where the image lies, relative to the page; a tile of a grid is written beside the page."""
    assert one.image is not None
    place = one.image.path
    if one.image.tile is not None:
        place = folder / "tiles" / f"{one.prompt.id.replace('/', '-')}-{one.sample}-{one.turn}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        one.image.pixels().save(place)
    return quote(os.path.relpath(place.resolve(), folder.resolve()).replace(os.sep, "/"))


def _why(one: JudgedImage) -> str:
    """What is wrong, or why there is no grade, where one short line says it: to be read without opening anything."""
    right = () if one.grade is None else one.grade.right or (one.grade.score >= _HALF,)
    told = "; ".join((one.grade.detail if one.grade else one.message).splitlines())
    return told if len(told) <= _SHORT_LINE and (not right or (len(right) == 1 and not all(right))) else ""


def _verdict(one: JudgedImage) -> str:
    assert one.grade is not None
    right = one.grade.right
    if len(right) == 1 and one.grade.score in (0, 1):
        return "right" if right[0] else "wrong"
    return f"{sum(right)} of {len(right)} right" if len(right) > 1 else f"{one.grade.score:.2f}"


def _turn(one: JudgedImage, turns: int) -> str:
    if turns == 1:
        return "final"
    return "initial" if one.turn == 1 else "improved" if one.turn == 2 else f"improved {one.turn - 1}"
