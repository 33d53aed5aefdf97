"""``result.json``: numbers per turn, what changed since the first, which judge saw which prompts, what is missing.

Turn k + 1 is the image that stands after at most k edits: where a request stopped early, its last image.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from irg import files
from irg.evaluation.benchmarks import judge_prompts
from irg.evaluation.benchmarks.base import Benchmark, Grade, GradedImage
from irg.evaluation.judges.base import Failure
from irg.evaluation.judging import JudgedImage
from irg.evaluation.statistics import Changes, Estimate, mean_difference, repair_and_damage, share
from irg.text_files import parse_json, read_text
from irg.version import __version__, library_versions

SCHEMA = 2
RESULT_FILE = "result.json"
_NO_GAPS = ("graded", "not covered", "no judge")


@dataclass(frozen=True)
class TurnScore:
    """The images of one turn.

    Attributes:
        scores: the benchmark's numbers.
        mean: of the images' own scores.
        states: how many images are graded, missing, refused, ...
        changes: since the first image; None in the first turn, and where the first was not scored.
        images_per_request: how many images a request has drawn up to this turn, on average; None for a folder of
            images.
    """

    turn: int
    scores: dict[str, float]
    mean: Estimate
    states: dict[str, int]
    changes: Changes | None = None
    images_per_request: float | None = None

    @property
    def edits(self) -> int:
        """The edit budget: at most so many edits have been made."""
        return self.turn - 1

    @property
    def gaps(self) -> dict[str, int]:
        """Images without a grade, by reason (without those that no judge covers)."""
        return {state: count for state, count in self.states.items() if state not in _NO_GAPS}

    @property
    def unjudged(self) -> int:
        """Images that are there and that the judge has failed on."""
        return sum(count for state, count in self.gaps.items() if state in get_args(Failure))


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
    def changes(self) -> Changes | None:
        """From the first image to the last; None for a single turn."""
        return self.turns[-1].changes if self.turns else None

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
            data = parse_json(read_text(file))
            if data.get("schema") == 1:
                _upgrade(data)
            if data.get("schema") != SCHEMA:
                raise ValueError(f"schema {data.get('schema')} is not known to this irg ({__version__})")
            turns = [_turn_score(turn) for turn in data.pop("turns")]
            return cls(turns=turns, **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}: not a result of irg bench score: {error}") from error


def _turn_score(data: dict[str, Any]) -> TurnScore:
    changes = data["changes"]
    if changes is not None:
        changes = Changes(**{name: Estimate(**value) for name, value in changes.items()})
    return TurnScore(**{**data, "mean": Estimate(**data["mean"]), "changes": changes})


def _upgrade(data: dict[str, Any]) -> None:
    """Schema 1 had the changes of the last turn only, without the score's."""
    changes = data.pop("changes")
    for turn in data["turns"]:
        turn["changes"] = None
    if changes is not None:
        data["turns"][-1]["changes"] = changes | {"score": asdict(Estimate(None, None, None, 0))}
    data["schema"] = SCHEMA


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


def turn_scores(
    benchmark: Benchmark,
    items: Sequence[JudgedImage],
    turns: Sequence[int],
    official_skips: bool,
    images_per_request: Sequence[float] = (),
) -> list[TurnScore]:
    """Sum up some turns, each compared with the first one if that is among them.

    Args:
        turns: their numbers, ascending.
        images_per_request: by turn, from turn 1 on; empty for a folder of images.
    """
    counted = {turn: graded_images(items, turn, official_skips) for turn in turns}
    made = []
    for turn in turns:
        prompts: dict[str, list[float]] = {}
        for one in counted[turn]:
            prompts.setdefault(one.prompt.id, []).append(one.score)
        made.append(
            TurnScore(
                turn,
                benchmark.summarize(counted[turn]),
                share([(sum(scores), len(scores)) for scores in prompts.values()]),
                dict(Counter(one.state for one in items if one.turn == turn)),
                _changes(counted[1], counted[turn]) if turn > 1 and 1 in counted else None,
                images_per_request[turn - 1] if images_per_request else None,
            )
        )
    return made


def _changes(before: Sequence[GradedImage], after: Sequence[GradedImage]) -> Changes:
    """Over the images that count in both turns."""
    first, later = ({(one.prompt.id, one.sample): one for one in images} for images in (before, after))
    both = [key for key in first if key in later]
    right = (
        (key[0], _right(first[key].grade, later[key].grade), _right(later[key].grade, first[key].grade)) for key in both
    )
    scores = ((key[0], first[key].score, later[key].score) for key in both)
    return Changes(*repair_and_damage(right), mean_difference(scores))


def _right(grade: Grade | None, other: Grade | None) -> tuple[bool, ...]:
    """What is right in an image; in a missing one everything is wrong that was judged in the other one."""
    return grade.right if grade else (False,) * len(other.right if other else ())


def rubrics_sha256() -> str:
    """Of all texts that judges are prompted with."""
    prompts = judge_prompts
    texts = "\0".join((prompts.WISE, prompts.TIIF, prompts.ONEIG_ALIGNMENT, prompts.READ_TEXT))
    return hashlib.sha256(texts.encode()).hexdigest()
