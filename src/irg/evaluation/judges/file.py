"""Answers that were computed elsewhere: by a judge that needs an environment of its own, or by official scripts.

A file of JSON lines. The first names the judge, each of the others is one answer:

    {"judge": "CLIP-FlanT5-XXL (t2v_metrics 1.2)"}
    {"prompt": "00000", "kind": "yes", "value": 0.83}

``sample`` (from 0), ``turn`` (from 1) and ``name`` restrict a line; without them it applies to all.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from irg import files
from irg.evaluation.judges.base import Answer, Job, JudgeOptions, require_rest
from irg.promptsets import BenchPrompt

_FIELDS = ("kind", "prompt", "name", "sample", "turn")
_Key = tuple[Any, ...]


class FileJudge:
    """Looks answers up in a file."""

    def __init__(self, label: str, answers: dict[_Key, Any], sha256: str) -> None:
        self.label, self._answers, self._sha256 = label, answers, sha256
        self.kinds = frozenset(key[0] for key in answers)

    @classmethod
    def load(cls, path: Path) -> "FileJudge":
        """Read the file.

        Raises:
            ValueError: it can't be read or a line is not what it should be.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        entries = files.read_json_lines(path)
        if not entries or not isinstance(entries[0].get("judge"), str):
            raise ValueError(f'{path}: the first line must name the judge: {{"judge": "..."}}')
        answers: dict[_Key, Any] = {}
        for number, entry in enumerate(entries[1:], start=2):
            if set(entry) - {*_FIELDS, "value"} or not {"prompt", "kind", "value"} <= set(entry):
                raise ValueError(
                    f"{path}, line {number}: expected the fields prompt, kind, value, and perhaps {_FIELDS[2:]}"
                )
            answers[tuple(entry.get(field) for field in _FIELDS)] = entry["value"]
        return cls(entries[0]["judge"], answers, hashlib.sha256(path.read_bytes()).hexdigest())

    def identity(self) -> dict[str, Any]:
        return {"judge": "file", "label": self.label, "sha256": self._sha256}

    def covers(self, prompt: BenchPrompt) -> bool:
        return True

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            for key in _keys_by_specificity(job):
                if key in self._answers:
                    yield job, Answer(self._answers[key])
                    break
            else:
                yield job, Answer(None, "outage", "the file has no answer for it")


def _keys_by_specificity(job: Job) -> Iterator[_Key]:
    for turn in (job.turn, None):
        for sample in (job.sample, None):
            for name in (job.question.name, None):
                yield job.question.kind, job.prompt.id, name, sample, turn


def make(rest: str, _: JudgeOptions) -> FileJudge:
    """file:PATH, answers computed elsewhere."""
    return FileJudge.load(Path(require_rest("file", rest, "PATH")))
