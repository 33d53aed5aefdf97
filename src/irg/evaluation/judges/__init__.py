"""Judges answer a benchmark's questions about images."""

from irg.evaluation.judges.base import Answer, Job, Judge, JudgeOptions, make_judges

__all__ = ["Answer", "Job", "Judge", "JudgeOptions", "make_judges"]
