"""``/v1/images/generations`` and ``/v1/images/edits``: as OpenAI's, streamed as the loop goes on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter
from PIL.Image import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from irg.critics import Verdict
from irg.engine.events import ImageDone, TextDelta, TextDone, WaitDone
from irg.reasoning.events import Finished
from irg.reasoning.protocols.base import Job, Task
from irg.results.trajectory import Trajectory
from irg.serving.answers import ImageAnswer, ImagesAnswer, answer_of, irg_answer, now, revised_prompt, size_of, usage
from irg.serving.async_engine import Preview
from irg.serving.documentation import ERRORS, STREAM, form_of
from irg.serving.errors import ApiError, invalid, no_image
from irg.serving.image_data import MEDIA_TYPES, OutputFormat, base64_of, decode, encode
from irg.serving.schemas import EditRequest, ImageRequest, from_form, unnested
from irg.serving.service import collect, service_of
from irg.serving.sse import Events, stream
from irg.serving.starting import Started, start

router = APIRouter(tags=["images"])
FILES = "/v1/images/files"


@router.post("/v1/images/generations", response_model=ImagesAnswer, responses={**ERRORS, 200: STREAM})
async def generate(body: ImageRequest, request: Request) -> Response:
    """Draw images of a prompt."""
    return await _answer(request, unnested(body), "generate", ())


@router.post(
    "/v1/images/edits",
    response_model=ImagesAnswer,
    responses={**ERRORS, 200: STREAM},
    openapi_extra=form_of(EditRequest, files="image"),
)
async def edit(request: Request) -> Response:
    """Edit given images as an instruction says, or improve one."""
    service = service_of(request)
    async with request.form(max_files=service.options.limits.max_input_images + 1, max_fields=100) as form:
        files, values = [], {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name == "mask":
                    raise invalid("mask is not supported: say in the prompt what to change", name, "unknown_parameter")
                if name not in ("image", "image[]"):
                    raise invalid(f"unknown file {name!r}; images are image or image[]", name, "unknown_parameter")
                files.append(await value.read())
            elif name in values:
                raise invalid(f"{name!r} is given twice", name)
            else:
                values[name] = value
    fields = from_form(EditRequest, values)
    if not files:
        raise invalid("'image' is missing", "image", "missing_parameter")
    limits = service.options.limits
    if len(files) > limits.max_input_images:
        raise invalid(f"at most {limits.max_input_images} images are taken", "image", "limit_exceeded")
    images = [await run_sync(decode, content, limits.max_input_pixels, "image") for content in files]
    return await _answer(request, fields, fields.task, images)


@router.get(FILES + "/{name}", responses={404: ERRORS[404]}, response_class=Response)
async def file(name: str, request: Request) -> Response:
    """An image that an answer's ``url`` leads to."""
    stored = service_of(request).store.get(name)
    if stored is None:
        raise ApiError(404, "there is no such image, or not any more", param="name", code="not_found")
    return Response(stored.content, media_type=stored.media_type, headers={"cache-control": "private, no-store"})


@dataclass
class _Delivery:
    """How one request's images are handed over."""

    started: Started
    fields: ImageRequest
    event_type: str

    @property
    def format(self) -> OutputFormat:
        return self.fields.output_format or "png"

    async def encoded(self, image: Image) -> bytes:
        compression = self.fields.output_compression
        return await run_sync(encode, image, self.format, 100 if compression is None else compression)

    async def image_answer(self, job: Job, trajectory: Trajectory) -> ImageAnswer:
        place = {}
        if trajectory.image is not None:
            content = await self.encoded(trajectory.image)
            in_url = self.fields.response_format == "url"
            place = {"url": self.url(content)} if in_url else {"b64_json": base64_of(content)}
        return ImageAnswer(**place, revised_prompt=revised_prompt(trajectory), irg=irg_answer(job, trajectory))

    def url(self, content: bytes) -> str:
        service = self.started.service
        name = service.store.add(content, MEDIA_TYPES[self.format])
        base = service.options.public_url or str(self.started.request.base_url)
        return f"{base.rstrip('/')}{FILES}/{name}"

    async def whole(self) -> Response:
        """Everything in one answer.

        Raises:
            ApiError: there is no image in it: the model answered in words.
        """
        jobs = self.started.jobs
        trajectories = await collect(self.started.request, self.started.submission)
        if all(one.image is None for one in trajectories):
            raise no_image(answer_of(trajectories[0]))
        answer = ImagesAnswer(
            created=now(),
            data=[await self.image_answer(job, one) for job, one in zip(jobs, trajectories, strict=True)],
            output_format=self.format,
            quality=self.fields.quality or "auto",
            size=size_of(jobs[0]),
            usage=usage(self.started.model.pipe, jobs, trajectories),
        )
        return JSONResponse(answer.model_dump(exclude_none=True))

    async def events(self) -> Events:
        """Images of all rounds as they are finished, previews, texts; then what is completed.

        Raises:
            ApiError: after everything else: the model answered in words instead of drawing an image.
        """
        unanswered: str | None = None
        partials = [0] * len(self.started.jobs)
        most = math.inf if self.fields.partial_images is None else self.fields.partial_images
        async for event in self.started.submission.events():
            number = event.request
            if isinstance(event, Finished):
                image = event.trajectory.image
                if image is None:
                    unanswered = answer_of(event.trajectory)
                else:
                    yield await self.completed(number, event.trajectory, image)
            elif isinstance(event, TextDelta | TextDone):
                yield self.text(number, event)
            elif isinstance(event, WaitDone):
                if isinstance(event.result, Verdict):
                    yield self.verdict(number, event.turn, event.result)
            elif partials[number] < most and self.started.is_partial(event):
                yield await self.partial(number, event, partials[number])
                partials[number] += 1
        if unanswered is not None:
            raise no_image(unanswered)

    async def partial(self, number: int, event: ImageDone | Preview, index: int) -> dict[str, Any]:
        kind = "preview" if isinstance(event, Preview) else "round"
        own = {"partial_image_index": index, "turn": event.turn, "kind": kind}
        return self.event("partial_image", number, await self.encoded(event.image)) | own

    async def completed(self, number: int, trajectory: Trajectory, image: Image) -> dict[str, Any]:
        job = self.started.jobs[number]
        own = {
            "usage": usage(self.started.model.pipe, [job], [trajectory]).model_dump(),
            "revised_prompt": revised_prompt(trajectory),
            "irg": irg_answer(job, trajectory).model_dump(exclude_none=True),
        }
        return self.event("completed", number, await self.encoded(image)) | own

    def event(self, kind: str, number: int, content: bytes) -> dict[str, Any]:
        return {
            "type": f"{self.event_type}.{kind}",
            "b64_json": base64_of(content),
            "created_at": now(),
            "size": size_of(self.started.jobs[number]),
            "quality": self.fields.quality or "auto",
            "background": "opaque",
            "output_format": self.format,
            "image_index": number,
        }

    def text(self, number: int, event: TextDelta | TextDone) -> dict[str, Any]:
        ending = ("delta", "delta") if isinstance(event, TextDelta) else ("done", "text")
        own = {ending[1]: event.text, "turn": event.turn, "image_index": number}
        return {"type": f"{self.event_type}.{event.kind}.{ending[0]}"} | own

    def verdict(self, number: int, turn: int, said: Verdict) -> dict[str, Any]:
        """A critic's verdict on the newest image, or on what the model says that it sees in it."""
        own = {"wrong": said.wrong, "change": said.change, "done": said.done, "score": said.score}
        return {"type": f"{self.event_type}.verdict", "turn": turn, "image_index": number} | own


async def _answer(request: Request, fields: ImageRequest, task: Task, images: Sequence[Image]) -> Response:
    if fields.stream and fields.response_format == "url":
        raise invalid("a stream has its images inside: response_format must be b64_json", "response_format")
    if fields.response_format == "url" and not service_of(request).options.store_urls:
        raise invalid("this server keeps no images: response_format must be b64_json", "response_format")
    started = await start(
        request,
        fields,
        fields.model,
        fields.prompt,
        count=fields.n or 1,
        size=fields.size,
        quality=fields.quality,
        task=task,
        images=images,
        partial_images=(fields.partial_images or 0) if fields.stream else 0,
        texts=bool(fields.stream and fields.stream_thinking),
    )
    delivery = _Delivery(started, fields, "image_edit" if images else "image_generation")
    if fields.stream:
        return stream(delivery.events(), started.service.options)
    return await delivery.whole()
