"""The engine for asyncio: one thread takes its turns, a bounded queue stands in front, events come as they happen.

All HTTP requests share one session of the engine; each image or answer is a request of it, which joins between turns.
So one thread is enough whatever the number of clients, and nobody is woken for another's events.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from PIL.Image import Image

from irg.engine.engine import Session
from irg.engine.events import (
    DenoiseStep,
    EngineEvent,
    ImageDone,
    RequestDone,
    RequestFailed,
    TextDelta,
    TextDone,
    WaitDone,
)
from irg.engine.request import Request
from irg.reasoning.events import Failed, Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job
from irg.reasoning.search import Searching
from irg.serving.costs import work
from irg.serving.errors import ApiError, failed, timed_out
from irg.serving.metrics import Metrics
from irg.serving.previews import Previewer

_log = logging.getLogger("irg.serve")
OVERTAKING = 2.0
"""A job may be overtaken by those that arrive within so many times its own estimated seconds."""
JOIN_S = 0.002
"""An idle engine begins when no request has arrived for so long: what is begun together stays in step, so that its
steps and its decoding are one forward to the end."""
JOIN_MOST_S = 0.02
"""It waits no longer than this, whatever arrives."""


@dataclass(frozen=True)
class Preview:
    """A picture of an image that is still being denoised."""

    request: int
    turn: int
    image: Image


Told = TextDelta | TextDone | ImageDone | WaitDone | Preview | Finished
"""What a submission's owner gets; ``request`` is the number among the jobs of the submission."""


class _Refused(Exception):
    """The server is ending; the job had not begun."""


@dataclass(eq=False)
class _Task:
    """One job of a submission, on its way: a candidate of it is a request of the engine."""

    submission: "Submission"
    number: int
    searching: Searching
    previews: frozenset[tuple[int, int]]
    arrived: float
    previewer: Previewer = field(default_factory=Previewer)
    begun: float = 0.0

    @property
    def job(self) -> Job:
        return self.searching.attempts[0].job


@dataclass(eq=False)
class _Attempt:
    """A candidate that waits or runs."""

    task: _Task
    candidate: int
    work: float
    request: Request | None = None  # of the engine, once it runs
    begun: float = 0.0


class Submission:
    """Jobs of one HTTP request. Iterate :meth:`events` once; :meth:`cancel` drops what is not finished."""

    def __init__(self, engine: "AsyncEngine", count: int, texts: bool, timeout_s: float) -> None:
        self.count, self.texts = count, texts
        self._engine, self._timeout_s = engine, timeout_s
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._events: asyncio.Queue[Told | BaseException] = asyncio.Queue()
        self.open: set[_Task] = set()  # guarded by the engine's lock
        self.begun = False

    async def events(self) -> AsyncIterator[Told]:
        """What happens, until every job is finished.

        Raises:
            ApiError: a job failed, the time is up, or the server ends before the jobs have begun.
        """
        missing = self.count
        try:
            while missing:
                event = await self._next()
                missing -= isinstance(event, Finished)
                yield event
        finally:
            self.cancel()

    async def _next(self) -> Told:
        try:
            async with asyncio.timeout_at(self._deadline):
                event = await self._events.get()
        except TimeoutError:
            self._engine.metrics.stops.labels("timeout").inc()
            raise timed_out(self._timeout_s, self.begun) from None
        if isinstance(event, _Refused):
            raise ending()
        if isinstance(event, BaseException):
            raise failed(event)
        return event

    def tell(self, event: Told | BaseException) -> None:
        """Give an event to the owner; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def cancel(self) -> None:
        """Drop what is not finished: its rows of the cache are free with the current turn. Allowed at any time."""
        self._engine.cancel(self)


def ending() -> ApiError:
    """The answer to requests that a server which is ending does not begin."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"retry-after": "5"})


class AsyncEngine:
    """Runs jobs of a pipeline for any number of submissions."""

    def __init__(self, pipe: IRGPipeline, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self.pipe, self.metrics = pipe, metrics
        self.max_running, self.max_waiting = pipe.max_concurrent_requests(max_running), max_waiting
        self._changed = threading.Condition()  # guards what follows
        self._waiting: list[tuple[float, int, _Attempt]] = []  # a heap by the time at which an attempt is due
        self._running: dict[int, _Attempt] = {}
        self._numbers = itertools.count()
        self._arriving = 0  # requests that are being made into jobs
        self._arrived = 0.0  # when the last one was seen
        self._session: Session = pipe.engine.session()
        self._seconds_per_work = 1e-4  # measured as attempts finish
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="irg-engine", daemon=True)
        self._thread.start()

    # ---- for the event loop

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        """Around what makes a request's jobs and submits them: an idle engine waits a moment for them."""
        with self._changed:
            self._arriving += 1
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1
                self._arrived = time.monotonic()
                self._changed.notify_all()

    def submit(
        self,
        searches: Sequence[Searching],
        timeout_s: float,
        previews: frozenset[tuple[int, int]] = frozenset(),
        texts: bool = False,
    ) -> Submission:
        """Queue jobs (``pipe.requests.searching(job)`` each), all or none.

        Args:
            previews: (turn, step) of the pictures that are wanted of images being denoised.
            texts: whether the model's texts are wanted as they are written.

        Raises:
            ApiError: the queue is full, or the server is ending.
        """
        submission = Submission(self, len(searches), texts, timeout_s)
        with self._changed:
            if self._draining or self._closed:
                self.metrics.rejections.labels("shutting_down").inc()
                raise ending()
            free = self.max_running - len(self._running)
            if len(self._waiting) + sum(len(one.attempts) for one in searches) > self.max_waiting + free:
                self.metrics.rejections.labels("queue_full").inc()
                headers = {"retry-after": str(self._retry_after())}
                raise ApiError(429, "too many requests are waiting", code="queue_full", headers=headers)
            for number, searching in enumerate(searches):
                self._queue(_Task(submission, number, searching, previews, time.monotonic()))
            self._admit()
        return submission

    def cancel(self, submission: Submission) -> None:
        """Drop a submission's unfinished jobs."""
        with self._changed:
            dropped, submission.open = submission.open, set()
            if not dropped:
                return
            self._waiting = [entry for entry in self._waiting if entry[2].task not in dropped]
            heapq.heapify(self._waiting)
            for number in [number for number, attempt in self._running.items() if attempt.task in dropped]:
                request = self._running.pop(number).request
                assert request is not None
                self._session.cancel(request)
            self.metrics.stops.labels("cancelled").inc(len(dropped))
            self._admit()

    def drain(self) -> None:
        """Take no new jobs, refuse those of submissions that have not begun, and finish the others."""
        with self._changed:
            self._draining = True
            waiting = {attempt.task.submission for _, _, attempt in self._waiting}
        for submission in waiting:
            if not submission.begun:
                self.cancel(submission)
                submission.tell(_Refused())

    def close(self) -> None:
        """Drop everything and end the thread."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
        self._session.close()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread that takes turns is there."""
        return self._thread.is_alive()

    @property
    def sizes(self) -> tuple[int, int]:
        """(running, waiting) attempts."""
        with self._changed:
            return len(self._running), len(self._waiting)

    # ---- the queue; the caller holds the lock

    def _queue(self, task: _Task) -> None:
        task.submission.open.add(task)
        for k, attempt in enumerate(task.searching.attempts):
            amount = work(attempt.job, self.pipe.config)
            due = task.arrived + OVERTAKING * amount * self._seconds_per_work
            heapq.heappush(self._waiting, (due, next(self._numbers), _Attempt(task, k, amount)))

    def _retry_after(self) -> int:
        """Seconds until there should be room."""
        queued = sum(attempt.work for _, _, attempt in self._waiting) / self.max_running
        return min(60, max(1, round(queued * self._seconds_per_work)))

    def _admit(self) -> None:
        """Let the attempts that are due first join the engine's next turn."""
        while self._waiting and len(self._running) < self.max_running and not self._closed:
            _, number, attempt = heapq.heappop(self._waiting)
            attempt.begun = time.monotonic()
            task = attempt.task
            if not task.begun:
                task.begun = attempt.begun
                task.submission.begun = True
                self.metrics.stage_seconds.labels("queue").observe(task.begun - task.arrived)
            self._running[number] = attempt
            attempt.request = self.pipe.requests.begin(self._session, task.searching, attempt.candidate, number)
            self._changed.notify_all()

    # ---- the thread

    def _run(self) -> None:
        """Turns of the engine as long as there is work."""
        try:
            while self._wait_for_work():
                for event in self._session:
                    self._handle(event)
        except BaseException as error:
            _log.exception("the engine's thread ended")
            with self._changed:
                self._closed = True
                attempts = [*self._running.values(), *(attempt for _, _, attempt in self._waiting)]
                self._running.clear()
                self._waiting.clear()
            for submission in {attempt.task.submission for attempt in attempts}:
                submission.tell(error)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._running and not self._closed:
                self._changed.wait()
            self._let_join()
            return not self._closed

    def _let_join(self) -> None:
        """Wait a moment for requests that arrive together with the first; the caller holds the lock."""
        now = time.monotonic()
        end, self._arrived = now + JOIN_MOST_S, now
        while len(self._running) < self.max_running and not self._closed:
            until = end if self._arriving else min(end, self._arrived + JOIN_S)
            left = until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _handle(self, event: EngineEvent) -> None:
        """Pass an engine's event on to its owner."""
        with self._changed:
            attempt = self._running.get(event.request)
        if attempt is None:  # cancelled meanwhile
            return
        task = attempt.task
        if isinstance(event, RequestDone | RequestFailed):
            self._end(attempt, event)
        elif attempt.candidate > 0:  # seen at the end alone
            return
        elif isinstance(event, DenoiseStep):
            self._preview(task, event)
        elif isinstance(event, ImageDone) or task.submission.texts:
            task.submission.tell(replace(event, request=task.number))

    def _end(self, attempt: _Attempt, event: RequestDone | RequestFailed) -> None:
        """An attempt ended: its place is free, its images are scored, and with the last one its job is done."""
        searching = attempt.task.searching
        self.pipe.requests.ended(searching, attempt.candidate, event)
        with self._changed:
            self._running.pop(event.request, None)
            if isinstance(event, RequestDone):
                measured = (time.monotonic() - attempt.begun) / attempt.work / (len(self._running) + 1)
                self._seconds_per_work += 0.2 * (measured - self._seconds_per_work)
            self._admit()
        for score in searching.attempts[attempt.candidate].scores:
            if score is not None and not score.done():
                score.add_done_callback(lambda _: self._finish(attempt.task))
        self._finish(attempt.task)

    def _finish(self, task: _Task) -> None:
        """Tell a job's result once all its candidates have ended and their scores are there; in any thread."""
        with self._changed:
            if not task.searching.ready or task not in task.submission.open:
                return
            task.submission.open.discard(task)
        told = self.pipe.requests.result(task.number, task.searching)
        if isinstance(told, Failed):
            self.metrics.stops.labels("failed").inc()
            _log.error("a request failed while it ran", exc_info=told.error.__cause__)
            task.submission.tell(told.error.__cause__ or told.error)
            return
        self.metrics.finished(told.trajectory, time.monotonic() - task.begun)
        task.submission.tell(told)

    def _preview(self, task: _Task, event: DenoiseStep) -> None:
        if not task.previews:
            return
        guess_ND = task.previewer.guess(event)
        job = task.job
        if guess_ND is not None and (event.turn - len(job.images), event.step) in task.previews:
            picture = self.pipe.engine.decode_latents(guess_ND, job.height, job.width)
            task.submission.tell(Preview(task.number, event.turn, picture))
