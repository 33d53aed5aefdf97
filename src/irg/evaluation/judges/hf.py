"""Vision-language models of the transformers library as judges, on this machine: chat, and VQAScore as P("Yes")."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from irg.critics.vision_language import VisionLanguageModel
from irg.endpoints import EndpointError
from irg.evaluation.judges.base import Answer, Job, JudgeOptions, check_text, pixels_or_failure, require_rest
from irg.model.weights.fingerprint import weights_fingerprint
from irg.promptsets import BenchPrompt

_MAX_TOKENS = 1024


def _pins(loaded: VisionLanguageModel) -> dict[str, Any]:
    """What was loaded: a folder's fingerprint, or the hub's commit."""
    pins = {
        "model": loaded.name,
        "dtype": str(loaded.model.dtype),
        "transformers": version("transformers"),
        "torch": torch.__version__,
    }
    folder = Path(loaded.name)
    if folder.is_dir():
        return pins | {"fingerprint": weights_fingerprint(folder)}
    return pins | {"revision": getattr(loaded.model.config, "_commit_hash", None)}


class VisionLanguageJudge:
    """Answers ``chat``, ``ocr`` and ``yes`` with a local vision-language model.

    An answer that fails its check is sent back with the error, ``corrections`` times at most.
    """

    kinds = frozenset({"chat", "ocr", "yes"})

    def __init__(self, model: VisionLanguageModel, corrections: int = 2) -> None:
        self._model, self._corrections = model, corrections
        self.label = model.name.rstrip("/").rsplit("/", 1)[-1]

    @classmethod
    def load(cls, name: str, device: str | None = None, corrections: int = 2) -> "VisionLanguageJudge":
        """Load a model by its name on the hub, or from a folder.

        Raises:
            ValueError: transformers is not installed, or the model can't be loaded.
        """
        return cls(VisionLanguageModel.load(name, device), corrections)

    def identity(self) -> dict[str, Any]:
        return {"judge": "hf", **_pins(self._model)}

    def covers(self, prompt: BenchPrompt) -> bool:
        return True

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            image = pixels_or_failure(job)
            yield job, image if isinstance(image, Answer) else self._answer(job, image)

    def _answer(self, job: Job, image: Any) -> Answer:
        if job.question.kind == "yes":
            return Answer(self._model.yes(image, job.question.text))
        texts: list[str] = []

        def check(text: str) -> None:
            texts.append(text)
            check_text(job, text)

        try:
            text, _ = self._model.ask(image, job.question.text, check, self._corrections, _MAX_TOKENS)
        except EndpointError as error:
            return Answer(texts or None, error.kind, str(error))
        return Answer("" if job.question.kind == "ocr" and text == "[]" else text)


class VQAScoreJudge:
    """Answers ``yes`` only: VQAScore on any vision-language model, labeled with its name."""

    kinds = frozenset({"yes"})

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        self.label = f'VQAScore P("Yes") of {model.name.rstrip("/").rsplit("/", 1)[-1]}'

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "VQAScoreJudge":
        """As :meth:`VisionLanguageJudge.load`."""
        return cls(VisionLanguageModel.load(name, device))

    def identity(self) -> dict[str, Any]:
        return {"judge": "vqascore", **_pins(self._model)}

    def covers(self, prompt: BenchPrompt) -> bool:
        return True

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            image = pixels_or_failure(job)
            if isinstance(image, Answer):
                yield job, image
            else:
                yield job, Answer(self._model.yes(image, job.question.text))


def make(rest: str, options: JudgeOptions) -> VisionLanguageJudge:
    """hf:MODEL, a vision-language model of the hub, or a folder."""
    return VisionLanguageJudge.load(require_rest("hf", rest, "MODEL"), options.device, options.corrections)


def make_vqascore(rest: str, options: JudgeOptions) -> VQAScoreJudge:
    """vqascore:MODEL, P("Yes") on such a model (GenAI-Bench)."""
    return VQAScoreJudge.load(require_rest("vqascore", rest, "MODEL"), options.device)
