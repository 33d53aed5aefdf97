"""``/v1/responses`` with the image_generation tool; without it, answers about images."""

import math
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from irg.engine.events import ImageDone, TextDelta
from irg.reasoning.events import Finished
from irg.reasoning.protocols.base import Task
from irg.results.trajectory import Trajectory
from irg.serving.answers import answer_of, irg_answer, now, revised_prompt, texts_of, usage
from irg.serving.async_engine import Preview
from irg.serving.conversation import Message, asked, images_of
from irg.serving.documentation import ERRORS, STREAM
from irg.serving.errors import ApiError, invalid
from irg.serving.image_data import OutputFormat, base64_of, encode
from irg.serving.schemas import Generation, Quality, Strict, unnested
from irg.serving.service import collect, service_of
from irg.serving.sse import Events, stream
from irg.serving.starting import Started, start

router = APIRouter(tags=["responses"])


class ImageTool(Strict):
    """OpenAI's image_generation tool."""

    type: Literal["image_generation"]
    action: Literal["auto", "generate", "edit"] | None = None
    model: str | None = None
    size: str | None = None
    quality: Quality | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None


class ImageCall(Strict):
    """An image of an earlier answer, given back as input."""

    type: Literal["image_generation_call"]
    id: str | None = None
    result: str
    status: str | None = None
    revised_prompt: str | None = None


class ResponsesRequest(Generation):
    """``POST /v1/responses``. Nothing is stored."""

    input: str | list[Message | ImageCall]
    model: str | None = None
    tools: Annotated[list[ImageTool], Field(max_length=1)] | None = None
    tool_choice: Literal["auto", "required"] | dict[Literal["type"], Literal["image_generation"]] | None = None
    task: Literal["edit", "improve"] | None = Field(None, description="what to do with a given image; default: edit")
    max_output_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="max_think_tokens")
    stream: bool | None = None
    store: Literal[False] | None = None
    user: str | None = None


class ResponsesAnswer(BaseModel):
    """The answer: reasoning, then an image or a message."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None = None
    error: None = None
    incomplete_details: None = None
    instructions: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    tool_choice: str = "auto"
    tools: list[dict[str, Any]]
    temperature: float | None = None
    top_p: float | None = None
    irg: dict[str, Any] | None = None


@router.post("/v1/responses", response_model=ResponsesAnswer, responses={**ERRORS, 200: STREAM})
async def respond(body: ResponsesRequest, request: Request) -> Response:
    """Draw, edit or answer, as the input asks."""
    fields: ResponsesRequest = unnested(body)
    options = service_of(request).options
    tool = fields.tools[0] if fields.tools else None
    wanted = asked(_messages(fields.input), "input")
    images = await images_of(wanted.urls, options, "input")
    if tool is None and not images:
        raise invalid("an answer in text needs an image to be about; or give the image_generation tool", "tools")
    if tool is not None and tool.action == "edit" and not images:
        raise invalid("there is no image to edit", "tools.0.action")
    if tool is not None and tool.action == "generate":
        images = []
    task: Task = "ask" if tool is None else (fields.task or "edit") if images else "generate"
    given: dict[str, Any] = {"mode": "direct"} if task in ("edit", "ask") else {}
    if fields.max_output_tokens is not None:
        given["max_think_tokens"] = fields.max_output_tokens
    started = await start(
        request,
        fields,
        fields.model,
        wanted.text,
        size=tool.size if tool else None,
        quality=tool.quality if tool else None,
        task=task,
        images=images,
        given=given,
        partial_images=(tool.partial_images or 0) if tool and fields.stream else 0,
        texts=bool(fields.stream) and task == "ask",
    )
    delivery = _Delivery(started, fields, tool)
    if fields.stream:
        return stream(delivery.events(), options)
    return await delivery.whole()


def _messages(given: str | list[Message | ImageCall]) -> list[Message]:
    """The input as messages; an image of an earlier answer is an assistant's."""
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    found = []
    for one in given:
        if isinstance(one, ImageCall):
            part = {"type": "input_image", "image_url": one.result}
            one = Message.model_validate({"role": "assistant", "content": [part]})
        found.append(one)
    return found


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass
class _Delivery:
    """How one response is handed over."""

    started: Started
    fields: ResponsesRequest
    tool: ImageTool | None
    id: str = field(default_factory=lambda: _new("resp"))
    item: str = field(default_factory=lambda: _new("item"))
    created: int = field(default_factory=now)
    sequence: int = -1

    async def encoded(self, image: Any) -> str:
        tool = self.tool
        assert tool is not None
        compression = 100 if tool.output_compression is None else tool.output_compression
        return base64_of(await run_sync(encode, image, tool.output_format or "png", compression))

    async def output(self, trajectory: Trajectory) -> list[dict[str, Any]]:
        """Reasoning, if there is some, and the item asked for; a message before it where the model did not draw."""
        if self.tool is None:
            return [self.message(self.item, trajectory.answer or "")]
        if trajectory.image is None:
            return [self.message(_new("msg"), answer_of(trajectory)), self.call("failed")]
        call = self.call("completed") | {
            "result": await self.encoded(trajectory.image),
            "revised_prompt": revised_prompt(trajectory),
        }
        if not (texts := texts_of(trajectory)):
            return [call]
        summary = [{"type": "summary_text", "text": texts}]
        return [{"type": "reasoning", "id": _new("rs"), "summary": summary}, call]

    def call(self, status: str) -> dict[str, Any]:
        return {"type": "image_generation_call", "id": self.item, "status": status, "result": None}

    def message(self, name: str, text: str | None = None) -> dict[str, Any]:
        """A message; one without a text is still to be written."""
        content, status = ([], "in_progress") if text is None else ([self.part(text)], "completed")
        return {"type": "message", "id": name, "role": "assistant", "status": status, "content": content}

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}

    def answer(self, status: str, output: list[dict[str, Any]], trajectory: Trajectory | None = None) -> dict[str, Any]:
        job = self.started.jobs[0]
        counted = None
        if trajectory is not None:
            told = usage(self.started.model.pipe, [job], [trajectory])
            counted = {
                "input_tokens": told.input_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": told.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0 if self.tool is None else trajectory.tokens},
                "total_tokens": told.total_tokens,
            }
        return ResponsesAnswer(
            id=self.id,
            created_at=self.created,
            status=status,
            model=self.fields.model or self.started.model.pipe.name,
            output=output,
            usage=counted,
            tools=[self.tool.model_dump(exclude_none=True)] if self.tool else [],
            irg=irg_answer(job, trajectory).model_dump(exclude_none=True) if trajectory else None,
        ).model_dump()

    async def whole(self) -> Response:
        (trajectory,) = await collect(self.started.request, self.started.submission)
        return JSONResponse(self.answer("completed", await self.output(trajectory), trajectory))

    def event(self, kind: str, **own: Any) -> dict[str, Any]:
        self.sequence += 1
        return {"type": f"response.{kind}", "sequence_number": self.sequence} | own

    async def events(self) -> Events:
        yield self.event("created", response=self.answer("in_progress", []))
        yield self.event("in_progress", response=self.answer("in_progress", []))
        try:
            async for one in self._parts():
                yield one
        except ApiError as error:
            told = self.answer("failed", []) | {"error": {"code": "server_error", "message": str(error)}}
            yield self.event("failed", response=told)
            raise

    async def _parts(self) -> AsyncGenerator[dict[str, Any], None]:
        place = {"item_id": self.item, "output_index": 0}
        begun = self.message(self.item) if self.tool is None else self.call("in_progress")
        yield self.event("output_item.added", output_index=0, item=begun)
        if self.tool is None:
            yield self.event("content_part.added", **place, content_index=0, part=self.part(""))
        else:
            yield self.event("image_generation_call.in_progress", **place)
            yield self.event("image_generation_call.generating", **place)
        asked_for = self.tool.partial_images if self.tool else 0
        most, partials = math.inf if asked_for is None else asked_for, 0
        async for event in self.started.submission.events():
            if isinstance(event, Finished):
                async for one in self._ending(event.trajectory, place):
                    yield one
            elif isinstance(event, TextDelta):
                yield self.event("output_text.delta", **place, content_index=0, delta=event.text, logprobs=[])
            elif isinstance(event, ImageDone | Preview) and partials < most and self.started.is_partial(event):
                own = {"partial_image_b64": await self.encoded(event.image), "partial_image_index": partials}
                yield self.event("image_generation_call.partial_image", **place, **own)
                partials += 1

    async def _ending(self, trajectory: Trajectory, place: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The item that was begun first; reasoning, or a message, comes after it."""
        output = await self.output(trajectory)
        item = output.pop()
        if self.tool is None:
            text = item["content"][0]["text"]
            yield self.event("output_text.done", **place, content_index=0, text=text, logprobs=[])
            yield self.event("content_part.done", **place, content_index=0, part=item["content"][0])
        elif trajectory.image is not None:
            yield self.event("image_generation_call.completed", **place)
        yield self.event("output_item.done", output_index=0, item=item)
        for index, other in enumerate(output, start=1):
            yield self.event("output_item.added", output_index=index, item=other)
            yield self.event("output_item.done", output_index=index, item=other)
        yield self.event("completed", response=self.answer("completed", [item, *output], trajectory))
