"""The engine and its sessions: any number of callers, in any number of threads, share one model.

Nothing runs by itself: a thread that wants the next event of its session takes a turn of the engine, which advances the
requests of all sessions, or waits while another thread takes one. Without callers the engine does nothing at all.
``docs/engine.md`` has the rules.
"""

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from PIL.Image import Image
from torch import Tensor

from irg.engine.events import EngineEvent, RequestFailed
from irg.engine.ngram_drafter import NgramDrafter
from irg.engine.ops import Look, Program, Say, Wait
from irg.engine.request import Request
from irg.engine.runner import Runner
from irg.engine.scheduler import Scheduler
from irg.model.placement.kv_cache_size import RowKind
from irg.model.weights.tokenizer import TextTokenizer
from irg.randomness import generator
from irg.sequence.images import to_image, unpatchify


class Engine:
    """Runs programs on one model."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: TextTokenizer | None = None,
        draft_texts: Sequence[str] = (),
        speculative: bool = True,
        max_concurrent_requests: int | None = None,
    ) -> None:
        """Args:
            draft_texts: example texts of the kind that the model writes, for speculative decoding
                (:mod:`irg.engine.ngram_drafter`), which ``speculative`` turns on.
            max_concurrent_requests: of all sessions together; the others wait, sessions take turns.

        Raises:
            ValueError: the limit is not a whole number of at least 1.
        """
        self.runner, self.tokenizer = runner, tokenizer
        self._limit = _checked_limit(max_concurrent_requests)
        drafter = None
        if speculative:
            special = runner.grammar.special
            encoded = [tokenizer.encode(text) for text in draft_texts] if tokenizer is not None else []
            drafter = NgramDrafter([(special.bos, *ids, special.eos) for ids in encoded])
        self.scheduler = Scheduler(runner, tokenizer, drafter)
        self._changed = threading.Condition()  # guards what follows, all sessions, and Request.cancelled
        self._turn_thread: int | None = None  # the thread that uses the model now
        self._sessions: dict[Session, None] = {}  # those with open requests, in order
        self._owners: dict[Request, Session] = {}  # of the running requests

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent so far, by phase."""
        return self.scheduler.times.seconds

    def session(self, max_concurrent_requests: int | None = None) -> "Session":
        """A session for one caller. At most ``max_concurrent_requests`` of its requests run at a time, the others wait.

        Raises:
            ValueError: the limit is not a whole number of at least 1.
        """
        return Session(self, max_concurrent_requests)

    def run(self, programs: Iterable[tuple[Program, int]]) -> list[Any]:
        """Run (program, seed) pairs to their ends and return their values in order; the first error is raised."""
        with self.session() as session:
            requests = [session.add(program, seed) for program, seed in programs]
            for event in session:
                if isinstance(event, RequestFailed):
                    raise event.error
            return [request.result for request in requests]

    def score(self, ops: Sequence[Say | Look], ids: Sequence[int], seed: int = 0) -> Tensor:
        """How likely the model finds a given text after ``ops``: logits before each of its tokens and before its eos,
        float32 [len(ids) + 1, V]."""
        with self._model():
            context, random = self.runner.cache.new(), generator(seed)
            try:
                for op in ops:
                    self.runner.extend([(context, self.scheduler.prefiller.parts_of(op, random))])
                return self.runner.feed([context], [[self.runner.grammar.special.bos, *ids]])[0]
            finally:
                self.runner.cache.free(context)

    def decode_latents(self, latents_ND: Tensor, height: int, width: int) -> Image:
        """The picture of an image's latent tokens [N, D] (:class:`DenoiseStep` has such), made between two turns."""
        config = self.runner.config
        grid = (height // config.image_stride, width // config.image_stride)
        with self._model(), torch.inference_mode():
            latents = unpatchify(latents_ND, grid, config.latent_patch_size)
            return to_image(self.runner.decode_latents(latents[None])[0])

    # ---- turns

    def step(self) -> None:
        """Take a turn, or wait until the turn that another thread is taking is over."""
        mine = False
        try:
            with self._changed:
                self._check_thread()
                if self._turn_thread is not None:
                    self._changed.wait()
                    return
                self._admit()
                if waiting := self.scheduler.waiting:
                    self._sleep_until_done(waiting)
                    return
                self._turn_thread, mine = threading.get_ident(), True
            self.scheduler.turn()
        finally:
            if mine:
                self._end_turn()

    def _sleep_until_done(self, waiting: Sequence[Request]) -> None:
        """Sleep until one of the futures that requests wait for is done, or a session changes."""
        for request in waiting:
            assert isinstance(request.op, Wait)
            if request.op is not request.watched:
                request.watched = request.op
                request.op.future.add_done_callback(self._wake)
        if self.scheduler.waiting:  # still
            self._changed.wait()

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def _model(self) -> Iterator[None]:
        """The model for this thread alone, as soon as no turn is being taken."""
        with self._changed:
            self._check_thread()
            while self._turn_thread is not None:
                self._changed.wait()
            self._turn_thread = threading.get_ident()
        try:
            yield
        finally:
            self._end_turn()

    def _check_thread(self) -> None:
        if self._turn_thread == threading.get_ident():
            raise RuntimeError("a program can't run the engine that runs it")

    def _admit(self) -> None:
        """Let waiting requests join, one of each session after the other."""
        waiting = deque(self._sessions)
        while waiting and len(self.scheduler.running) < self._limit:
            session = waiting.popleft()
            if (request := session.take_waiting()) is not None:
                self._owners[request] = session
                self.scheduler.add(request)
                self._sessions[session] = self._sessions.pop(session)  # the last to be served next time
                waiting.append(session)

    def _end_turn(self) -> None:
        """Close what ended, deliver the events, and let the next thread take its turn."""
        try:
            while self._turn_thread == threading.get_ident():
                self._close_and_deliver()
        except BaseException:
            self._release()
            raise

    def _close_and_deliver(self) -> None:
        ended = self.scheduler.take_ended()
        try:
            for request in ended:
                request.close()
        finally:
            with self._changed:
                for request in self.scheduler.running:
                    self._owners[request].deliver(request)
                for request in ended:
                    self._owners.pop(request).deliver(request, ended=True)
                if not any(request.cancelled for request in self.scheduler.running):  # since take_ended
                    self._release()

    def _release(self) -> None:
        with self._changed:
            self._turn_thread = None
            self._changed.notify_all()

    def _close_cancelled(self, wait: bool) -> None:
        """Close cancelled requests: now, or at the end of the current turn, which ``wait`` waits for."""
        with self._changed:
            while self._turn_thread is not None:
                if not wait or self._turn_thread == threading.get_ident():
                    return
                self._changed.wait()
            self._turn_thread = threading.get_ident()
        self._end_turn()


class Session:
    """One caller's requests on a shared engine; an iterator over their events.

    Iterating ends when no request is left, and goes on when more were added. All methods may be called from any thread.
    """

    def __init__(self, engine: Engine, max_concurrent_requests: int | None = None) -> None:
        self._engine, self._limit = engine, _checked_limit(max_concurrent_requests)
        self._changed = engine._changed
        self._open: set[Request] = set()  # waiting or running, not cancelled
        self._waiting: deque[Request] = deque()
        self._running = self._added = 0
        self._events: deque[tuple[Request, EngineEvent]] = deque()
        self._closed = False

    def add(
        self,
        program: Program,
        seed: int | torch.Generator,
        index: int | None = None,
        turn: int = 0,
        expected_slots: Sequence[int] = (0,) * len(RowKind),
    ) -> Request:
        """A request, which joins at the next turn.

        Args:
            seed: of its random numbers, or a CPU generator that it alone uses until it ends.
            index: the number in its events, by default 0, 1, ...
            turn: that of its first image.
            expected_slots: what its rows of the cache will probably need, which are then allocated once
                (:func:`irg.model.placement.kv_cache_size.request_slots`).

        Raises:
            RuntimeError: the session is closed.
            ValueError: the seed is out of range.
        """
        number, cache = self._added if index is None else index, self._engine.runner.cache
        request = Request(number, program, seed, cache, turn, expected_slots=expected_slots)
        with self._changed:
            if self._closed:
                raise RuntimeError("this session is closed")
            self._open.add(request)
            self._waiting.append(request)
            self._added += 1
            self._engine._sessions[self] = None
            self._changed.notify_all()  # the engine may be asleep
        return request

    @property
    def unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    def __iter__(self) -> Iterator[EngineEvent]:
        return self

    def __next__(self) -> EngineEvent:
        """The next event of this session's requests; runs the engine until there is one."""
        while True:
            with self._changed:
                if self._events:
                    return self._events.popleft()[1]
                if not self._open:
                    raise StopIteration
            self._engine.step()

    def cancel(self, request: Request) -> None:
        """Drop a request: no event of it comes any more, and its program ends with the current turn at the latest."""
        self._drop([request])
        self._engine._close_cancelled(wait=False)

    def close(self) -> None:
        """Drop all requests of this session. When this returns, their programs are closed and their rows are free
        (called by a program in its own turn: at the end of that turn)."""
        with self._changed:
            self._closed = True
            self._drop(list(self._open))
            self._events.clear()
        self._engine._close_cancelled(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- for the engine, which holds the lock

    def take_waiting(self) -> Request | None:
        """The next request, if one may start now."""
        if not self._waiting or self._running >= self._limit:
            return None
        self._running += 1
        return self._waiting.popleft()

    def deliver(self, request: Request, ended: bool = False) -> None:
        """Take over a request's events of this turn."""
        if not request.cancelled:
            self._events.extend((request, event) for event in request.events)
        request.events.clear()
        if ended:
            self._running -= 1
            self._open.discard(request)
            self._leave_if_idle()

    def _drop(self, requests: Iterable[Request]) -> None:
        with self._changed:
            for request in self._open.intersection(requests):
                self._open.remove(request)
                request.cancelled = True
            for request in self._waiting:
                if request.cancelled:
                    request.close()
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
            self._events = deque(pair for pair in self._events if not pair[0].cancelled)
            self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if not self._open:
            self._engine._sessions.pop(self, None)


def _checked_limit(limit: int | None) -> int:
    if limit is None:
        return sys.maxsize
    if type(limit) is not int or limit < 1:
        raise ValueError(f"max_concurrent_requests must be a whole number of at least 1, got {limit!r}")
    return limit
