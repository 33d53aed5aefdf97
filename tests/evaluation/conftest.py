"""Small prompt sets, images and judges that several tests of this room share."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench_images import flat, images

from irg import promptsets
from irg.evaluation.generation import save_sample
from irg.evaluation.judges.base import Answer, Job
from irg.evaluation.runs import Sample, new_run, open_run
from irg.evaluation.scoring import ScoreRequest
from irg.promptsets import BenchPrompt, PromptSet
from irg.reasoning.settings import Settings
from irg.results.trajectory import Trajectory, Turn


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


@pytest.fixture
def request_(geneval_prompts, geneval_json, tmp_path):
    """A folder of images, one for each prompt and sample, and the request to score it."""
    folder = images(tmp_path / "images", geneval_prompts.prompts)
    return ScoreRequest("geneval", folder, out=tmp_path / "scores", prompts=str(geneval_json))


@pytest.fixture
def run(geneval_prompts, geneval_json, tmp_path):
    """A run of two turns: the cat is repaired, the dogs are damaged, the bus stays."""
    facts = {"covered_by": None, "covered": 3, "model": "m", "model_fingerprint": "", "model_name": "m", "seed": 0}
    info = new_run(geneval_prompts, geneval_prompts.prompts, 1, mode="irg", settings=Settings().to_dict(), **facts)
    folder = tmp_path / "run"
    open_run(folder, info, resume=False)
    for prompt, values in zip(geneval_prompts.prompts, ((10, 11), (13, 14), (15, 17)), strict=True):
        turns = [
            Turn("<think>first & foremost</think>", flat(values[0]), seconds={"drawing": 1.0}, tokens=5),
            Turn("better", flat(values[1]), seconds={"drawing": 2.0}, tokens=3),
        ]
        save_sample(folder, info, Sample(prompt, 0), Trajectory(prompt.text, "irg", 0, "m", {}, turns))
    (folder / "sessions.jsonl").write_text('{"images": 1, "seconds": 3.5}\n{"images": 2, "seconds": 4.0}\n')
    return ScoreRequest("geneval", folder, prompts=str(geneval_json))
