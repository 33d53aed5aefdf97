"""One request: its program, its sequence, its KV contexts, its random numbers."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from irg.engine.cache import Context, KVCache
from irg.engine.events import EngineEvent
from irg.engine.guidance import scales_at
from irg.engine.ngram_drafter import MAX_DRAFT_TOKENS
from irg.engine.ops import Draw, Fork, Handles, Operation, Program, StochasticStep, Wait, Write
from irg.engine.solvers import Evaluation
from irg.engine.step_cache import network_steps
from irg.engine.token_sampling import NONE, Position, allowed_next
from irg.model.placement.kv_cache_size import RowKind
from irg.randomness import generator
from irg.sequence.layout import extent
from irg.sequence.parts import Part

_log = logging.getLogger("irg")


@dataclass
class Decoding:
    """A text being decoded: ``ids`` so far (without bos), the token to feed next, whether that closes the text, and how
    many tokens to draft beyond it. ``prefix`` and ``choices`` are the operation's, as token ids; ``uniforms`` has the
    random number of every choice."""

    op: Write
    feed: int
    prefix: tuple[int, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    uniforms: tuple[float, ...] = ()
    draft_length: int = MAX_DRAFT_TOKENS
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    closing: bool = False
    complete: bool = False
    detokenize: Callable[[int], str] | None = None
    streamed: str = ""  # what events have shown of the text
    started: float = field(default_factory=time.perf_counter)

    @property
    def given(self) -> bool:
        """Whether the next token is the prefix's."""
        return len(self.ids) < len(self.prefix)

    def position(self, drafted: Sequence[int], eos: int) -> Position:
        """How the token after ``drafted`` ones is chosen, should those be right."""
        op, length = self.op, len(self.ids) + len(drafted)
        number = length - len(self.prefix)  # of the choice, from 0
        if number < 0:
            return Position(forced=self.prefix[length])
        uniform = self.uniforms[number] if number < len(self.uniforms) else 0.0
        written = [*self.ids, *drafted][len(self.prefix) :] if self.choices else ()
        forced = NONE if op.forced is None else op.forced[number] if number < len(op.forced) else eos
        allowed = allowed_next(self.choices, written)
        return Position(op.temperature, uniform, op.top_k, op.top_p, allowed, forced)

    def take(self, token: int, eos: int) -> None:
        """Go on with the model's choice, or with what the operation gives or forces in its place."""
        chosen = len(self.ids) - len(self.prefix)
        if self.given:
            self.feed = self.prefix[len(self.ids)]
            self.ids.append(self.feed)
            return
        if (forced := self.op.forced) is not None:
            token = forced[chosen] if chosen < len(forced) else eos
        if token == eos or chosen >= self.op.max_tokens:
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
    main: Context  # a fork of the request's own context, or a branch
    text_uncond: Context | None = None
    image_uncond: Context | None = None
    step: int = 0
    history: list[Evaluation] = field(default_factory=list)  # of the same guidance, the last few
    known: list[tuple[float, Tensor]] = field(default_factory=list)  # times and velocities of the network's last runs
    stochastic: list[StochasticStep] = field(default_factory=list)  # those that were done
    started: float = field(default_factory=time.perf_counter)

    @property
    def total(self) -> int:
        return len(self.times) - 1

    @property
    def finished(self) -> bool:
        return self.step == self.total

    def guides(self, step: int) -> bool:
        """Whether guidance acts in a step."""
        s = self.op.settings
        return scales_at(self.times[step], s.cfg_text_scale, s.cfg_img_scale, s.cfg_interval)[0] > 1

    @property
    def guidance_changes(self) -> bool:
        """Whether the coming step is the first with guidance, or the first without: its velocities are of another
        kind than those before."""
        return self.step > 0 and self.guides(self.step) != self.guides(self.step - 1)

    @property
    def runs_network(self) -> bool:
        """Whether the coming step needs the network: else its velocity is extrapolated."""
        due = self.network_steps[self.step] or not self.known
        return due or self.guidance_changes or self.op.settings.is_stochastic(self.step)

    @cached_property
    def network_steps(self) -> list[bool]:
        """The steps that run the network whatever happens."""
        return network_steps(self.times, self.op.settings.network_interval, self.op.settings.network_gap)

    @property
    def contexts(self) -> list[Context]:
        """Contexts whose velocities the coming step needs, main first: only main where guidance does not act."""
        if not self.guides(self.step):
            return [self.main]
        return [c for c in (self.main, self.text_uncond, self.image_uncond) if c is not None]


class Request:
    """A program and everything it owns.

    Attributes:
        index: its number, which its events carry.
        result: what the program returned, once ``done``.
        error: why it failed, or None.
        cancelled: set by any thread; the program is not run after that.
        parent: the request whose Fork this one is part of.
        forks: those of its own Fork that run.
        expected_slots: of the cache, that its row of each kind will probably need; 0: unknown, or no such row.
    """

    def __init__(
        self,
        index: int,
        program: Program,
        seed: int | torch.Generator,
        cache: KVCache,
        turn: int = 0,
        parent: "Request | None" = None,
        expected_slots: Sequence[int] = (0,) * len(RowKind),
    ) -> None:
        self.index, self.program, self.expected_slots = index, program, expected_slots
        self.generator = seed if isinstance(seed, torch.Generator) else generator(seed)
        self.cache = cache
        self.main = cache.new()
        self.parts: list[Part] = []
        self.prefilled = 0  # main holds so many of them; the others are computed when they are needed
        # a branch is kept under the parts it holds: later ones continue it
        self.branches: dict[tuple[int, ...], Context] = {}
        self.op: Operation | None = None
        self.watched: Operation | None = None  # the Wait whose future wakes the engine
        self.pending: list[tuple[Context, list[Part]]] = []  # what the next prefill appends
        self.decoding: Decoding | None = None
        self.denoising: Denoising | None = None
        self.turn = turn  # images finished, those that were given included
        self.events: list[EngineEvent] = []  # of the engine's current turn
        self.result: Any = None
        self.error: Exception | None = None
        self.done = self.cancelled = False
        self.parent = parent
        self.forks: list[Request] = []

    @property
    def live(self) -> bool:
        """Whether there is more to do: it has not returned, failed or been cancelled, nor has what it is part of."""
        ended = self.done or self.cancelled or self.error is not None
        return not ended and (self.parent is None or self.parent.live)

    def emit(self, event: EngineEvent) -> None:
        """Add an event, which the session delivers after the turn; those of forks are dropped."""
        if self.parent is None:
            self.events.append(event)

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless its program has returned."""
        if self.error is None and not self.done:
            self.error = error

    def advance(self, value: Any) -> None:
        """Send the last operation's result into the program and take its next operation."""
        if not self.live:
            return
        self._go_on(lambda: self.program.send(value))

    def throw(self, error: BaseException) -> None:
        """Raise the last operation's error in the program and take its next operation."""
        if self.live:
            self._go_on(lambda: self.program.throw(error))

    def _go_on(self, resume: Callable[[], Operation]) -> None:
        try:
            self.op = resume()
        except StopIteration as stop:
            self.result, self.done, self.op = stop.value, True, None
        except Exception as error:
            self.fail(error)
        else:
            if not isinstance(self.op, get_args(Operation)):
                kinds = ", ".join(kind.__name__ for kind in get_args(Operation))
                self.fail(TypeError(f"a program yields operations ({kinds}), got {self.op!r}"))

    @property
    def waiting(self) -> bool:
        """Whether there is nothing to do for it until the future that it waits for is done."""
        return self.live and isinstance(self.op, Wait) and not self.op.future.done()

    def family(self) -> Iterator["Request"]:
        """The request, its forks, and theirs."""
        yield self
        for fork in self.forks:
            yield from fork.family()

    def fork(self) -> None:
        """Begin the Fork that the program asks for; main holds all parts."""
        assert isinstance(self.op, Fork) and self.prefilled == len(self.parts)
        for program, seed in zip(self.op.programs, self.op.seeds, strict=True):
            fork = Request(self.index, program, seed, self.cache, self.turn, parent=self)
            fork.main, fork.parts, fork.prefilled = self.cache.fork(self.main), list(self.parts), self.prefilled
            fork.branches = {held: self.cache.fork(context) for held, context in self.branches.items()}
            self.forks.append(fork)

    def join(self) -> None:
        """Go on once all forks have returned, or one has failed."""
        for fork in self.forks:
            fork.join()
        error = next((fork.error for fork in self.forks if fork.error is not None), None)
        if self.live and self.forks and (error is not None or all(fork.done for fork in self.forks)):
            values = [fork.result for fork in self.forks]
            self._close_forks()
            if error is not None:
                self.throw(error)
            else:
                self.advance(values)

    def _close_forks(self) -> None:
        forks, self.forks = self.forks, []
        for fork in forks:
            fork.close()

    def append(self, parts: list[Part], prefilled: bool = False) -> tuple[int, ...]:
        """Note parts as the next of the sequence; returns their handles. ``prefilled``: main holds them already."""
        first = len(self.parts)
        self.parts += parts
        if prefilled:
            self.prefilled = len(self.parts)
            assert (self.main.length, self.main.position) == self.marks(range(self.prefilled))
        return tuple(range(first, len(self.parts)))

    def marks(self, kept: Sequence[int]) -> tuple[int, int]:
        """(tokens, rope positions) of a context that holds these parts."""
        extents = [extent(self.parts[i]) for i in kept]
        return sum(tokens for tokens, _ in extents), sum(positions for _, positions in extents)

    def forget(self, last: int) -> None:
        """Take all parts after ``last`` back; what is said next gets the handles after it."""
        for held in [held for held in self.branches if held and held[-1] > last]:
            self.cache.free(self.branches.pop(held))
        if self.prefilled > last + 1:
            self.prefilled = last + 1
            main, self.main = self.main, self.cache.fork(self.main, *self.marks(range(self.prefilled)))
            self.cache.free(main)
        del self.parts[last + 1 :]

    def missing(self, dropped: Handles = ()) -> list[Part]:
        """The parts that main does not hold yet, up to the first of ``dropped``. They count as held from now on: the
        caller prefills them."""
        stop = min((i for i in dropped if i >= self.prefilled), default=len(self.parts))
        if any(i < self.prefilled for i in dropped):
            stop = self.prefilled
        parts, self.prefilled = self.parts[self.prefilled : stop], stop
        return parts

    def branch(self, dropped: Handles, kind: RowKind) -> tuple[Context, list[Part]]:
        """A context for the sequence without ``dropped`` parts, and the parts still to be prefilled into it.

        Starts from whichever of main and the branches kept shares the longest prefix with it.
        """
        kept, context = self.without(dropped), self.main
        shared = _common(range(self.prefilled), kept)
        for held, other in self.branches.items():
            if (more := _common(held, kept)) > shared:
                shared, context = more, other
        return self.cache.fork(context, *self.marks(kept[:shared]), kind), [self.parts[i] for i in kept[shared:]]

    def without(self, dropped: Handles) -> tuple[int, ...]:
        """The parts of the sequence but for ``dropped``."""
        return tuple(i for i in range(len(self.parts)) if i not in dropped)

    def keep_branch(self, dropped: Handles, context: Context | None) -> None:
        """Keep a branch that was prefilled on a row of its own, for later images of this request. One that holds what
        main begins with is not kept: main serves as well."""
        kept = self.without(dropped)
        of_main = kept == tuple(range(len(kept))) and len(kept) <= self.prefilled
        if context is None or of_main or context.row in (None, self.main.row):
            return
        if (old := self.branches.pop(kept, None)) is not None:
            self.cache.free(old)
        self.branches[kept] = self.cache.fork(context)

    def end_denoising(self) -> None:
        """Free the branches of the image that was denoised."""
        if self.denoising is not None:
            for context in (self.denoising.main, self.denoising.text_uncond, self.denoising.image_uncond):
                if context is not None:
                    self.cache.free(context)
            self.denoising = None

    def close(self) -> None:
        """End the program and its forks, and free every row."""
        self._close_forks()
        if isinstance(self.op, Wait):
            self.op.future.cancel()
        try:
            self.program.close()
        except Exception:
            _log.exception("the program of request %d failed while it was closed", self.index)
        finally:
            self.end_denoising()
            for context in (*self.branches.values(), self.main):
                self.cache.free(context)
            self.branches.clear()


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = zip(held, wanted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(held), len(wanted)))
