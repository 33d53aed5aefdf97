"""The HTML report of a score: every prompt with the images of its turns, thinking and verdicts, filtered by change.

Images are linked where they are on disk. The page's only script shows and hides cards and keeps the filters in the
address, so that a view can be shared.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from irg.evaluation.benchmarks.base import Grade
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.judging import JudgedImage
from irg.evaluation.results import Result
from irg.evaluation.runs import Sample, read_trajectory
from irg.evaluation.tables import headline, tables, turn_name
from irg.files import write_text
from irg.results.pages import render
from irg.results.reflection import without_tags

_UNTAGGED = "untagged"
CHANGES = ("repaired", "damaged", "right", "wrong", "mixed", "not judged")
_MAX_REASON = 160  # characters
_RIGHT_FROM = 0.5  # score from which an image that is graded without right and wrong counts as right in the filter


@dataclass(frozen=True)
class JudgedRequest:
    """One request: the same prompt and sample in each turn, with the thinking of its trajectory.

    Attributes:
        official_skips: missing images do not count; else they count as wrong, as in the table.
    """

    turns: tuple[JudgedImage, ...]
    thinking: tuple[str | None, ...]
    official_skips: bool = False

    @property
    def gap(self) -> bool:
        """Whether an image is missing or has no grade."""
        return any(one.grade is None for one in self.turns)

    @property
    def change(self) -> str:
        """Which of :data:`CHANGES` describes it."""
        ends = (self.turns[0], self.turns[-1])
        if any(one.grade is None and (self.official_skips or one.state != "missing") for one in ends):
            return "not judged"
        known = [_right(one.grade) for one in ends if one.grade]
        wrong = (False,) * len(known[0] if known else (False,))
        first, last = (_right(one.grade) if one.grade else wrong for one in ends)
        if len(self.turns) > 1 and len(first) == len(last):
            gained = sum(not was and is_ for was, is_ in zip(first, last, strict=True))
            lost = sum(was and not is_ for was, is_ in zip(first, last, strict=True))
            if gained != lost:
                return "repaired" if gained > lost else "damaged"
            if gained:
                return "mixed"
        return "right" if all(last) else "wrong"


def _right(grade: Grade) -> tuple[bool, ...]:
    return grade.right or (grade.score >= _RIGHT_FROM,)


def requests_of(items: Sequence[JudgedImage], run: Path | None, official_skips: bool = False) -> list[JudgedRequest]:
    """The judged images by request, with the thinking of the trajectories in ``run``, if it is one."""
    grouped: dict[tuple[str, int], list[JudgedImage]] = {}
    for item in items:
        if item.state != "not covered":
            grouped.setdefault((item.prompt.id, item.sample), []).append(item)
    return [JudgedRequest(tuple(turns), _thinking(turns[0], run), official_skips) for turns in grouped.values()]


def _thinking(first: JudgedImage, run: Path | None) -> tuple[str | None, ...]:
    path = None if run is None else Sample(first.prompt, first.sample).trajectory_file(run)
    turns = read_trajectory(path)["turns"] if path is not None and path.is_file() else []
    return tuple(turn.get("thinking") for turn in turns)


def write_report(folder: Path, result: Result, requests: Sequence[JudgedRequest]) -> Path:
    """Write ``index.html`` into ``folder``; returns it."""
    tags = Counter(request.turns[0].prompt.tag or _UNTAGGED for request in requests)
    changes = Counter(request.change for request in requests)
    page = render(
        "bench.html",
        title=f"{BENCHMARKS[result.benchmark].title}: {result.model}{f', {result.mode}' if result.mode else ''}",
        judge=result.judge,
        facts=headline(result),
        tables=tables([result]),
        categories={tag: tags[tag] for tag in sorted(tags, key=lambda tag: tag == _UNTAGGED)},
        changes={name: changes[name] for name in CHANGES if changes[name]},
        gaps=sum(request.gap for request in requests),
        cards=[_card(request, folder) for request in requests],
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _card(request: JudgedRequest, folder: Path) -> dict[str, Any]:
    """What the page shows of a request."""
    first, turns = request.turns[0], len(request.turns)
    texts = []
    for number, text in enumerate(request.thinking):
        if text:
            name = "Reflection" if number else "Thinking"
            texts.append((name if number < 2 else f"Reflection {number}", without_tags(text)))
    for one in request.turns:
        if (text := _judge_text(one)) and text != _reason(one):
            texts.append((f"Judge on the {_turn(one, turns)} image", text))
    return {
        "category": first.prompt.tag or _UNTAGGED,
        "change": request.change,
        "gap": request.gap,
        "tag": first.prompt.tag,
        "id": first.prompt.id,
        "sample": first.sample,
        "prompt": first.prompt.text,
        "images": [_image(one, folder, turns) for one in request.turns],
        "texts": texts,
    }


def _judge_text(one: JudgedImage) -> str:
    """The grade's detail or the failure's message, then answers that are texts and say more than "Yes."."""
    detail = one.grade.detail if one.grade else one.message
    texts = [answer for answer in one.answers.values() if isinstance(answer, str) and len(answer) > len("Yes.")]
    return "\n\n".join([detail, *(text for text in texts if text not in detail)]).strip()


def _image(one: JudgedImage, folder: Path, turns: int) -> dict[str, Any]:
    """An image with its verdict; ``url`` is None where there is no readable image."""
    state = one.state.replace("_", " ")
    verdict = state if one.grade is None else _verdict(one)
    return {
        "label": _turn(one, turns),
        "state": state,
        "verdict": verdict,
        "why": _reason(one),
        "url": None if one.image is None or one.state == "unreadable" else _url(one, folder),
    }


def _url(one: JudgedImage, folder: Path) -> str:
    """The image's address relative to the page; a tile of a grid is written to a file of its own."""
    assert one.image is not None
    place = one.image.path
    if one.image.tile is not None:
        place = folder / "tiles" / f"{one.prompt.id.replace('/', '-')}-{one.sample}-{one.turn}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        one.image.pixels().save(place)
    return quote(os.path.relpath(place.resolve(), folder.resolve()).replace(os.sep, "/"))


def _reason(one: JudgedImage) -> str:
    """What is wrong, or why there is no grade, where one short line says it; else empty."""
    right = () if one.grade is None else _right(one.grade)
    text = "; ".join((one.grade.detail if one.grade else one.message).splitlines())
    return text if len(text) <= _MAX_REASON and (not right or (len(right) == 1 and not all(right))) else ""


def _verdict(one: JudgedImage) -> str:
    assert one.grade is not None
    right = one.grade.right
    if len(right) == 1 and one.grade.score in (0, 1):
        return "right" if right[0] else "wrong"
    return f"{sum(right)} of {len(right)} right" if len(right) > 1 else f"{one.grade.score:.2f}"


def _turn(one: JudgedImage, turns: int) -> str:
    return "final" if turns == 1 else turn_name(one.turn)
