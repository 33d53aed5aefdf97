"""GenEval's rules and summary (github.com/djghosh13/geneval): what a detector found in, a verdict out.

A detector's finding is ``{class: [[x1, y1, x2, y2, score], ...]}`` in pixels, before any threshold, and optionally the
color of each box in the same order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SCORE_ABOVE = 0.3
COUNTING_SCORE_ABOVE = 0.9
MOST_PER_CLASS = 16
BOX_SHARE = 0.1  # of both boxes' sizes: by so much an offset shrinks before it counts
HOLDS_ABOVE = 0.5
_NOTHING = 1e-3  # pixels; an offset below this on both axes is no relation

Boxes = Mapping[str, Sequence[Sequence[float]]]
Colors = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Is the image what the prompt asks for, and if not, why (one reason a line, in the official words)."""

    correct: bool
    reason: str
    kept: dict[str, int]


@dataclass(frozen=True)
class _Found:
    """A box that counts: [x1, y1, x2, y2] and its color, if that was looked at."""

    box: np.ndarray
    color: str | None


def judge(
    metadata: Mapping[str, Any],
    boxes: Boxes,
    colors: Colors | None = None,
    counting_above: float = COUNTING_SCORE_ABOVE,
) -> Verdict:
    """The official verdict on what was found in one image.

    Args:
        metadata: a line of GenEval's metadata: ``tag``, ``include``, perhaps ``exclude``.
        boxes: all boxes by class, with their scores, in any order.
        colors: the color of each box, needed where ``include`` asks for one.
        counting_above: what a score must be above in ``counting`` prompts; the official 0.9 suits its own detector.

    Raises:
        ValueError: a color is asked for and ``colors`` has not one for each box of that class.
    """
    threshold = counting_above if metadata.get("tag") == "counting" else SCORE_ABOVE
    wants_color = {clause["class"] for clause in metadata.get("include", ()) if "color" in clause}
    found = {}
    for name, rows in boxes.items():
        named = None
        if name in wants_color:
            named = (colors or {}).get(name, ())
            if len(named) != len(rows):
                raise ValueError(f"{name}: {len(rows)} boxes, but {len(named)} colors")
        if kept := _keep(rows, named, threshold):
            found[name] = kept
    reasons: list[str] = []
    matched: list[list[_Found] | None] = []
    for clause in metadata.get("include", ()):
        group, reason = _match(clause, found, matched)
        matched.append(group)
        if reason:
            reasons.append(reason)
    for clause in metadata.get("exclude", ()):
        count = len(found.get(clause["class"], ()))
        if count >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return Verdict(not reasons, "\n".join(reasons), {name: len(kept) for name, kept in found.items()})


def _keep(rows: Sequence[Sequence[float]], colors: Sequence[str] | None, threshold: float) -> list[_Found]:
    """The boxes above the threshold, the surest first, at most 16."""
    if not len(rows):
        return []
    table = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    order = np.argsort(table[:, 4])[::-1]  # as the official code does it: of equal scores the later box comes first
    order = order[table[order, 4] > threshold][:MOST_PER_CLASS]
    return [_Found(table[i, :4], colors[i] if colors is not None else None) for i in order]


def _match(
    clause: Mapping[str, Any], found: Mapping[str, list[_Found]], matched: Sequence[list[_Found] | None]
) -> tuple[list[_Found] | None, str]:
    """The boxes that fulfil a clause, or None and why there are none."""
    name, count = clause["class"], clause["count"]
    group = found.get(name, [])[:count]
    if len(group) < count:
        return None, f"expected {name}>={count}, found {len(group)}"
    if "color" in clause:
        colors = [one.color for one in group]
        right = colors.count(clause["color"])
        if right < count:
            seen = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
            return None, f"expected {clause['color']} {name}>={count}, found {right} {clause['color']}; and {seen}"
    if "position" in clause:
        relation, target = clause["position"]
        others = matched[target]
        if others is None:
            return None, f"no target for {name} to be {relation}"
        for one in group:
            for other in others:
                holding = relations(one.box, other.box)
                if relation not in holding:
                    return None, f"expected {name} {relation} target, found {' and '.join(sorted(holding))} target"
    return group, ""


def relations(box_a: Sequence[float] | np.ndarray, box_b: Sequence[float] | np.ndarray) -> set[str]:
    """How a stands to b: any of ``left of``, ``right of``, ``above``, ``below``; boxes are (x1, y1, x2, y2).

    The offset of the centers shrinks on each axis by a tenth of both sizes, is divided by the length of the unshrunk
    offset, and holds beyond 0.5.
    """
    a, b = (np.asarray(box, dtype=np.float64)[:4].reshape(2, 2) for box in (box_a, box_b))
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    shrunk = np.maximum(np.abs(offset) - BOX_SHARE * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shrunk) < _NOTHING):
        return set()
    dx, dy = shrunk / np.linalg.norm(offset)
    holds = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, strength in holds.items() if strength > HOLDS_ABOVE}


def summarize(results: Iterable[tuple[str, str, bool]]) -> dict[str, float]:
    """Shares from (prompt, tag, correct) of every image.

    Returns one entry a tag (mean over its images), ``overall`` (plain mean of the tags that occur), ``images`` and
    ``prompts`` (share of right images; share of prompts with a right one). Empty when there are no results.
    """
    tags: dict[str, list[bool]] = {}
    prompts: dict[str, bool] = {}
    for prompt, tag, correct in results:
        tags.setdefault(tag, []).append(correct)
        prompts[prompt] = prompts.get(prompt, False) or correct
    if not tags:
        return {}
    order = [tag for tag in TAGS if tag in tags] + [tag for tag in tags if tag not in TAGS]
    scores = {tag: float(np.mean(tags[tag])) for tag in order}
    every = [correct for values in tags.values() for correct in values]
    return scores | {
        "overall": float(np.mean(list(scores.values()))),
        "images": float(np.mean(every)),
        "prompts": float(np.mean(list(prompts.values()))),
    }
