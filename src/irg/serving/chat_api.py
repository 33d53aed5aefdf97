"""``/v1/chat/completions``: images in OpenRouter's and in vLLM-Omni's form, and answers about images."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter
from PIL.Image import Image
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from irg.engine.events import ImageDone, TextDelta
from irg.reasoning.events import Finished
from irg.reasoning.protocols.base import Task
from irg.results.trajectory import Trajectory
from irg.serving.answers import IrgAnswer, answer_of, irg_answer, now, texts_of, usage
from irg.serving.conversation import ImagePart, ImageURL, Message, asked, images_of
from irg.serving.documentation import ERRORS, STREAM
from irg.serving.errors import invalid
from irg.serving.image_data import OutputFormat, data_url, encode
from irg.serving.schemas import Generation, Quality, Strict, unnested
from irg.serving.service import collect, service_of
from irg.serving.sse import Events, stream
from irg.serving.starting import Started, start

router = APIRouter(tags=["chat"])
Modality = Literal["text", "image"]


class StreamOptions(Strict):
    include_usage: bool | None = None


class ImageConfig(Strict):
    """OpenRouter's."""

    aspect_ratio: str | None = None


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    modalities: list[Modality] | None = Field(
        None, description="with image: draw; [image] alone: images inside content, as vLLM-Omni has them; text: answer"
    )
    image_config: ImageConfig | None = None
    task: Literal["edit", "improve"] | None = Field(None, description="what to do with a given image; default: edit")
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Quality | None = None
    output_format: OutputFormat | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="max_think_tokens")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="max_think_tokens")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    tools: list[dict[str, Any]] | None = Field(None, description="may be offered; the model never calls one")
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None


class AnswerMessage(BaseModel):
    """The model's message."""

    role: str = "assistant"
    content: str | list[ImagePart] | None
    images: list[ImagePart] | None = None
    reasoning_content: str | None = None
    irg: IrgAnswer


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: None = None


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


@router.post("/v1/chat/completions", response_model=ChatAnswer, responses={**ERRORS, 200: STREAM})
async def complete(body: ChatRequest, request: Request) -> Response:
    """Draw, edit or answer, as the last message asks."""
    fields: ChatRequest = unnested(body)
    options = service_of(request).options
    wanted = asked(fields.messages, "messages")
    images = await images_of(wanted.urls, options, "messages")
    draws = "image" in fields.modalities if fields.modalities is not None else not images
    if not draws and not images:
        raise invalid("an answer in text needs an image to be about; or ask for one: modalities", "modalities")
    task: Task = (fields.task or "edit" if images else "generate") if draws else "ask"
    started = await start(
        request,
        fields,
        fields.model,
        wanted.text,
        count=fields.n or 1,
        size=_size(fields) if draws else None,
        quality=fields.quality,
        task=task,
        images=images,
        given=_given(fields, task),
        texts=bool(fields.stream),
    )
    delivery = _Delivery(started, fields, fields.modalities == ["image"])
    if fields.stream:
        return stream(delivery.events(), options, done_marker=True)
    return await delivery.whole()


def _size(fields: ChatRequest) -> str | None:
    ratio = fields.image_config.aspect_ratio if fields.image_config else None
    if fields.size is not None and ratio is not None:
        raise invalid("size and image_config.aspect_ratio are the same setting; give one of them", "size")
    return fields.size or ratio


def _given(fields: ChatRequest, task: Task) -> dict[str, Any]:
    """Settings that the chat's own fields stand for."""
    given: dict[str, Any] = {}
    most = fields.max_completion_tokens or fields.max_tokens
    if most is not None:
        given["max_think_tokens"] = most
    if task in ("edit", "ask"):
        given["mode"] = "direct"
    return given


@dataclass
class _Delivery:
    """How one chat is answered. ``inside``: images are parts of the content."""

    started: Started
    fields: ChatRequest
    inside: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=now)

    @property
    def head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.fields.model or self.started.model.pipe.name}

    async def image_part(self, image: Image, index: int = 0) -> ImagePart:
        kind = self.fields.output_format or "png"
        content = await run_sync(encode, image, kind)
        return ImagePart(type="image_url", image_url=ImageURL(url=data_url(content, kind)), index=index)

    async def message(self, number: int, trajectory: Trajectory) -> AnswerMessage:
        job = self.started.jobs[number]
        told = irg_answer(job, trajectory)
        if job.task == "ask":
            return AnswerMessage(content=trajectory.answer or "", irg=told)
        if trajectory.image is None:
            return AnswerMessage(content=answer_of(trajectory), irg=told)
        images = [await self.image_part(trajectory.image)]
        content, beside = (images, None) if self.inside else ("", images)
        return AnswerMessage(content=content, images=beside, reasoning_content=texts_of(trajectory) or None, irg=told)

    def usage(self, trajectories: Sequence[Trajectory]) -> ChatUsage:
        counted = usage(self.started.model.pipe, self.started.jobs, trajectories)
        return ChatUsage(
            prompt_tokens=counted.input_tokens,
            completion_tokens=counted.output_tokens,
            total_tokens=counted.total_tokens,
        )

    async def whole(self) -> Response:
        trajectories = await collect(self.started.request, self.started.submission)
        choices = [
            Choice(index=number, message=await self.message(number, one), finish_reason="stop")
            for number, one in enumerate(trajectories)
        ]
        answer = ChatAnswer(**self.head, choices=choices, usage=self.usage(trajectories))
        return JSONResponse(answer.model_dump(exclude_none=True))

    async def events(self) -> Events:
        trajectories: list[Trajectory] = []
        rounds = [0] * len(self.started.jobs)  # images sent
        for number in range(len(rounds)):
            yield self.chunk(number, {"role": "assistant", "content": ""})
        async for event in self.started.submission.events():
            if isinstance(event, TextDelta):
                name = "content" if self.started.jobs[0].task == "ask" else "reasoning_content"
                yield self.chunk(event.request, {name: event.text})
            elif isinstance(event, ImageDone) and self.started.is_partial(event):
                yield self.chunk(event.request, await self.image_delta(event.image, rounds[event.request]))
                rounds[event.request] += 1
            elif isinstance(event, Finished):
                trajectories.append(event.trajectory)
                yield self.chunk(event.request, await self.last(event, rounds[event.request]), "stop")
        if self.fields.stream_options and self.fields.stream_options.include_usage:
            yield self.chunk(None, {}) | {"usage": self.usage(trajectories).model_dump()}

    async def last(self, event: Finished, sent: int) -> dict[str, Any]:
        """The delta with the image that stands, unless it is the newest of those ``sent``; or what was said instead of
        drawing one."""
        job, trajectory = self.started.jobs[event.request], event.trajectory
        delta: dict[str, Any] = {"irg": irg_answer(job, trajectory).model_dump()}
        if job.task != "ask" and trajectory.image is None:
            delta["content"] = answer_of(trajectory)
        elif job.task != "ask" and trajectory.image is not None:
            number = _number(trajectory)
            if number != sent - 1:
                delta |= await self.image_delta(trajectory.image, number)
        return delta

    async def image_delta(self, image: Image, index: int) -> dict[str, Any]:
        """A delta with one image, in the form that was asked for."""
        part = await self.image_part(image, index)
        return {"content" if self.inside else "images": [part.model_dump(exclude_none=True)]}

    def chunk(self, number: int | None, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choices = [] if number is None else [{"index": number, "delta": delta, "finish_reason": reason}]
        return self.head | {"object": "chat.completion.chunk", "choices": choices}


def _number(trajectory: Trajectory) -> int:
    """Which of the images that were drawn stands. An image that was sent before has this index already."""
    drawn = [turn.image for turn in trajectory.turns if turn.image is not None and not turn.given]
    return next((number for number, image in enumerate(drawn) if image is trajectory.image), 0)
