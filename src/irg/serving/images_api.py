"""``/v1/images/generations`` and ``/v1/images/edits``: as OpenAI's, streamed as the loop goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter
from PIL.Image import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from irg.engine.events import ImageDone, TextDelta, TextDone
from irg.reasoning.events import Finished
from irg.reasoning.protocols.base import Job, Task
from irg.reasoning.search import Searching
from irg.results.trajectory import Trajectory
from irg.serving.answers import ImageAnswer, ImagesAnswer, irg_answer, now, revised_prompt, size_of, usage
from irg.serving.async_engine import Preview, Submission
from irg.serving.costs import updates
from irg.serving.documentation import ERRORS, STREAM, form_of
from irg.serving.errors import ApiError, invalid
from irg.serving.image_data import MEDIA_TYPES, OutputFormat, base64_of, decode, encode
from irg.serving.previews import preview_steps
from irg.serving.schemas import EditRequest, ImageRequest, from_form, unnested
from irg.serving.service import Model, Service, collect, service_of
from irg.serving.sse import Events, stream

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

    request: Request
    service: Service
    model: Model
    fields: ImageRequest
    jobs: list[Job]
    event_type: str

    @property
    def format(self) -> OutputFormat:
        return self.fields.output_format or "png"

    async def encoded(self, image: Image) -> bytes:
        compression = self.fields.output_compression
        return await run_sync(encode, image, self.format, 100 if compression is None else compression)

    async def image_answer(self, job: Job, trajectory: Trajectory) -> ImageAnswer:
        assert trajectory.image is not None
        content = await self.encoded(trajectory.image)
        place = {"b64_json": base64_of(content)}
        if self.fields.response_format == "url":
            place = {"url": self.url(content)}
        return ImageAnswer(**place, revised_prompt=revised_prompt(trajectory), irg=irg_answer(job, trajectory))

    def url(self, content: bytes) -> str:
        name = self.service.store.add(content, MEDIA_TYPES[self.format])
        base = self.service.options.public_url or str(self.request.base_url)
        return f"{base.rstrip('/')}{FILES}/{name}"

    async def whole(self, submission: Submission) -> Response:
        """Everything in one answer."""
        trajectories = await collect(self.request, submission)
        data = [await self.image_answer(job, one) for job, one in zip(self.jobs, trajectories, strict=True)]
        answer = ImagesAnswer(
            created=now(),
            data=data,
            output_format=self.format,
            quality=self.fields.quality or "auto",
            size=size_of(self.jobs[0]),
            usage=usage(self.model.pipe, self.jobs, trajectories),
        )
        return JSONResponse(answer.model_dump(exclude_none=True))

    async def events(self, submission: Submission) -> Events:
        """Images of all rounds as they are finished, previews, texts; then what is completed."""
        partials = [0] * len(self.jobs)
        last_turn = [len(updates(job)) - 1 for job in self.jobs]
        async for event in submission.events():
            number = event.request
            job = self.jobs[number]
            if isinstance(event, Finished):
                yield await self.completed(number, job, event.trajectory)
            elif isinstance(event, TextDelta | TextDone):
                yield self.text(number, event)
            else:
                final = isinstance(event, ImageDone) and event.turn - len(job.images) >= last_turn[number]
                if not final and partials[number] < self.most_partials():
                    yield await self.partial(number, job, event, partials[number])
                    partials[number] += 1

    def most_partials(self) -> int:
        asked = self.fields.partial_images
        return 1000 if asked is None else asked

    async def partial(self, number: int, job: Job, event: ImageDone | Preview, index: int) -> dict[str, Any]:
        kind = "preview" if isinstance(event, Preview) else "round"
        own = {"partial_image_index": index, "turn": event.turn, "kind": kind}
        return self.event("partial_image", number, job, await self.encoded(event.image)) | own

    async def completed(self, number: int, job: Job, trajectory: Trajectory) -> dict[str, Any]:
        assert trajectory.image is not None
        own = {
            "usage": usage(self.model.pipe, [job], [trajectory]).model_dump(),
            "revised_prompt": revised_prompt(trajectory),
            "irg": irg_answer(job, trajectory).model_dump(exclude_none=True),
        }
        return self.event("completed", number, job, await self.encoded(trajectory.image)) | own

    def event(self, kind: str, number: int, job: Job, content: bytes) -> dict[str, Any]:
        return {
            "type": f"{self.event_type}.{kind}",
            "b64_json": base64_of(content),
            "created_at": now(),
            "size": size_of(job),
            "quality": self.fields.quality or "auto",
            "background": "opaque",
            "output_format": self.format,
            "image_index": number,
        }

    def text(self, number: int, event: TextDelta | TextDone) -> dict[str, Any]:
        reflects = event.turn and self.jobs[number].task in ("generate", "improve")
        kind = "reflection" if reflects else "thinking"
        ending = ("delta", "delta") if isinstance(event, TextDelta) else ("done", "text")
        own = {ending[1]: event.text, "turn": event.turn, "image_index": number}
        return {"type": f"{self.event_type}.{kind}.{ending[0]}"} | own


async def _answer(request: Request, fields: ImageRequest, task: Task, images: Sequence[Image]) -> Response:
    service = service_of(request)
    model = service.loaded()
    model.translator.check_model(fields.model)
    if fields.stream and fields.response_format == "url":
        raise invalid("a stream has its images inside: response_format must be b64_json", "response_format")

    def make() -> list[Searching]:
        return model.translator.jobs(
            fields,
            fields.prompt,
            count=fields.n or 1,
            size=fields.size,
            quality=fields.quality,
            task=task,
            images=images,
        )

    searches = await run_sync(make)
    jobs = [searching.attempts[0].job for searching in searches]
    request.state.log |= {"images": len(jobs), "size": size_of(jobs[0]), "prompt": fields.prompt}
    delivery = _Delivery(request, service, model, fields, jobs, "image_edit" if images else "image_generation")
    timeout_s = service.options.limits.timeout_s
    if not fields.stream:
        return await delivery.whole(model.engine.submit(searches, timeout_s))
    drawn = updates(jobs[0])
    extra = max(0, (fields.partial_images or 0) - (len(drawn) - 1))
    submission = model.engine.submit(searches, timeout_s, preview_steps(drawn, extra), bool(fields.stream_thinking))
    return stream(delivery.events(submission), service.options)
