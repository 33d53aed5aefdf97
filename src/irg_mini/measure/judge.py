"""The mini world's own detector as GenEval's: for models that draw that world, and for nothing else."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irg.evaluation.judges import JudgeOptions
from irg.evaluation.judges.base import Answer, Job, pixels_or_failure
from irg.promptsets import BenchPrompt
from irg.version import __version__
from irg_mini.world.detector import BUNDLED, Detector

DEFAULT = BUNDLED / "eval-detector"
LOWEST = 0.05
"""Boxes less sure than this are not even written down; GenEval's rules begin at 0.3."""
_COLORLESS = "none"


class MiniJudge:
    """Answers ``detect`` with the detector in ``folder`` (default: the bundled one)."""

    kinds = frozenset({"detect"})

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or DEFAULT
        self.label = "mini detector" if folder is None else f"mini detector ({folder.name})"
        self._detector = Detector.load(self.folder)
        self._names = frozenset(self._detector.config.names)

    def identity(self) -> dict[str, Any]:
        weights = hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()
        return {"judge": "mini", "weights_sha256": weights, "irg": __version__}

    def covers(self, prompt: BenchPrompt) -> bool:
        clauses = [*prompt.metadata.get("include", ()), *prompt.metadata.get("exclude", ())]
        return all(clause["class"] in self._names for clause in clauses)

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            image = pixels_or_failure(job)
            if isinstance(image, Answer):
                yield job, image
                continue
            boxes: dict[str, list[list[float]]] = {}
            colors: dict[str, list[str]] = {}
            for seen in self._detector.detect(np.asarray(image)[None], threshold=LOWEST)[0]:
                boxes.setdefault(seen.name, []).append([*(round(v, 2) for v in seen.box), round(seen.score, 4)])
                colors.setdefault(seen.name, []).append(seen.color or _COLORLESS)
            yield job, Answer({"boxes": boxes, "colors": colors})


def make(rest: str, options: JudgeOptions) -> MiniJudge:
    """The mini world's own detector (GenEval); mini:FOLDER for another one."""
    return MiniJudge(Path(rest) if rest else None)
