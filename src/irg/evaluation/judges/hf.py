"""Vision-language models of the transformers library as judges, on this machine: chat, and VQAScore as P("Yes")."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from irg.evaluation.judges.base import Answer, Job, pixels_or_failure
from irg.evaluation.runs import fingerprint
from irg.promptsets import BenchPrompt

_MAX_TOKENS = 1024
_SPELLINGS = ("Yes", "yes", "YES", " Yes", " yes", " YES")


class _Model:
    """A model with its processor, asked about one image at a time, greedily."""

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

    def _inputs(self, image: Any, talk: list[dict[str, Any]]) -> Any:
        content = [{"type": "image", "image": image}, {"type": "text", "text": talk[0]["text"]}]
        messages = [{"role": "user", "content": content}]
        messages += [{"role": turn["role"], "content": [{"type": "text", "text": turn["text"]}]} for turn in talk[1:]]
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def say(self, image: Any, talk: list[dict[str, Any]], max_tokens: int = _MAX_TOKENS) -> str:
        inputs = self._inputs(image, talk)
        ids = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(new_ids, skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def yes(self, image: Any, question: str) -> float:
        """P("Yes") as the first token of the answer: the sum over the spellings that are one token."""
        logits_V = self.model(**self._inputs(image, [{"text": question}])).logits[0, -1].float()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in _SPELLINGS]
        ids = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not ids:
            raise ValueError(f"{self.name}: its tokenizer has no single token for Yes")
        return float(torch.softmax(logits_V, dim=-1)[ids].sum())


def _pins(name: str, model: Any) -> dict[str, Any]:
    """What was loaded: a folder's fingerprint, or the hub's commit."""
    told = {
        "model": name,
        "dtype": str(model.dtype),
        "transformers": version("transformers"),
        "torch": torch.__version__,
    }
    folder = Path(name)
    if folder.is_dir():
        return told | {"fingerprint": fingerprint(folder)}
    return told | {"revision": getattr(model.config, "_commit_hash", None)}


class VisionLanguageJudge:
    """Answers ``chat``, ``ocr`` and ``yes`` with a local vision-language model.

    An answer that fails its check is asked again with the complaint, ``corrections`` times at most.
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
        if job.ask.kind == "yes":
            return Answer(self._model.yes(image, job.ask.text))
        talk: list[dict[str, Any]] = [{"role": "user", "text": job.ask.text}]
        said: list[str] = []
        complaint = ""
        for _ in range(self._corrections + 1):
            said.append(self._model.say(image, talk))
            try:
                if job.ask.check is not None:
                    job.ask.check(said[-1])
            except ValueError as error:
                complaint = str(error)
                talk.append({"role": "assistant", "text": said[-1]})
                talk.append({"role": "user", "text": f"That can't be used: {complaint}. Answer again, as asked for."})
                continue
            return Answer("" if job.ask.kind == "ocr" and said[-1] == "[]" else said[-1])
        return Answer(said, "bad_answer", complaint)


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
                yield job, Answer(self._model.yes(image, job.ask.text))
