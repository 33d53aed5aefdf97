"""Vision-language models of the transformers library as judges, on this machine: chat, and VQAScore as P("Yes")."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from irg.evaluation.judges.base import Answer, Job, JudgeOptions, pixels_or_failure, require_rest
from irg.evaluation.runs import weights_fingerprint
from irg.promptsets import BenchPrompt

_MAX_TOKENS = 1024
_SPELLINGS = ("Yes", "yes", "YES", " Yes", " yes", " YES")


class _Model:
    """A model with its processor: one image at a time, greedy decoding."""

    def __init__(self, model: Any, processor: Any, name: str, pins: dict[str, Any]) -> None:
        self.model, self.processor, self.name, self.pins = model.eval(), processor, name, pins

    @classmethod
    def load(cls, name: str, device: str | None) -> "_Model":
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ValueError(f"the judge hf needs transformers ({error}): pip install 'irg[eval]'") from error
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        try:
            processor = AutoProcessor.from_pretrained(name)
            # safetensors only: a pickled checkpoint could run code
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, use_safetensors=True).to(where)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ValueError(f"{name}: can't be loaded as a vision-language model: {error}") from error
        return cls(model, processor, name, _pins(name, model))

    def _inputs(self, image: Any, messages: list[dict[str, Any]]) -> Any:
        chat = [{"role": one["role"], "content": [{"type": "text", "text": one["text"]}]} for one in messages]
        chat[0]["content"].insert(0, {"type": "image", "image": image})
        return self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def chat(self, image: Any, messages: list[dict[str, Any]], max_tokens: int = _MAX_TOKENS) -> str:
        inputs = self._inputs(image, messages)
        ids = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(new_ids, skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def yes(self, image: Any, question: str) -> float:
        """P("Yes") as the first token of the answer: the sum over the spellings that are one token."""
        logits_V = self.model(**self._inputs(image, [{"role": "user", "text": question}])).logits[0, -1].float()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in _SPELLINGS]
        ids = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not ids:
            raise ValueError(f"{self.name}: its tokenizer has no single token for Yes")
        return float(torch.softmax(logits_V, dim=-1)[ids].sum())


def _pins(name: str, model: Any) -> dict[str, Any]:
    """What was loaded: a folder's fingerprint, or the hub's commit."""
    pins = {
        "model": name,
        "dtype": str(model.dtype),
        "transformers": version("transformers"),
        "torch": torch.__version__,
    }
    folder = Path(name)
    if folder.is_dir():
        return pins | {"fingerprint": weights_fingerprint(folder)}
    return pins | {"revision": getattr(model.config, "_commit_hash", None)}


class VisionLanguageJudge:
    """Answers ``chat``, ``ocr`` and ``yes`` with a local vision-language model.

    An answer that fails its check is sent back with the error, ``corrections`` times at most.
    """

    kinds = frozenset({"chat", "ocr", "yes"})

    def __init__(self, model: _Model, corrections: int = 2) -> None:
        self._model, self._corrections = model, corrections
        self.label = model.name.rstrip("/").rsplit("/", 1)[-1]

    @classmethod
    def load(cls, name: str, device: str | None = None, corrections: int = 2) -> "VisionLanguageJudge":
        """Load a model by its name on the hub, or from a folder.

        Raises:
            ValueError: transformers is not installed, or the model can't be loaded.
        """
        return cls(_Model.load(name, device), corrections)

    def identity(self) -> dict[str, Any]:
        return {"judge": "hf", **self._model.pins}

    def covers(self, prompt: BenchPrompt) -> bool:
        return True

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            image = pixels_or_failure(job)
            yield job, image if isinstance(image, Answer) else self._answer(job, image)

    def _answer(self, job: Job, image: Any) -> Answer:
        if job.question.kind == "yes":
            return Answer(self._model.yes(image, job.question.text))
        messages: list[dict[str, Any]] = [{"role": "user", "text": job.question.text}]
        texts: list[str] = []
        problem = ""
        for _ in range(self._corrections + 1):
            texts.append(self._model.chat(image, messages))
            try:
                if job.question.check is not None:
                    job.question.check(texts[-1])
            except ValueError as error:
                problem = str(error)
                messages.append({"role": "assistant", "text": texts[-1]})
                messages.append({"role": "user", "text": f"That can't be used: {problem}. Answer again, as asked for."})
                continue
            return Answer("" if job.question.kind == "ocr" and texts[-1] == "[]" else texts[-1])
        return Answer(texts, "bad_answer", problem)


class VQAScoreJudge:
    """Answers ``yes`` only: VQAScore on any vision-language model, labeled with its name."""

    kinds = frozenset({"yes"})

    def __init__(self, model: _Model) -> None:
        self._model = model
        self.label = f'VQAScore P("Yes") of {model.name.rstrip("/").rsplit("/", 1)[-1]}'

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "VQAScoreJudge":
        """As :meth:`VisionLanguageJudge.load`."""
        return cls(_Model.load(name, device))

    def identity(self) -> dict[str, Any]:
        return {"judge": "vqascore", **self._model.pins}

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
