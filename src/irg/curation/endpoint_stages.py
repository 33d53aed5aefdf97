"""Endpoints as teachers (thinking, reflections), image generators (targets) and judges: kind ``endpoint``."""

import asyncio
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from irg.curation.instructions import (
    COMPARE,
    EDIT,
    GRADE,
    JUDGE,
    REFLECT,
    THINK,
    instruction,
    read_grade,
    read_judgement,
    read_reflection,
    read_thinking,
)
from irg.curation.parts import Parts, Reflections, RowJudge, Targets, Thinking
from irg.curation.resources import Resources
from irg.curation.stages import Grader, Outcome, Stage, accepted, each, score_columns
from irg.curation.store import Row, digest
from irg.endpoints import Answer, Client, Endpoint, image_part

SAMPLING = (
    "temperature",
    "max_tokens",
    "min_tokens",
    "seed",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "bad_words",
    "ignore_eos",
)
"""Fields of a request that vLLM's sampling parameters know by the same name."""


def check_packages() -> None:
    """Refuse to begin without what the client needs.

    Raises:
        ValueError: a package is not installed.
    """
    for package in ("openai", "tenacity"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"endpoints need the package {package}: pip install 'irg[data]'")


def _message(text: str, *images: bytes) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}]


class EndpointStage(Stage):
    """A stage that calls one endpoint, row by row.

    Attributes:
        chats: whether it wants text.
        offline: whether its requests are answered elsewhere (:mod:`irg.curation.ray.vllm`); it then takes answers from
            the cache alone.
    """

    client: Client
    calls_per_row = 1.0
    chats = True
    offline = False

    async def open(self, resources: Resources) -> None:
        endpoint = self.config.endpoint
        self.client = resources.offline(endpoint) if self.offline else await resources.client(endpoint)

    def answer_offline(self) -> None:
        """Take answers from the cache alone.

        Raises:
            ValueError: the endpoint has fields that only a server knows.
        """
        for name in self.config.endpoint.extra:
            if name not in (*SAMPLING, "chat_template_kwargs"):
                raise ValueError(
                    f"ray.vllm.{self.name}: the endpoint's extra.{name} means nothing to a local vLLM; it takes "
                    f"{', '.join(SAMPLING)} and chat_template_kwargs"
                )
        self.offline = True

    async def make(self, rows: list[Row]) -> list[Outcome]:
        return await each(rows, 2 * self.config.endpoint.concurrency, self.one)

    async def one(self, row: Row) -> Row:
        """The outcome of one row."""
        raise NotImplementedError

    def calls(self) -> list[tuple[Endpoint, float]]:
        return [] if self.offline else [(self.config.endpoint, self.calls_per_row)]

    def by(self, answer: Answer, **more: Any) -> dict[str, Any]:
        """Which model answered, under which instructions and settings."""
        by = {"model": self.config.endpoint.model, "instructions": digest(*self.texts())[:8], **more}
        return by | ({"complaints": list(answer.complaints)} if answer.complaints else {})

    async def chat(
        self, row: Row, messages: list[dict[str, Any]], check: Callable[[str], Any], answer_in_think: bool = False
    ) -> Answer:
        """Send messages about a row; its seed makes the answer its own."""
        config = self.config
        return await self.client.chat(
            messages,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=row["seed"],
            check=check,
            answer_in_think=answer_in_think,
        )


@dataclass(frozen=True)
class EndpointReflections(Reflections):
    """T2 by a vision-language model."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    temperature: float = 0.3
    max_tokens: int = 1500

    def check(self, parts: Parts) -> None:
        check_packages()

    def stage(self, parts: Parts) -> Stage:
        return ReflectStage(self, compare=parts.strategy == "independent")


class ReflectStage(EndpointStage):
    """T2: from the draft alone, or from draft and target (the paper's strategy)."""

    name, columns = "reflect", {"reflection": str}
    config: EndpointReflections

    def __init__(self, config: EndpointReflections, compare: bool) -> None:
        super().__init__(config)
        self.compare = compare

    def texts(self) -> list[str]:
        return [COMPARE if self.compare else REFLECT]

    async def one(self, row: Row) -> Row:
        images = (row["image"], row["improved"]) if self.compare else (row["image"],)
        messages = _message(self.texts()[0].format(prompt=row["prompt"]), *images)
        answer = await self.chat(row, messages, read_reflection, answer_in_think=True)
        by = self.by(answer, temperature=self.config.temperature)
        return accepted(row, by, cost=answer.cost, reflection=answer.value)


@dataclass(frozen=True)
class EndpointThinking(Thinking):
    """T1 of one-turn rows by a vision-language model that sees the image."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    temperature: float = 0.3
    max_tokens: int = 800

    def check(self, parts: Parts) -> None:
        check_packages()

    def stage(self, parts: Parts) -> Stage:
        return ThinkStage(self)


class ThinkStage(EndpointStage):
    """T1 of a one-turn row."""

    name, columns = "think", {"thought": str}
    config: EndpointThinking

    def texts(self) -> list[str]:
        return [THINK]

    async def one(self, row: Row) -> Row:
        messages = _message(THINK.format(prompt=row["prompt"]), row["improved"])
        answer = await self.chat(row, messages, read_thinking, answer_in_think=True)
        by = self.by(answer, temperature=self.config.temperature)
        return accepted(row, by, cost=answer.cost, thought=answer.value)


@dataclass(frozen=True)
class EndpointTargets(Targets):
    """Targets by an images endpoint: edits of the draft, or generations."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    edit: bool = True
    width: int = 1024
    height: int = 1024

    def check(self, parts: Parts) -> None:
        check_edit(self.edit, parts)
        check_packages()

    def stage(self, parts: Parts) -> Stage:
        return TargetStage(self)


def check_edit(edit: bool, parts: Parts) -> None:
    """Raises ValueError where a target that edits the draft does not fit the strategy."""
    if edit and parts.strategy == "independent":
        raise ValueError("strategy: independent draws targets from the prompt alone; set target.edit to false")


class TargetStage(EndpointStage):
    """I2 by an images endpoint."""

    name, columns, chats = "target", {"improved": bytes}, False
    config: EndpointTargets

    def texts(self) -> list[str]:
        return [EDIT] if self.config.edit else []

    async def one(self, row: Row) -> Row:
        size = (self.config.width, self.config.height)
        edit = self.config.edit and row["turns"] == 2
        text = instruction(row, edit)
        if edit:
            answer = await self.client.edit(text, row["image"], size=size, seed=row["seed"])
        else:
            answer = await self.client.draw(text, size=size, seed=row["seed"])
        by = self.by(answer, call="edit" if edit else "generation", seed=row["seed"])
        return accepted(row, by, cost=answer.cost, improved=answer.image)


@dataclass(frozen=True)
class EndpointJudge(RowJudge):
    """A vision-language model that scores from 0 to 10."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    name: str = "vlm"
    temperature: float = 0.0
    max_tokens: int = 500

    def check(self, parts: Parts) -> None:
        check_packages()

    def stage(self, parts: Parts) -> Stage:
        return JudgeStage(self)

    def grader(self) -> Grader:
        check_packages()
        return EndpointGrader(self)


class JudgeStage(EndpointStage):
    """Scores of draft and target, each shown first once."""

    config: EndpointJudge
    calls_per_row = 2.0

    def __init__(self, config: EndpointJudge) -> None:
        super().__init__(config)
        self.columns = score_columns(config.name) | {f"{config.name}_said": str}

    def texts(self) -> list[str]:
        return [JUDGE, GRADE]

    async def one(self, row: Row) -> Row:
        if row["turns"] == 1:
            answer = await self.grade(row, row["improved"])
            scores = {"target_following": answer.value[0], "target_quality": answer.value[1]}
            return self._accepted(row, scores, [answer])
        first, second = await self._both_orders(row)
        draft_1, target_1, preserved_1 = first.value
        target_2, draft_2, preserved_2 = second.value
        scores = {
            "draft_following": (draft_1[0] + draft_2[0]) / 2,
            "draft_quality": (draft_1[1] + draft_2[1]) / 2,
            "target_following": (target_1[0] + target_2[0]) / 2,
            "target_quality": (target_1[1] + target_2[1]) / 2,
            "preservation": (preserved_1 + preserved_2) / 2,
            "gain_1": sum(target_1) - sum(draft_1),
            "gain_2": sum(target_2) - sum(draft_2),
        }
        return self._accepted(row, scores, [first, second])

    async def grade(self, row: Row, image: bytes) -> Answer:
        """A single image for a row's prompt; the value is (following, quality)."""
        return await self.chat(row, _message(GRADE.format(prompt=row["prompt"]), image), read_grade)

    async def _both_orders(self, row: Row) -> list[Answer]:
        text = JUDGE.format(prompt=row["prompt"])
        orders = ((row["image"], row["improved"]), (row["improved"], row["image"]))
        calls = [self.chat(row, _message(text, *images), read_judgement) for images in orders]
        both = await asyncio.gather(*calls, return_exceptions=True)
        for failure in both:  # both have ended, so of two failures it is always the same one that is raised
            if isinstance(failure, BaseException):
                raise failure
        return [answer for answer in both if isinstance(answer, Answer)]

    def _accepted(self, row: Row, scores: dict[str, float], answers: list[Answer]) -> Row:
        columns: dict[str, Any] = {f"{self.config.name}_{name}": score for name, score in scores.items()}
        columns[f"{self.config.name}_said"] = json.dumps([answer.text for answer in answers], ensure_ascii=False)
        by = self.by(answers[-1], temperature=self.config.temperature)
        return accepted(row, by, cost=sum(answer.cost for answer in answers), **columns)


class EndpointGrader(Grader):
    """Grades of single images by a judge's endpoint."""

    def __init__(self, config: EndpointJudge) -> None:
        self.judge = JudgeStage(config)

    def texts(self) -> list[str]:
        return self.judge.texts()

    def calls(self) -> list[tuple[Endpoint, float]]:
        return [(self.judge.config.endpoint, 1.0)]

    async def open(self, resources: Resources) -> None:
        await self.judge.open(resources)

    async def grades(self, row: Row, images: list[bytes]) -> list[tuple[float, float]]:
        return [(await self.judge.grade(row, image)).value for image in images]
