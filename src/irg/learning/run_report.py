"""``irg train report RUN``: a run's log, samples, texts and recipe on one page that needs no other file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from irg import files
from irg.image_files import open_image
from irg.learning.resume_check import RECIPE
from irg.results.pages import render

REPORT = "report.html"
WIDTH, HEIGHT = 320, 120  # of a curve, in the units of its viewBox
_SIDE = 256  # longest side of a sample on the page, in pixels
_SAMPLE_STEPS = 8  # steps that samples are shown of
_TEXT_STEPS = 6  # steps that texts of rollouts are shown of

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Curve:
    """One logged figure over steps, to be drawn.

    Attributes:
        lines: points of each unbroken stretch, in the viewBox; the curve is broken where the log has no number.
    """

    name: str
    lines: list[list[tuple[float, float]]]
    low: float
    high: float
    first: float
    last: float
    first_step: int
    last_step: int


def read_log(path: Path) -> list[dict[str, float | None]]:
    """The lines of a log by rising step. Of steps that were taken again after a crash the later line counts.

    Raises:
        ValueError: there is no log, or it has no line.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} is not the folder of a training run: it has no {path.name}")
    steps: dict[int, dict[str, float | None]] = {}
    for line in files.read_json_lines(path):
        steps[int(line["step"])] = line
    if not steps:
        raise ValueError(f"{path} has no line yet: nothing was logged")
    return [steps[step] for step in sorted(steps)]


def curves(log: Sequence[Mapping[str, float | None]]) -> list[Curve]:
    """A curve for every figure that the log has a number of, in the order in which they appear."""
    names = dict.fromkeys(name for line in log for name in line if name != "step")
    return [curve for name in names if (curve := _curve(name, log))]


def _curve(name: str, log: Sequence[Mapping[str, float | None]]) -> Curve | None:
    points = [(int(line["step"] or 0), _number(line[name])) for line in log if name in line]
    known = [(step, value) for step, value in points if value is not None]
    if not known:
        return None
    values = [value for _, value in known]
    low, high, first, last = min(values), max(values), known[0][0], known[-1][0]
    lines: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None:
            lines.append([])
            continue
        x = WIDTH * (step - first) / (last - first) if last > first else WIDTH / 2
        y = HEIGHT * (high - value) / (high - low) if high > low else HEIGHT / 2
        lines[-1].append((round(x, 2), round(y, 2)))
    return Curve(name, [line for line in lines if line], low, high, values[0], values[-1], first, last)


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if plain else None


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run's folder to ``out`` (default: ``report.html`` in the folder); returns where it is.

    Raises:
        ValueError: the folder is not that of a run, or its log is empty or damaged.
    """
    log = read_log(run / "log.jsonl")
    recipe = _recipe(run / RECIPE)
    page = render(
        "run.html",
        title=f"Training run {run.resolve().name}",
        kind="by reward" if recipe.get("kind") == "rl" else "supervised",
        facts=_facts(log, recipe),
        curves=curves(log),
        size=(WIDTH, HEIGHT),
        samples=_samples(run / "samples"),
        texts=_texts(run / "texts.jsonl"),
        recipe=json.dumps(recipe, indent=2, ensure_ascii=False),
    )
    place = out or run / REPORT
    files.write_text(place, page)
    return place


def _recipe(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a recipe, a JSON object")
    return found


def _facts(log: Sequence[Mapping[str, float | None]], recipe: Mapping[str, Any]) -> dict[str, str]:
    facts = {"step": f"{log[-1]['step']:,} of {recipe.get('steps', 0):,}", "model": str(recipe.get("model", ""))}
    for name in ("reward", "held_out_reward", "loss"):
        values = [value for line in log if (value := _number(line.get(name))) is not None]
        if values:
            facts[name.replace("_", " ")] = f"{values[0]:.4g} → {values[-1]:.4g}"
    return facts


def _samples(folder: Path) -> dict[str, list[tuple[int, list[Image.Image]]]]:
    """By the number of the prompt: (step, its images) over steps, the newest last."""
    steps = _spread(sorted(folder.glob("step-*")), _SAMPLE_STEPS)
    found: dict[str, list[tuple[int, list[Image.Image]]]] = {}
    for step in steps:
        for sample in sorted(path for path in step.iterdir() if path.is_dir()):
            images = [_small(path) for path in sorted(sample.glob("*.png"))]
            if images:
                found.setdefault(_prompt(sample), []).append((int(step.name.partition("-")[2]), images))
    return found


def _prompt(sample: Path) -> str:
    try:
        return f"{sample.name}: {json.loads((sample / 'trajectory.json').read_text(encoding='utf-8'))['prompt']}"
    except (OSError, ValueError, KeyError, TypeError):
        return sample.name


def _small(path: Path) -> Image.Image:
    image = open_image(path)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _texts(path: Path) -> list[dict[str, Any]]:
    """Texts of rollouts of some steps, the first and the last among them."""
    if not path.is_file():
        return []
    lines = files.read_json_lines(path)
    shown = set(_spread(sorted({line["step"] for line in lines}), _TEXT_STEPS))
    return [line for line in lines if line["step"] in shown]


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most ``count`` of the items, evenly, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
