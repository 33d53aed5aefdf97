"""What every route does between a checked body and its answer: jobs, queue, log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from PIL.Image import Image
from starlette.requests import Request

from irg.engine.events import ImageDone
from irg.reasoning.protocols.base import Job, Task
from irg.reasoning.search import Searching
from irg.serving.async_engine import Preview, Submission
from irg.serving.costs import updates
from irg.serving.previews import preview_steps
from irg.serving.schemas import Generation
from irg.serving.service import Model, Service, service_of


@dataclass
class Started:
    """A request on its way.

    Attributes:
        jobs: one for each image or answer, in the order of their seeds.
    """

    request: Request
    service: Service
    model: Model
    jobs: list[Job]
    submission: Submission

    def is_partial(self, event: ImageDone | Preview) -> bool:
        """Whether more images are to come after this one: it is a preview, or that of a round before the last."""
        job = self.jobs[event.request]
        return isinstance(event, Preview) or event.turn < len(job.images) + len(updates(job)) - 1


async def start(
    request: Request,
    fields: Generation,
    name: str | None,
    prompt: str,
    *,
    count: int = 1,
    size: str | None = None,
    quality: str | None = None,
    task: Task = "generate",
    images: Sequence[Image] = (),
    given: dict[str, Any] | None = None,
    partial_images: int = 0,
    texts: bool = False,
) -> Started:
    """Check a request, make its jobs and queue them.

    Args:
        name: of the model, as the request gives it.
        given: settings by name over the model's own, under the request's.
        partial_images: those beyond the images of the rounds are previews.
        texts: whether texts are wanted as they are written.

    Raises:
        ApiError: the request is not usable, or can't be taken now.
    """
    service = service_of(request)
    model = service.loaded()
    model.translator.check_model(name)

    def make() -> list[Searching]:
        own: dict[str, Any] = {"count": count, "size": size, "quality": quality, "task": task, "images": images}
        return model.translator.jobs(fields, prompt, **own, given=given)

    with model.engine.arriving():
        searches = await run_sync(make)
        jobs = [searching.attempts[0].job for searching in searches]
        request.state.log |= {"task": task, "images": len(jobs), "size": f"{jobs[0].width}x{jobs[0].height}"}
        request.state.log["prompt"] = prompt
        drawn = updates(jobs[0])
        previews = preview_steps(drawn, max(0, partial_images - (len(drawn) - 1)))
        submission = model.engine.submit(searches, service.options.limits.timeout_s, previews, texts)
    return Started(request, service, model, jobs, submission)
