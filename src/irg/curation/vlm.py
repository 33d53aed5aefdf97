"""Endpoints as teachers (thinking, reflections), painters (targets) and judges.

The instructions are part of a stage's key: change one, and what was made by it is made anew.
"""

import asyncio
import json
from typing import Any

from irg.curation.recipe import EndpointJudge, EndpointReflections, EndpointTargets, EndpointThinking, Vllm
from irg.curation.stages import Outcome, Stage, Workbench, each, made
from irg.curation.store import Row, digest
from irg.endpoints import Answer, Client, Endpoint, image_part
from irg.results.reflection import Reflection, sections, without_tags

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

THINK = """You teach a model to think before it draws. Here is a prompt, and a picture that fulfils it.

Prompt: {prompt}

Write the thinking that leads from the prompt to such a picture: what the prompt asks for and what it leaves open, the \
subject and every object with its number, colour, attributes and place, the composition, the style, the light. Think \
forward, as if nothing were drawn yet: never mention that there is a picture. One or two paragraphs of plain text, \
at most 250 words, and nothing else."""

_FORM = """Write exactly this, with these four headings, in this order:

<think>
Analysis: what is wrong or weak, named concretely: what is missing, too many, of the wrong colour, in the wrong place, \
badly drawn. If nothing is, write "Nothing is wrong."
Improvements: what the better picture must have. If nothing has to change, write "None."
Steps: how to get there, step by step; also say what must stay as it is.
Final prompt: one comprehensive prompt for the better picture. It must stand alone and keep all that was asked for.
</think>"""

REFLECT = f"""You look at a picture that was drawn for a prompt, and say how to make it better. Keep to what was \
asked: improve detail, quality and what contradicts the prompt; do not change what is right.

Prompt: {{prompt}}

{_FORM}"""

COMPARE = f"""You see two pictures that were drawn for the same prompt: first a draft, then a better one. Write the \
reflection that leads from the draft to the better picture, as if only the draft had been drawn yet: never \
mention that there is a second picture.

Prompt: {{prompt}}

{_FORM}"""

JUDGE = """Two pictures, A and then B, were drawn for one prompt; one of them is a later version of the other. \
Score them.

Prompt: {prompt}

following: how far a picture shows what the prompt asks for: objects, numbers, colours, places, attributes, text.
quality: how well it is drawn: sharpness, anatomy, light, composition, no artefacts.
preservation: how far both show the same scene where neither contradicts the prompt.

All scores are numbers from 0 (not at all) to 10 (perfectly). Judge what you see, not the order. Answer with one JSON \
object and nothing else:
{{"A": {{"following": 0, "quality": 0}}, "B": {{"following": 0, "quality": 0}}, \
"preservation": 0, "why": "one sentence"}}"""

GRADE = """A picture was drawn for this prompt. Score it.

Prompt: {prompt}

following: how far it shows what the prompt asks for: objects, numbers, colours, places, attributes, text.
quality: how well it is drawn: sharpness, anatomy, light, composition, no artefacts.

Both are numbers from 0 (not at all) to 10 (perfectly). Answer with one JSON object and nothing else:
{{"following": 0, "quality": 0, "why": "one sentence"}}"""

EDIT = """Improve this picture, which was drawn for the prompt "{prompt}". {improvements} {steps} The result: \
{final_prompt}"""


def instruction(row: Row, edit: bool = False) -> str:
    """What a painter is told: the prompt; with a reflection on the draft its final prompt, or the whole edit."""
    if row["turns"] == 1 or row.get("reflection") is None:
        return str(row["prompt"])
    found = sections(row["reflection"])
    final = found.get("final prompt") or row["prompt"]
    if not edit:
        return str(final)
    told = {name: found.get(name, "") for name in ("improvements", "steps")}
    return EDIT.format(prompt=row["prompt"], final_prompt=final, **told)


def read_json(text: str) -> dict[str, Any]:
    """The one JSON object of an answer, with or without a code fence around it.

    Raises:
        ValueError: there is none.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1])
    except ValueError as error:
        raise ValueError(f"it holds no JSON object ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _score(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10:
        raise ValueError(f"{name} must be a number from 0 to 10, got {value!r}")
    return float(value)


def read_grade(text: str) -> tuple[float, float]:
    """(following, quality) of a GRADE answer; ValueError names what is wrong."""
    return _grade_of(read_json(text), "")


def _grade_of(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.') or 'the answer'} must be an object with following and quality")
    return _score(value.get("following"), f"{where}following"), _score(value.get("quality"), f"{where}quality")


def read_judgement(text: str) -> tuple[tuple[float, float], tuple[float, float], float]:
    """(A's grade, B's grade, preservation) of a JUDGE answer; ValueError names what is wrong."""
    value = read_json(text)
    preservation = _score(value.get("preservation"), "preservation")
    return _grade_of(value.get("A"), "A."), _grade_of(value.get("B"), "B."), preservation


def read_thinking(text: str) -> str:
    """T1 of a THINK answer; ValueError if it is empty, too long or gives the image away."""
    thought = without_tags(text)
    if not thought:
        raise ValueError("it is empty")
    if len(thought) > 8000:
        raise ValueError(f"it has {len(thought)} characters; at most 250 words are wanted")
    if "the picture shows" in thought.lower() or "the image shows" in thought.lower():
        raise ValueError("it speaks of a picture that is already there; think forward from the prompt")
    return f"<think> {thought} </think>"


def read_reflection(text: str) -> str:
    """T2 in the template; ValueError names the section that is missing or out of place."""
    return Reflection.parse(text).to_text()


def _ask(text: str, *images: bytes) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}]


class EndpointStage(Stage):
    """A stage that asks one endpoint, row by row.

    Attributes:
        chats: whether it asks for text.
        local: a vLLM that is asked instead, by somebody else: the stage itself only looks for its answers.
    """

    client: Client
    calls_a_row = 1.0
    chats = True
    local: Vllm | None = None

    async def open(self, bench: Workbench) -> None:
        endpoint = self.config.endpoint
        self.client = bench.offline(endpoint) if self.local is not None else await bench.client(endpoint)

    def answered_by(self, local: Vllm) -> None:
        """Leave the questions to a local vLLM.

        Raises:
            ValueError: the endpoint has fields that only a server knows.
        """
        for name in self.config.endpoint.extra:
            if name not in (*SAMPLING, "chat_template_kwargs"):
                raise ValueError(
                    f"ray.vllm.{self.name}: the endpoint's extra.{name} means nothing to a local vLLM; it takes "
                    f"{', '.join(SAMPLING)} and chat_template_kwargs"
                )
        self.local = local

    async def make(self, rows: list[Row]) -> list[Outcome]:
        return await each(rows, 2 * self.config.endpoint.concurrency, self.one)

    async def one(self, row: Row) -> Row:
        raise NotImplementedError

    def calls(self) -> list[tuple[Endpoint, float]]:
        return [] if self.local is not None else [(self.config.endpoint, self.calls_a_row)]

    def by(self, answer: Answer, **more: Any) -> dict[str, Any]:
        """Who answered, told how."""
        by = {"model": self.config.endpoint.model, "instructions": digest(*self.texts())[:8], **more}
        return by | ({"complaints": list(answer.complaints)} if answer.complaints else {})

    async def _chat(self, row: Row, messages: list[dict[str, Any]], check: Any) -> Answer:
        """Ask about a row; its seed makes the answer its own."""
        config = self.config
        return await self.client.chat(
            messages, temperature=config.temperature, max_tokens=config.max_tokens, seed=row["seed"], check=check
        )


class EndpointReflecting(EndpointStage):
    """T2: from the draft alone, or from draft and target (the paper's way)."""

    name, turns, columns = "reflect", (2,), {"reflection": str}
    config: EndpointReflections

    def __init__(self, config: EndpointReflections, compare: bool) -> None:
        super().__init__(config)
        self.compare = compare

    def texts(self) -> list[str]:
        return [COMPARE if self.compare else REFLECT]

    async def one(self, row: Row) -> Row:
        images = (row["image"], row["improved"]) if self.compare else (row["image"],)
        messages = _ask(self.texts()[0].format(prompt=row["prompt"]), *images)
        answer = await self._chat(row, messages, read_reflection)
        return made(
            row, self.by(answer, temperature=self.config.temperature), cost=answer.cost, reflection=answer.value
        )


class EndpointThinkingStage(EndpointStage):
    """T1 of a one-turn row."""

    name, turns, columns = "think", (1,), {"thought": str}
    config: EndpointThinking

    def texts(self) -> list[str]:
        return [THINK]

    async def one(self, row: Row) -> Row:
        answer = await self._chat(row, _ask(THINK.format(prompt=row["prompt"]), row["improved"]), read_thinking)
        return made(row, self.by(answer, temperature=self.config.temperature), cost=answer.cost, thought=answer.value)


class EndpointPainting(EndpointStage):
    """I2 by an images endpoint."""

    chats = False
    name, columns = "target", {"improved": bytes}
    config: EndpointTargets

    def texts(self) -> list[str]:
        return [EDIT] if self.config.edit else []

    async def one(self, row: Row) -> Row:
        size = (self.config.width, self.config.height)
        edit = self.config.edit and row["turns"] == 2
        told = instruction(row, edit)
        if edit:
            answer = await self.client.edit(told, row["image"], size=size, seed=row["seed"])
        else:
            answer = await self.client.draw(told, size=size, seed=row["seed"])
        by = self.by(answer, call="edit" if edit else "generation", seed=row["seed"])
        return made(row, by, cost=answer.cost, improved=answer.image)


class EndpointJudging(EndpointStage):
    """Scores of draft and target, each seen first once."""

    config: EndpointJudge
    calls_a_row = 2.0

    def __init__(self, config: EndpointJudge) -> None:
        super().__init__(config)
        self.name = f"judge-{config.name}"
        self.columns = judge_columns(config.name) | {f"{config.name}_said": str}

    def texts(self) -> list[str]:
        return [JUDGE, GRADE]

    async def one(self, row: Row) -> Row:
        if row["turns"] == 1:
            answer = await self._chat(row, _ask(GRADE.format(prompt=row["prompt"]), row["improved"]), read_grade)
            scores = {"target_following": answer.value[0], "target_quality": answer.value[1]}
            return self._made(row, scores, [answer])
        text = JUDGE.format(prompt=row["prompt"])
        orders = ((row["image"], row["improved"]), (row["improved"], row["image"]))
        asked = [self._chat(row, _ask(text, *images), read_judgement) for images in orders]
        both = await asyncio.gather(*asked, return_exceptions=True)
        for failure in both:  # both have ended, and of two failures always the same one is told
            if isinstance(failure, BaseException):
                raise failure
        first, second = (answer for answer in both if isinstance(answer, Answer))
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
        return self._made(row, scores, [first, second])

    def _made(self, row: Row, scores: dict[str, float], answers: list[Answer]) -> Row:
        columns: dict[str, Any] = {f"{self.config.name}_{name}": score for name, score in scores.items()}
        columns[f"{self.config.name}_said"] = json.dumps([answer.text for answer in answers], ensure_ascii=False)
        by = self.by(answers[-1], temperature=self.config.temperature)
        return made(row, by, cost=sum(answer.cost for answer in answers), **columns)

    async def grades(self, row: Row, images: list[bytes]) -> list[tuple[float, float]]:
        """(following, quality) of single images for a row's prompt."""
        text = GRADE.format(prompt=row["prompt"])
        return [(await self._chat(row, _ask(text, image), read_grade)).value for image in images]


SCORES = (
    "draft_following",
    "draft_quality",
    "target_following",
    "target_quality",
    "preservation",
    "gain_1",  # target's following + quality less the draft's, as seen with the draft first
    "gain_2",  # and with the target first
)


def judge_columns(name: str) -> dict[str, type]:
    """The columns that every judge fills; one-turn rows have only the target's."""
    return {f"{name}_{score}": float for score in SCORES}
