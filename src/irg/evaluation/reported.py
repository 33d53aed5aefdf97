"""What models' authors report, beside which our scores are shown: ``reported.json``, each figure with its source.

A figure is a number of the final image, or a list by edit budget: the first entry is the first image's, null is not
reported. Names are columns of our tables, and ``repair`` and ``damage``; values are on the benchmark's own scale 0..1.
``same_judge`` is what a judge's name contains if its scores may stand in one table with these; null: no judge's may.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Reported:
    """What one source reports of one model on one benchmark."""

    model: str
    by: str
    source: str
    judge: str
    same_judge: str | None
    prompts: str
    figures: dict[str, float | list[float | None]]

    @property
    def name(self) -> str:
        """Says who reports it; of the authors themselves just that it is reported."""
        return f"{self.model} ({'reported' if self.model.startswith(self.by) else self.by})"

    def final(self, figure: str) -> float | None:
        """Of the final image; None where it is not reported."""
        value = self.figures.get(figure)
        return value[-1] if isinstance(value, list) else value

    def by_budget(self, figure: str) -> list[float | None]:
        """By edit budget, from 0 on; empty where it is not reported that way."""
        value = self.figures.get(figure)
        return value if isinstance(value, list) else []

    def is_judged_by(self, judge: str) -> bool:
        """Whether a judge's scores may stand in one table with these: it is the same judge, by its name."""
        return self.same_judge is not None and self.same_judge in judge.lower()


@cache
def reported(benchmark: str) -> tuple[Reported, ...]:
    """All that is reported on a benchmark, in the file's order."""
    groups = json.loads(files(__package__).joinpath("reported.json").read_text(encoding="utf-8"))
    return tuple(
        Reported(
            model, figures=figures, **{key: group[key] for key in ("by", "source", "judge", "same_judge", "prompts")}
        )
        for group in groups
        if group["benchmark"] == benchmark
        for model, figures in group["models"].items()
    )
