"""Judges of benchmarks as rewards of training recipes (``docs/rl.md``): ``geneval``, ``ocr`` and ``vqa``."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from irg.evaluation.benchmarks import geneval, oneig
from irg.evaluation.benchmarks.base import Question
from irg.evaluation.benchmarks.genai_bench import QUESTION
from irg.evaluation.benchmarks.geneval_rules import COUNTING_SCORE_ABOVE
from irg.evaluation.benchmarks.judge_prompts import READ_TEXT
from irg.evaluation.benchmarks.text_distance import require_libraries
from irg.evaluation.image_folders import ImageFile
from irg.evaluation.judges.base import Answer, Job, Judge, JudgeOptions, make_judges
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Score
from irg.promptsets import BenchPrompt
from irg.results.trajectory import Trajectory

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


@dataclass(frozen=True)
class JudgeReward(JudgeOptions):
    """What a judge says of a trajectory's image. The judge's own options are this reward's.

    Attributes:
        judge: as ``irg bench score --judge`` names it.
    """

    judge: str = ""

    def prepare(self) -> None:
        """Load the judge, so that a run without it ends before it begins.

        Raises:
            ValueError: there is no such judge, it lacks something, or it does not answer such questions.
        """
        _ = self._judge

    @cached_property
    def _judge(self) -> Judge:
        (judge,) = make_judges([self.judge], self)
        kind = self.question(Prompt("")).kind
        if kind not in judge.kinds:
            raise ValueError(f"judge {self.judge}: it answers {', '.join(sorted(judge.kinds))}, not {kind}")
        return judge

    def question(self, prompt: Prompt) -> Question:
        """What the judge is asked about an image of a prompt."""
        raise NotImplementedError

    def grade(self, prompt: Prompt, raw: Any) -> Score:
        """What its answer is worth.

        Raises:
            ValueError: the prompt's truth lacks something.
        """
        raise NotImplementedError

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        (score,) = self.scores([prompt], [trajectory])
        if isinstance(score, Exception):
            raise score
        return score

    def scores(self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Score | Exception]:
        """All scores of a step, asked for together; an exception in the place of one that failed."""
        found: list[Score | Exception] = [ValueError("there is no image")] * len(prompts)
        with tempfile.TemporaryDirectory() as folder:
            jobs = []
            for number, (prompt, trajectory) in enumerate(zip(prompts, trajectories, strict=True)):
                if trajectory.image is not None:
                    path = Path(folder) / f"{number}.png"
                    trajectory.image.save(path)
                    shown = BenchPrompt(str(number), prompt.text, prompt.truth.get("tag", ""), prompt.truth)
                    if not self._judge.covers(shown):
                        found[number] = ValueError(f"{self.judge}: it can't judge images of {prompt.text[:60]!r}")
                        continue
                    turn = max(1, len(trajectory.images))
                    jobs.append(Job(shown, number, turn, ImageFile(path), self.question(prompt)))
            for job, answer in self._judge.answers(jobs):
                found[job.sample] = self._graded(prompts[job.sample], answer)
        return found

    def _graded(self, prompt: Prompt, answer: Answer) -> Score | Exception:
        if answer.failure is not None:
            return ValueError(f"{self.judge}: {answer.message or answer.failure}")
        try:
            return self.grade(prompt, answer.raw)
        except (ValueError, KeyError) as error:
            return ValueError(f"{self.judge}: {error}")


@dataclass(frozen=True)
class GenEvalReward(JudgeReward):
    """1 for an image that GenEval's rules accept, else 0, or with ``partial`` the share of their clauses that it meets.
    ``prompt.truth`` is a line of GenEval's metadata: ``tag``, ``include``, perhaps ``exclude``."""

    judge: str = "geneval"
    partial: bool = False
    counting_above: float = COUNTING_SCORE_ABOVE

    def question(self, prompt: Prompt) -> Question:
        return Question("detect", "objects")

    def grade(self, prompt: Prompt, raw: Any) -> Score:
        clauses = len(prompt.truth.get("include", ())) + len(prompt.truth.get("exclude", ()))
        if not clauses:
            raise ValueError("the prompt has no GenEval metadata (include, exclude)")
        verdict = geneval.judge(prompt.truth, raw["boxes"], raw.get("colors"), self.counting_above)
        met = 1 - len(verdict.reason.splitlines()) / clauses
        return Score(met if self.partial else float(verdict.correct), {"correct": verdict.correct}, verdict.reason)


@dataclass(frozen=True)
class OCRReward(JudgeReward):
    """How near what is read in the image is to the text that it should show: 1 - edit distance / length of the text, at
    least 0. The text is ``text_content`` of ``prompt.truth`` (a list, as OneIG-Bench has it), else what the prompt has
    in double quotes."""

    judge: str = "ocr"

    def prepare(self) -> None:
        require_libraries()
        super().prepare()

    def question(self, prompt: Prompt) -> Question:
        return Question("ocr", "text", READ_TEXT)

    def grade(self, prompt: Prompt, raw: Any) -> Score:
        quoted = [a or b for a, b in _QUOTED.findall(prompt.text)]
        expected = prompt.truth.get("text_content") or quoted
        length = len(oneig.clean_text(" ".join(expected)))
        if not length:
            raise ValueError("the prompt says no text: neither text_content nor anything in double quotes")
        match = oneig.text_match(expected, str(raw))
        return Score(max(0.0, 1 - match.distance / length), {"right": match.right}, f"read: {str(raw)[:200]}")


@dataclass(frozen=True)
class VQAReward(JudgeReward):
    """The chance that a vision-language model answers yes (VQAScore): ``openai:MODEL`` at ``url``, ``hf:MODEL`` or
    ``vqascore:MODEL`` on this machine. ``question_text`` has ``{prompt}`` in it."""

    question_text: str = QUESTION

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.judge:
            raise ValueError("judge must name one that says yes or no: openai:MODEL, hf:MODEL or vqascore:MODEL")

    def question(self, prompt: Prompt) -> Question:
        return Question("yes", "vqa", self.question_text.replace("{prompt}", prompt.text))

    def grade(self, prompt: Prompt, raw: Any) -> Score:
        return Score(float(raw))
