"""A judge as a critic: ``judge:SPEC``, where SPEC names a judge of benchmarks, scores images in a search."""

import tempfile
from dataclasses import fields
from pathlib import Path

from irg.critics import CriticError, CriticOptions, Review, Verdict, WorkerCritic
from irg.endpoints import EndpointOptions
from irg.evaluation.benchmarks.base import Question
from irg.evaluation.benchmarks.genai_bench import QUESTION
from irg.evaluation.image_folders import ImageFile
from irg.evaluation.judges.base import Job, Judge, JudgeOptions, make_judges, require_rest
from irg.promptsets import BenchPrompt

_DONE_ABOVE = 0.5


class JudgeCritic(WorkerCritic):
    """Scores an image by the chance that a judge answers yes when it is asked whether it shows the prompt (VQAScore).

    It can't say what is wrong, so it serves for choosing rather than for reflecting.
    """

    def __init__(self, judge: Judge, spec: str) -> None:
        super().__init__(f"judge:{spec}")
        self._judge = judge

    def judge(self, review: Review) -> Verdict:
        """See :meth:`WorkerCritic.judge`."""
        question = Question("yes", "vqascore", QUESTION.format(prompt=review.prompt))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            review.image.save(path)
            job = Job(BenchPrompt("", review.prompt, ""), 0, review.turn, ImageFile(path), question)
            ((_, answer),) = self._judge.answers([job])
        if answer.failure is not None:
            kind = "bad_answer" if answer.failure == "unreadable" else answer.failure
            raise CriticError(kind, f"{self.name}: {answer.message or answer.failure}")
        score = float(answer.raw)
        if score > _DONE_ABOVE:
            return Verdict("", "", True, score, cost=answer.cost, cached=answer.cached)
        wrong = "the judge does not see what the prompt asks for"
        return Verdict(wrong, f"show: {review.prompt}", False, score, cost=answer.cost, cached=answer.cached)


def make(rest: str, options: CriticOptions) -> JudgeCritic:
    """judge:SPEC, a judge of benchmarks that answers yes or no (openai:MODEL, hf:MODEL, vqascore:MODEL)."""
    spec = require_rest("judge", rest, "SPEC")
    shared = {one.name: getattr(options, one.name) for one in fields(EndpointOptions)}
    shared |= {"cache_dir": options.cache_dir, "device": options.device}
    (judge,) = make_judges([spec], JudgeOptions(**shared))
    if "yes" not in judge.kinds:
        raise ValueError(
            f"the judge {spec!r} can't say how likely an image shows a prompt; openai, hf and vqascore can"
        )
    return JudgeCritic(judge, spec)
