"""One request in flight: its program, its sequence, its contexts, its random numbers."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from irg.engine.cache import Context, KVCache
from irg.engine.drafting import MOST
from irg.engine.guidance import scales_at
from irg.engine.ops import Draw, Operation, Program, Write
from irg.randomness import generator
from irg.sequence.layout import extent
from irg.sequence.parts import Part


@dataclass
class Writing:
    """A text being decoded: ``ids`` so far (without bos), the token to feed next, whether that closes the text, and how
    many tokens to guess beyond it."""

    op: Write
    feed: int
    guesses: int = MOST
    ids: list[int] = field(default_factory=list)
    closing: bool = False
    complete: bool = False
    stream: Callable[[int], str] | None = None
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
class Drawing:
    """An image being sampled. Contexts: main, and the guidance branches that are wanted (None = off)."""

    op: Draw
    grid: tuple[int, int]
    x_ND: Tensor
    times: list[float]
    main: Context
    text_free: Context | None = None
    image_free: Context | None = None
    step: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def total(self) -> int:
        return len(self.times) - 1

    @property
    def guided(self) -> bool:
        """Whether guidance acts in the coming step (its branches exist, and its time is in the interval)."""
        s = self.op.settings
        return scales_at(self.times[self.step], s.cfg_text_scale, s.cfg_img_scale, s.cfg_interval)[0] > 1

    @property
    def contexts(self) -> list[Context]:
        """Contexts whose velocities the coming step needs, main first."""
        if not self.guided:
            return [self.main]
        return [c for c in (self.main, self.text_free, self.image_free) if c is not None]


class Task:
    """A program and everything it owns."""

    def __init__(self, index: int, program: Program, seed: int, cache: KVCache) -> None:
        self.index, self.program = index, program
        self.generator = generator(seed)
        self.cache = cache
        self.main = cache.new()
        self.parts: list[Part] = []
        # a guidance branch is remembered under the parts it holds: later ones continue it
        self.branches: dict[tuple[int, ...], Context] = {}
        self.marks: list[tuple[int, int]] = [(0, 0)]  # main's (length, position) before each part, and now
        self.op: Operation | None = None
        self.writing: Writing | None = None
        self.drawing: Drawing | None = None
        self.result: Any = None
        self.done = False

    def advance(self, value: Any) -> None:
        """Send the last operation's result into the program and take its next operation."""
        try:
            self.op = self.program.send(value)
        except StopIteration as stop:
            self.result, self.done, self.op = stop.value, True, None

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

    def remember(self, dropped: tuple[int, ...], context: Context | None) -> None:
        """Keep a branch that was prefilled on a row of its own, for later images of this request."""
        if context is None or context.row == self.main.row:
            return
        kept = tuple(i for i in range(len(self.parts)) if i not in dropped)
        if (old := self.branches.pop(kept, None)) is not None:
            self.cache.free(old)
        self.branches[kept] = self.cache.fork(context)

    def end_drawing(self) -> None:
        """Let go of the branches of the image that was being drawn."""
        if self.drawing is not None:
            for context in (self.drawing.text_free, self.drawing.image_free):
                if context is not None:
                    self.cache.free(context)
            self.drawing = None

    def close(self) -> None:
        """End the program and free every row."""
        self.program.close()
        self.end_drawing()
        for context in (*self.branches.values(), self.main):
            self.cache.free(context)
        self.branches.clear()
