"""``result.json``: numbers per turn, repair and damage, which judge saw which prompts, what is missing."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from irg import files
from irg.evaluation.benchmarks import judge_prompts
from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage
from irg.evaluation.judging import JudgedImage
from irg.evaluation.runs import library_versions
from irg.evaluation.statistics import Changes, Share, bootstrap_interval, changes
from irg.version import __version__

SCHEMA = 1
RESULT_FILE = "result.json"
_NO_GAPS = ("graded", "not covered", "no judge")


@dataclass(frozen=True)
class TurnScore:
    """The images of one turn.

    Attributes:
        scores: the benchmark's numbers.
        mean: of the images' own scores, with its 95 % interval (drawn by prompt).
        states: how many images are graded, missing, refused, ...
    """

    turn: int
    scores: dict[str, float]
    mean: Share
    states: dict[str, int]

    @property
    def gaps(self) -> dict[str, int]:
        """Images without a grade, by reason (without those that no judge covers)."""
        return {state: count for state, count in self.states.items() if state not in _NO_GAPS}


@dataclass(frozen=True)
class Result:
    """The content of ``result.json``."""

    benchmark: str
    model: str
    mode: str
    judge: str
    """Labels of the judges."""
    column_judges: dict[str, str]
    """Column -> label of its judge, where a benchmark has several."""
    judge_identity: dict[str, Any]
    prompts: str
    """Label of the prompt set, such as ``original 5c48e081``."""
    prompts_sha256: str
    license: str
    official_skips: bool
    coverage: dict[str, Any]
    """Numbers of prompts in the set, covered by the vocabulary, and judged; images per prompt."""
    turns: list[TurnScore]
    changes: Changes | None
    unit: str
    seconds: float | None
    """Wall-clock time of a request (all its turns) in the batches of the run; None for a folder of images."""
    tokens: float | None
    latency_by_turn: list[float] = field(default_factory=list)
    """Seconds from a turn's start to its end, with other requests running beside it."""
    usage: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    """Tokens and price of all judging so far."""
    run: dict[str, Any] = field(default_factory=dict)
    """Of ``run.json``: settings, seed, fingerprint of the model."""
    options: dict[str, Any] = field(default_factory=dict)
    rubrics_sha256: str = ""
    versions: dict[str, str] = field(default_factory=library_versions)
    irg_version: str = __version__
    schema: int = SCHEMA

    @property
    def complete(self) -> bool:
        """Whether every image that counts has a grade, or counts as wrong because it is missing."""
        return not self.gaps

    @property
    def gaps(self) -> dict[str, int]:
        """Images of the last turn without a grade, by reason (without those that no judge covers)."""
        return self.turns[-1].gaps if self.turns else {}

    def save(self, folder: Path) -> Path:
        path = folder / RESULT_FILE
        files.write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read a result, or the only one below a folder.

        Raises:
            ValueError: there is none, there are several, or it is not what it should be.
        """
        file = _find(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data.get("schema") != SCHEMA:
                raise ValueError(f"schema {data.get('schema')} is not known to this irg ({__version__})")
            turns = [TurnScore(**{**turn, "mean": Share(**turn["mean"])}) for turn in data.pop("turns")]
            change = data.pop("changes")
            if change is not None:
                change = Changes(Share(**change["repair"]), Share(**change["damage"]))
            return cls(turns=turns, changes=change, **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}: not a result of irg bench score: {error}") from error


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob(RESULT_FILE)) or sorted(path.glob(f"scores/*/{RESULT_FILE}"))
    if len(found) != 1:
        what = f"{len(found)} scores ({', '.join(str(one.parent) for one in found)})" if found else "no score"
        raise ValueError(f"{path}: has {what}; run irg bench score first, or name one of them")
    return found[0]


def graded_images(items: Sequence[JudgedImage], turn: int, official_skips: bool) -> list[GradedImage]:
    """The images that count: graded ones, and missing ones as all wrong unless they are skipped."""
    states = ("graded",) if official_skips else ("graded", "missing")
    counted = (one for one in items if one.turn == turn and one.state in states)
    return [GradedImage(one.prompt, one.sample, one.grade) for one in counted]


def turn_score(benchmark: Benchmark, items: Sequence[JudgedImage], turn: int, official_skips: bool) -> TurnScore:
    """Sum up one turn."""
    counted = graded_images(items, turn, official_skips)
    prompts: dict[str, list[float]] = {}
    for one in counted:
        prompts.setdefault(one.prompt.id, []).append(one.score)
    values = [score for scores in prompts.values() for score in scores]
    bounds = bootstrap_interval([(sum(scores), len(scores)) for scores in prompts.values()])
    mean = Share(None, None, None, 0) if bounds is None else Share(float(np.mean(values)), *bounds, len(values))
    states = Counter(one.state for one in items if one.turn == turn)
    return TurnScore(turn, benchmark.summarize(counted), mean, dict(states))


def turn_changes(items: Sequence[JudgedImage], official_skips: bool) -> Changes | None:
    """Repair and damage from the first turn to the last, over images that count in both; None for a single turn."""
    turns = sorted({one.turn for one in items})
    if len(turns) < 2:
        return None
    first, last = (
        {(one.prompt.id, one.sample): one for one in graded_images(items, turn, official_skips)}
        for turn in (turns[0], turns[-1])
    )
    pairs = ((key[0], first[key].grade, last[key].grade) for key in first if key in last)
    return changes([(prompt, _right(before, after), _right(after, before)) for prompt, before, after in pairs])


def _right(grade: Grade | None, other: Grade | None) -> tuple[bool, ...]:
    """What is right in an image; in a missing one everything is wrong that was judged in the other one."""
    return grade.right if grade else (False,) * len(other.right if other else ())


def rubrics_sha256() -> str:
    """Of all texts that judges are prompted with."""
    prompts = judge_prompts
    texts = "\0".join((prompts.WISE, prompts.TIIF, prompts.ONEIG_ALIGNMENT, prompts.READ_TEXT))
    return hashlib.sha256(texts.encode()).hexdigest()
