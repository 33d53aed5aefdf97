"""One request: its program, its sequence, its KV contexts, its random numbers."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import Tensor

from irg.engine.cache import NO_ROW, Context, KVCache
from irg.engine.events import EngineEvent
from irg.engine.guidance import scales_at
from irg.engine.ngram_drafter import MAX_DRAFT_TOKENS
from irg.engine.ops import Draw, Operation, Program, Write
from irg.randomness import generator
from irg.sequence.layout import extent
from irg.sequence.parts import Part

_log = logging.getLogger("irg")


@dataclass
class Decoding:
    """A text being decoded: ``ids`` so far (without bos), the token to feed next, whether that closes the text, and how
    many tokens to draft beyond it."""

    op: Write
    feed: int
    draft_length: int = MAX_DRAFT_TOKENS
    ids: list[int] = field(default_factory=list)
    closing: bool = False
    complete: bool = False
    detokenize: Callable[[int], str] | None = None
    streamed: str = ""  # what events have shown of the text
    started: float = field(default_factory=time.perf_counter)

    def take(self, token: int, eos: int) -> None:
        """Go on with the model's choice, or with what the operation forces in its place."""
        forced = self.op.forced
        if forced is not None:
            token = forced[len(self.ids)] if len(self.ids) < len(forced) else eos
        if token == eos or len(self.ids) >= self.op.max_tokens:
            self.feed, self.closing, self.complete = eos, True, token == eos
        else:
            self.feed = token
            self.ids.append(token)


@dataclass(eq=False)
class Denoising:
    """An image being denoised. Contexts: main, and the unconditional branches that guidance needs (None = off)."""

    op: Draw
    grid: tuple[int, int]
    x_ND: Tensor
    times: list[float]
    main: Context
    text_uncond: Context | None = None
    image_uncond: Context | None = None
    step: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def total(self) -> int:
        return len(self.times) - 1

    @property
    def finished(self) -> bool:
        return self.step == self.total

    @property
    def contexts(self) -> list[Context]:
        """Contexts whose velocities the coming step needs, main first: only main where guidance does not act."""
        s = self.op.settings
        if scales_at(self.times[self.step], s.cfg_text_scale, s.cfg_img_scale, s.cfg_interval)[0] <= 1:
            return [self.main]
        return [c for c in (self.main, self.text_uncond, self.image_uncond) if c is not None]


class Request:
    """A program and everything it owns.

    Attributes:
        index: its number, which its events carry.
        result: what the program returned, once ``done``.
        error: why it failed, or None.
        cancelled: set by any thread; the program is not run after that.
    """

    def __init__(self, index: int, program: Program, seed: int, cache: KVCache) -> None:
        self.index, self.program = index, program
        self.generator = generator(seed)
        self.cache = cache
        self.main = cache.new()
        self.parts: list[Part] = []
        # an unconditional branch is kept under the parts it holds: later ones continue it
        self.branches: dict[tuple[int, ...], Context] = {}
        self.marks: list[tuple[int, int]] = [(0, 0)]  # main's (length, position) before each part, and now
        self.op: Operation | None = None
        self.pending: list[tuple[Context, list[Part]]] = []  # what the next prefill appends
        self.decoding: Decoding | None = None
        self.denoising: Denoising | None = None
        self.turn = 0  # images finished
        self.events: list[EngineEvent] = []  # of the engine's current turn
        self.result: Any = None
        self.error: Exception | None = None
        self.done = self.cancelled = False

    @property
    def live(self) -> bool:
        """Whether there is more to do: it has not returned, failed or been cancelled."""
        return not (self.done or self.cancelled or self.error is not None)

    def emit(self, event: EngineEvent) -> None:
        """Add an event, which the session delivers after the turn."""
        self.events.append(event)

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless its program has returned."""
        if self.error is None and not self.done:
            self.error = error

    def advance(self, value: Any) -> None:
        """Send the last operation's result into the program and take its next operation."""
        if not self.live:
            return
        try:
            self.op = self.program.send(value)
        except StopIteration as stop:
            self.result, self.done, self.op = stop.value, True, None
        except Exception as error:
            self.fail(error)
        else:
            if not isinstance(self.op, get_args(Operation)):
                self.fail(TypeError(f"a program yields operations (Say, Write, Draw, Look, Forget), got {self.op!r}"))

    def append(self, parts: list[Part]) -> tuple[int, ...]:
        """Note parts as the next of the sequence; returns their handles."""
        first = len(self.parts)
        for part in parts:
            (length, position), (tokens, positions) = self.marks[-1], extent(part)
            self.parts.append(part)
            self.marks.append((length + tokens, position + positions))
        assert self.marks[-1] == (self.main.length, self.main.position)
        return tuple(range(first, len(self.parts)))

    def forget(self, last: int) -> None:
        """Take all parts after ``last`` back; what is said next gets the handles after it."""
        for context in self.branches.values():
            self.cache.free(context)
        self.branches.clear()
        del self.parts[last + 1 :], self.marks[last + 2 :]
        main, self.main = self.main, self.cache.fork(self.main, *self.marks[-1])
        self.cache.free(main)

    def branch(self, dropped: tuple[int, ...]) -> tuple[Context, list[Part]]:
        """A context for the sequence without ``dropped`` parts, and the parts still to be prefilled into it.

        Starts from main's longest prefix that has none of them, or from an earlier branch that goes further.
        """
        kept = tuple(i for i in range(len(self.parts)) if i not in dropped)
        shared = next((n for n, i in enumerate(kept) if n != i), len(kept))
        best: tuple[int, ...] = max((held for held in self.branches if held == kept[: len(held)]), key=len, default=())
        if len(best) > shared:
            context = self.cache.fork(self.branches[best])
            missing = kept[len(best) :]
        else:
            length, position = self.marks[shared]
            context = self.cache.fork(self.main, length, position)
            missing = kept[shared:]
        return context, [self.parts[i] for i in missing]

    def keep_branch(self, dropped: tuple[int, ...], context: Context | None) -> None:
        """Keep a branch that was prefilled on a row of its own, for later images of this request."""
        if context is None or context.row in (NO_ROW, self.main.row):
            return
        kept = tuple(i for i in range(len(self.parts)) if i not in dropped)
        if (old := self.branches.pop(kept, None)) is not None:
            self.cache.free(old)
        self.branches[kept] = self.cache.fork(context)

    def end_denoising(self) -> None:
        """Free the unconditional branches of the image that was denoised."""
        if self.denoising is not None:
            for context in (self.denoising.text_uncond, self.denoising.image_uncond):
                if context is not None:
                    self.cache.free(context)
            self.denoising = None

    def close(self) -> None:
        """End the program and free every row."""
        try:
            self.program.close()
        except Exception:
            _log.exception("the program of request %d failed while it was closed", self.index)
        finally:
            self.end_denoising()
            for context in (*self.branches.values(), self.main):
                self.cache.free(context)
            self.branches.clear()
