"""Judges by name, as they are given on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from irg import registry
from irg.evaluation.judges.base import Judge
from irg.recipes import choose


@dataclass(frozen=True)
class JudgeOptions:
    """How judges work; most belong to one kind of judge."""

    url: str = "https://api.openai.com/v1"
    """For openai: the address of the API."""
    api_key_env: str | None = None
    """For openai: the environment variable with the key (default: OPENAI_API_KEY where it is set)."""
    concurrency: int = 8
    """For openai: calls at once."""
    requests_per_minute: float | None = None
    """For openai: at most so many calls."""
    timeout_s: float = 300.0
    """For openai: of one call."""
    attempts: int = 6
    """For openai: tries of a call while the server is overloaded or broken."""
    corrections: int = 2
    """How often an answer that can't be used is asked for again."""
    longest_wait_s: float = 60.0
    """For openai: of the growing pauses between tries."""
    price_in: float = 0.0
    """For openai: price of a million prompt tokens, for the total."""
    price_out: float = 0.0
    """For openai: price of a million answer tokens."""
    cache_dir: str | None = None
    """For openai: where answers are kept (default: judge-answers in $IRG_CACHE, else in ~/.cache/irg)."""
    no_self_test: bool = False
    """For geneval: judge even when the detector fails on images whose content is known; the label says so."""
    device: str | None = None
    """For local models (default: cuda if there is one)."""


_KINDS = {
    "geneval": "geneval[:FOLDER]     Mask2Former and CLIP of the Hugging Face hub, or in FOLDER (GenEval)",
    "openai": "openai:MODEL         any OpenAI-compatible endpoint (--url)",
    "hf": "hf:MODEL             a vision-language model of the hub, or a folder",
    "vqascore": 'vqascore:MODEL       P("Yes") on such a model (GenAI-Bench)',
    "ocr": "ocr                  rapidocr on the CPU (OneIG's text)",
    "file": "file:PATH            answers computed elsewhere",
}


def make_judges(specs: Sequence[str], options: JudgeOptions) -> list[Judge]:
    """The judges of a list such as ``["openai:gpt-4o", "ocr"]``; a question goes to the first that answers its kind.

    Raises:
        ValueError: there is no such judge, or something that it needs is missing.
    """
    if not specs:
        raise ValueError("a judge is needed: --judge with one or several of\n  " + "\n  ".join(_told()))
    return [_make(spec, options) for spec in specs]


def _told() -> list[str]:
    """A line for each judge there is, plug-ins last."""
    plugged = [name for name in registry.names(registry.JUDGES) if name not in _KINDS]
    return [*_KINDS.values(), *(f"{name:20} {registry.summary(registry.JUDGES, name)}" for name in plugged)]


def _make(spec: str, options: JudgeOptions) -> Judge:
    name, _, rest = spec.partition(":")
    plugged = registry.names(registry.JUDGES)
    if name in plugged and name not in _KINDS:
        judge: Judge = registry.load(registry.JUDGES, name)(rest, options)
        return judge
    if name not in _KINDS:
        known = [*_KINDS, *plugged]
        raise ValueError(f"no judge {name!r}{choose(name, known)}; there are {', '.join(known)}")
    if name in ("openai", "hf", "vqascore", "file") and not rest:
        raise ValueError(f"the judge {name} needs more: {_KINDS[name].split()[0]}")
    makers: dict[str, Callable[[], Judge]] = {
        "geneval": lambda: _geneval(rest, options),
        "openai": lambda: _openai(rest, options),
        "hf": lambda: _hf(rest, options),
        "vqascore": lambda: _vqascore(rest, options),
        "ocr": _ocr,
        "file": lambda: _file(rest),
    }
    return makers[name]()


def _geneval(folder: str, options: JudgeOptions) -> Judge:
    from irg.evaluation.judges.geneval_detector import GenEvalDetector

    return GenEvalDetector.load(folder or None, options.device, not options.no_self_test)


def _openai(model: str, options: JudgeOptions) -> Judge:
    from irg.evaluation.judges.openai import OpenAIJudge

    return OpenAIJudge.from_options(model, options)


def _hf(model: str, options: JudgeOptions) -> Judge:
    from irg.evaluation.judges.hf import VisionLanguageJudge

    return VisionLanguageJudge.load(model, options.device, options.corrections)


def _vqascore(model: str, options: JudgeOptions) -> Judge:
    from irg.evaluation.judges.hf import VQAScoreJudge

    return VQAScoreJudge.load(model, options.device)


def _ocr() -> Judge:
    from irg.evaluation.judges.ocr import OCRJudge

    return OCRJudge()


def _file(path: str) -> Judge:
    from irg.evaluation.judges.file import FileJudge

    return FileJudge.load(Path(path))
