"""A request of the page, from its form to what is shown while it runs. Knows no gradio."""

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync
from PIL.Image import Image
from pydantic import ValidationError

from irg.critics import Verdict
from irg.engine.events import ImageDone, TextDelta, TextDone, WaitDone
from irg.reasoning.events import Finished
from irg.reasoning.protocols.base import Task
from irg.results.trajectory import Trajectory
from irg.serving.async_engine import Told
from irg.serving.errors import ApiError, invalid, of_validation
from irg.serving.image_data import decode
from irg.serving.schemas import Generation
from irg.serving.service import Service

SHOW_EVERY_S = 0.15
"""Texts grow token by token; the page is told no more often than this."""
WRITING = {"reflection": "Looking at the image, reflecting ...", "check": "Checking ..."}
"""What is done while a text of a kind is written; of others: thinking."""


@dataclass(frozen=True)
class Form:
    """What the page's form holds.

    Attributes:
        image: the file of the given image, for every task but ``generate``.
        settings: settings by name, as in a request to the API; those that are None are the model's own.
    """

    prompt: str
    task: Task = "generate"
    image: bytes | None = None
    count: int = 1
    size: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Progress:
    """What is to be seen of a request so far. Texts and rounds are those of its first image.

    Attributes:
        texts: by turn, what was written before its image: the thinking, then the reflections. Some protocols write
            several texts for an image, and a critic's verdict on the image before stands among them.
        rounds: images by turn, as they were drawn.
        finished: results by their number.
    """

    status: str = ""
    texts: dict[int, list[str]] = field(default_factory=dict)
    rounds: dict[int, Image] = field(default_factory=dict)
    finished: dict[int, Trajectory] = field(default_factory=dict)
    _writing: bool = False

    def text(self, turn: int) -> str:
        """What was written for an image so far."""
        return "\n\n".join(self.texts.get(turn, []))

    def take(self, event: Told) -> None:
        """Add what happened."""
        if isinstance(event, Finished):
            self.finished[event.request] = event.trajectory
        elif event.request > 0:
            return
        elif isinstance(event, TextDelta):
            own = self.texts.setdefault(event.turn, [])
            if not self._writing:
                own.append("")
                self._writing = True
            own[-1] += event.text
            self.status = WRITING.get(event.kind, "Thinking ...")
        elif isinstance(event, TextDone):
            own = self.texts.setdefault(event.turn, [])
            own[len(own) - self._writing :] = [event.text]
            self._writing = False
            self.status = "Drawing ..."
        elif isinstance(event, WaitDone):
            if isinstance(event.result, Verdict):
                self.texts.setdefault(event.turn, []).append(f"The critic on image {event.turn}: {event.result.found}")
        elif isinstance(event, ImageDone):
            self.rounds[event.turn] = event.image
            self.status = f"Image {len(self.rounds)} is drawn."


async def run(service: Service, form: Form) -> AsyncGenerator[Progress]:
    """Carry a request out; yields the same object whenever there is more to show. Closing it drops the request.

    Raises:
        ApiError: the request is not usable, can't be taken now, or failed.
    """
    model = service.loaded()
    if not form.prompt.strip():
        raise invalid("write what to draw first", "prompt")
    limits = service.options.limits
    if len(form.prompt.encode("utf-8", "surrogateescape")) > limits.max_prompt_bytes:
        raise invalid(f"the prompt has more than {limits.max_prompt_bytes} bytes", "prompt", "limit_exceeded")
    if form.task != "generate" and form.image is None:
        raise invalid("choose an image of yours first", "image")
    try:
        fields = Generation(**{name: value for name, value in form.settings.items() if value is not None})
    except ValidationError as error:
        raise of_validation(error.errors()) from None
    images = []
    if form.task != "generate":
        assert form.image is not None
        images = [await run_sync(decode, form.image, limits.max_input_pixels, "image")]
    size = None if form.size == "auto" else form.size
    own: dict[str, Any] = {"count": form.count, "size": size, "task": form.task}
    with model.engine.arriving():
        searches = await run_sync(lambda: model.translator.jobs(fields, form.prompt, images=images, **own))
        submission = model.engine.submit(searches, limits.timeout_s, texts=True)
    progress, shown = Progress("Waiting ..."), 0.0
    try:
        yield progress
        async for event in submission.events():
            progress.take(event)
            now = time.monotonic()
            if isinstance(event, TextDelta) and now - shown < SHOW_EVERY_S:
                continue
            shown = now
            yield progress
    finally:
        submission.cancel()


def sentence(error: Exception) -> str:
    """An error as a sentence for the page. What went wrong inside the server is for its log."""
    text = str(error) if isinstance(error, ApiError) else "something went wrong; the server's log says what"
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
