"""The turns of the engine: equal operations of different requests become one forward.

Each turn prefills whatever is waiting, then decodes the next tokens of every request that writes, or, when none writes,
takes one denoising step for every request that draws, all guidance branches of all images in one forward. New requests
join between turns.

A request's random numbers are its own. The requests beside it change its result by rounding only: other batch sizes
sum in another order. In bfloat16 on a GPU that can turn a close choice between two tokens.
"""

import torch

from irg.engine.batching import fail_on_error
from irg.engine.decode import TextDecoder
from irg.engine.denoise import Denoiser
from irg.engine.events import RequestDone, RequestFailed
from irg.engine.ngram_drafter import NgramDrafter
from irg.engine.ops import Draw, Fork, Write
from irg.engine.phase_clock import PhaseClock
from irg.engine.prefill import Prefiller
from irg.engine.request import Request
from irg.engine.runner import Runner
from irg.model.weights.tokenizer import TextTokenizer

MAX_DECODE_TURNS_BEFORE_DENOISE = 64
"""Decoding turns that images wait, so that more of them are denoised together; then they get a step in between."""


class Scheduler:
    """Runs requests on one model. Knows no threads: one turn at a time. ``seconds`` adds up by phase."""

    def __init__(self, runner: Runner, tokenizer: TextTokenizer | None, drafter: NgramDrafter | None) -> None:
        self.running: list[Request] = []
        self.drafter = drafter
        self.prefiller = Prefiller(runner, tokenizer)
        self.decoder = TextDecoder(runner, self.prefiller, drafter)
        self.denoiser = Denoiser(runner, self.prefiller)
        times = PhaseClock(("prefill", "decode", "denoise", "vae"), runner.model.device)
        self.times, self.clock = times, times.phase
        self._waited = 0  # decoding turns since an image could have been denoised

    def add(self, request: Request) -> None:
        """Let a request join at the next turn."""
        if not self.running:
            self._reset()
        self.running.append(request)
        by_kind = zip(*(one.expected_slots for one in self.running), strict=True)
        self.prefiller.runner.cache.expect([(sum(n > 0 for n in slots), max(slots)) for slots in by_kind])

    @torch.inference_mode()
    def turn(self) -> None:
        """One turn.

        Errors end the requests they belong to. One that belongs to none, or an interrupt, ends all of them; only the
        interrupt is raised.
        """
        try:
            for request in self._live():
                if request.op is None:
                    request.advance(None)  # it has just joined
            self._work()
            for request in self.running:
                request.join()
        except BaseException as error:
            interrupted = not isinstance(error, Exception)
            reason = RuntimeError(f"the engine was interrupted: {error!r}") if interrupted else error
            for request in self.running:
                request.fail(reason)  # type: ignore[arg-type]
            if interrupted:
                raise

    @property
    def waiting(self) -> list[Request]:
        """The running requests, if none of them can go on before a future is done; else nothing."""
        working = [request for one in self.running for request in one.family() if not request.forks]
        return working if all(request.waiting for request in working) else []

    def take_ended(self) -> list[Request]:
        """Take out the requests that returned, failed or were cancelled, with their last event; they are not closed."""
        ended = [request for request in self.running if not request.live]
        self.running = [request for request in self.running if request not in ended]
        for request in ended:
            if request.error is not None:
                request.emit(RequestFailed(request.index, request.error))
            elif request.done:
                request.emit(RequestDone(request.index, request.result))
        return ended

    def _reset(self) -> None:
        """Start as a fresh engine: equal requests are then drafted, and so computed, equally every time."""
        if self.drafter is not None:
            self.drafter.reset()
        for batches in (self.prefiller.batches, self.decoder.batches):
            batches.reset()
        self.denoiser.reset()

    def _live(self) -> list[Request]:
        """The requests that have more to do, with their forks."""
        return [request for one in self.running for request in one.family() if request.live]

    def _work(self) -> None:
        with self.clock("prefill"):
            self.prefiller.note(self._live())
            beginning = [r for r in self._live() if isinstance(r.op, Write | Draw | Fork)]
            starting = [r for r in beginning if r.decoding is None and r.denoising is None and not r.forks]
            self.prefiller.prefill(starting)
            self.denoiser.start([r for r in starting if r.live and isinstance(r.op, Draw)])
        for request in starting:
            if request.live and isinstance(request.op, Fork):
                request.fork()
            if request.live and isinstance(request.op, Write):
                with fail_on_error(request):
                    self.decoder.start(request)
        decoding = [request for request in self._live() if request.decoding is not None]
        denoising = [request for request in self._live() if request.denoising is not None]
        if denoising and (not decoding or self._waited >= MAX_DECODE_TURNS_BEFORE_DENOISE):
            self._waited = 0
            with self.clock("denoise"):
                self.denoiser.step(denoising)
            with self.clock("vae"):
                self.denoiser.finish([r for r in denoising if r.live and r.denoising and r.denoising.finished])
        elif decoding:
            self._waited += bool(denoising)
            with self.clock("decode"):
                self.decoder.step(decoding)
