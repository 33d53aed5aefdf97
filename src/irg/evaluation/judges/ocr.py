"""Reading text in images with rapidocr, on the CPU."""

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from irg.evaluation.judges.base import Answer, Job, JudgeOptions, pixels_or_failure
from irg.promptsets import BenchPrompt


class OCRJudge:
    """Answers ``ocr``: the lines that are read, from top to bottom, each on a line of its own.

    OneIG's official OCR is a vision-language model; scores from this one are labeled as its own.

    Raises:
        ValueError: rapidocr or its runtime is not installed, or its models can't be had.
    """

    kinds = frozenset({"ocr"})
    label = "rapidocr"

    def __init__(self, engine: Any = None) -> None:
        if engine is None:
            try:
                import onnxruntime  # noqa: F401
                from rapidocr import RapidOCR
            except ImportError as error:
                raise ValueError(f"the judge ocr needs rapidocr ({error}): pip install 'irg[eval]'") from error
            logging.getLogger("RapidOCR").setLevel(logging.WARNING)
            engine = RapidOCR()
        self._engine = engine

    def identity(self) -> dict[str, Any]:
        return {"judge": "rapidocr", "rapidocr": version("rapidocr"), "onnxruntime": version("onnxruntime")}

    def covers(self, prompt: BenchPrompt) -> bool:
        return True

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            image = pixels_or_failure(job)
            if not isinstance(image, Answer):
                pixels_HW3 = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # rapidocr reads arrays as BGR
                image = Answer("\n".join(self._engine(pixels_HW3).txts or ()))
            yield job, image


def make(_: str, __: JudgeOptions) -> OCRJudge:
    """rapidocr on the CPU (OneIG's text)."""
    return OCRJudge()
