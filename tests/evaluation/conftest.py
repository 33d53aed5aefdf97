"""Small prompt sets, images and judges that several tests of this room share."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from irg import promptsets
from irg.evaluation.judges.base import Answer, Job
from irg.promptsets import BenchPrompt, PromptSet


def geneval_file(folder: Path) -> Path:
    """Three GenEval prompts: a cat, two dogs, a red bus."""
    lines = [
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
        {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"},
        {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "red"}], "prompt": "a photo of a red bus"},
    ]
    lines[1]["exclude"] = [{"class": "dog", "count": 3}]
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def geneval_json(tmp_path: Path) -> Path:
    return geneval_file(tmp_path)


@pytest.fixture
def geneval_prompts(tmp_path: Path) -> PromptSet:
    return promptsets.load("geneval", geneval_file(tmp_path))


class FakeJudge:
    """Answers with ``reply(job)``, and remembers its jobs."""

    def __init__(
        self, reply: Callable[[Job], Answer], kinds: Sequence[str] = ("detect",), label: str = "fake", covered: str = ""
    ) -> None:
        self.reply, self.kinds, self.label, self.covered = reply, frozenset(kinds), label, covered
        self.jobs: list[Job] = []

    def identity(self) -> dict[str, Any]:
        return {"judge": "fake", "label": self.label}

    def covers(self, prompt: BenchPrompt) -> bool:
        return self.covered in prompt.text

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            self.jobs.append(job)
            yield job, self.reply(job)


@pytest.fixture
def fake_judge() -> type[FakeJudge]:
    return FakeJudge
