"""Vision-language models of the transformers library on this machine: they answer questions about an image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from irg.endpoints import CUT_OFF, EndpointError, without_monologue
from irg.hub_downloads import only_cached

_SPELLINGS = ("Yes", "yes", "YES", " Yes", " yes", " YES")


class VisionLanguageModel:
    """A model with its processor: one image at a time."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "VisionLanguageModel":
        """Load a model by its name on the hub, or from a folder; default device: cuda if there is one.

        Raises:
            ValueError: transformers is not installed, or the model can't be loaded.
        """
        if "/" not in name and not Path(name).is_dir():
            raise ValueError(f"{name}: neither a folder that is here nor a hub id (owner/name)")
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ValueError(f"{name}: needs transformers ({error}): pip install 'irg[eval]'") from error
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        cached = only_cached(name)
        try:
            processor = AutoProcessor.from_pretrained(name, local_files_only=cached)
            # safetensors only: a pickled checkpoint could run code
            model = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, use_safetensors=True, local_files_only=cached
            ).to(where)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ValueError(f"{name}: can't be loaded as a vision-language model: {error}") from error
        return cls(model, processor, name)

    @torch.inference_mode()
    def chat(
        self, image: Any, messages: list[dict[str, Any]], max_tokens: int, temperature: float = 0.0
    ) -> tuple[str, bool]:
        """(the answer, whether the model ended it itself). ``messages``: ``{"role": ..., "text": ...}``; the image goes
        with the first."""
        inputs = self._inputs(image, messages)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        ids = self.model.generate(**inputs, max_new_tokens=max_tokens, **sampling)
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        whole = len(new_ids) < max_tokens or int(new_ids[-1]) in self._ends()
        return str(self.processor.decode(new_ids, skip_special_tokens=True)).strip(), whole

    def ask(
        self,
        image: Any,
        question: str,
        check: Callable[[str], Any],
        corrections: int,
        max_tokens: int,
        temperature: float = 0.0,
    ) -> tuple[str, Any]:
        """(the answer, what ``check`` made of it); an answer that fails its check is sent back with the complaint,
        ``corrections`` times at most.

        Raises:
            EndpointError: of kind ``bad_answer``: no answer passed.
        """
        messages: list[dict[str, Any]] = [{"role": "user", "text": question}]
        problems: list[str] = []
        for _ in range(corrections + 1):
            said, whole = self.chat(image, messages, max_tokens, temperature)
            try:
                if not whole:
                    raise ValueError(CUT_OFF)
                text = without_monologue(said)
                return text, check(text)
            except ValueError as error:
                problems.append(str(error))
                messages.append({"role": "assistant", "text": said})
                messages.append({"role": "user", "text": f"That can't be used: {error}. Answer again, as asked for."})
        raise EndpointError("bad_answer", "; then: ".join(dict.fromkeys(problems)))

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

    def _inputs(self, image: Any, messages: list[dict[str, Any]]) -> Any:
        chat = [{"role": one["role"], "content": [{"type": "text", "text": one["text"]}]} for one in messages]
        chat[0]["content"].insert(0, {"type": "image", "image": image})
        return self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device, dtype=self.model.dtype)

    def _ends(self) -> set[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}
