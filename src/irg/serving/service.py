"""What the routes share: the model once it is there, options, keys, metrics, stored images."""

import asyncio
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from irg.reasoning.events import Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.results.trajectory import Trajectory
from irg.serving.async_engine import AsyncEngine, Submission
from irg.serving.auth import ApiKeys
from irg.serving.errors import ApiError
from irg.serving.metrics import Metrics
from irg.serving.options import ServerOptions
from irg.serving.request_settings import Translator
from irg.serving.urls import ImageStore

Load = Callable[[], IRGPipeline]


@dataclass
class Model:
    """A loaded model and what runs it."""

    pipe: IRGPipeline
    engine: AsyncEngine
    translator: Translator


@dataclass
class Service:
    """One server's state.

    Attributes:
        load: reads the model; called once, in a thread of its own.
        model: None until the weights are in.
        problem: why loading failed.
    """

    load: Load
    options: ServerOptions
    keys: ApiKeys
    metrics: Metrics = field(default_factory=Metrics)
    model: Model | None = None
    problem: BaseException | None = None
    draining: bool = False

    def __post_init__(self) -> None:
        limits = self.options.limits
        self.store = ImageStore(int(limits.url_store_mb * 1e6), limits.url_ttl_s)

    def start(self, done: Callable[[], None]) -> None:
        """Begin to load the model; ``done`` is called in the loading thread when it is there, or can't be."""

        def work() -> None:
            self.load_now()
            done()

        threading.Thread(target=work, name="irg-load", daemon=True).start()

    def load_now(self) -> None:
        """Load the model in this thread; ``problem`` is set if it can't be."""
        try:
            pipe = self.load()
            limits = self.options.limits
            engine = AsyncEngine(pipe, limits.max_running, limits.max_waiting, self.metrics)
            self.model = Model(pipe, engine, Translator(pipe, self.options))
        except BaseException as error:
            self.problem = error

    @property
    def page(self) -> bool:
        """Whether there is a web page: installed, wanted, and no key is needed, which a browser would not send."""
        return self.options.page and not self.keys and importlib.util.find_spec("gradio") is not None

    @property
    def ready(self) -> bool:
        """Whether requests can be taken."""
        return self.model is not None and self.model.engine.alive and not self.draining

    def loaded(self) -> Model:
        """The model.

        Raises:
            ApiError: it is not there yet.
        """
        if self.model is None:
            self.metrics.rejections.labels("loading").inc()
            raise ApiError(503, "the model is still being loaded", code="loading", headers={"retry-after": "5"})
        return self.model

    def drain(self) -> None:
        """Take no new requests; see :meth:`AsyncEngine.drain`."""
        self.draining = True
        if self.model is not None:
            self.model.engine.drain()

    async def close(self) -> None:
        """Drop what still runs."""
        if self.model is not None:
            await asyncio.to_thread(self.model.engine.close)

    def scrape(self) -> bytes:
        """The page of metrics."""
        if self.model is not None:
            running, waiting = self.model.engine.sizes
            self.metrics.running.set(running)
            self.metrics.waiting.set(waiting)
            self.metrics.cache_tokens.set(self.model.pipe.engine.runner.cache.tokens)
            for phase, seconds in self.model.pipe.engine.seconds.items():
                self.metrics.engine_seconds.labels(phase).set(seconds)
        return self.metrics.text()


def service_of(request: Request) -> Service:
    """The state of the server that got a request."""
    service: Service = request.app.state.service
    return service


class ClientGone(ApiError):
    """Nobody waits for the answer any more; the status is for the log."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection", code="client_closed_request")


async def disconnected(request: Request) -> None:
    """Wait until the client is gone. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def collect(request: Request, submission: Submission) -> list[Trajectory]:
    """All results of a submission in the order of its jobs; they are dropped if the client goes.

    Raises:
        ApiError: a job failed, the time is up, the server ends, or the client is gone.
    """
    found: dict[int, Trajectory] = {}

    async def gather() -> None:
        async for event in submission.events():
            if isinstance(event, Finished):
                found[event.request] = event.trajectory

    work, gone = asyncio.create_task(gather()), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone()
        work.result()
    finally:
        submission.cancel()
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
    return [found[number] for number in range(submission.count)]
