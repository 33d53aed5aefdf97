"""Judges: whoever looks at an image and answers a benchmark's questions. Heavy ones are imported when asked for."""

from irg.evaluation.judges.base import Answer, Job, Judge
from irg.evaluation.judges.make import JudgeOptions, make_judges

__all__ = ["Answer", "Job", "Judge", "JudgeOptions", "make_judges"]
