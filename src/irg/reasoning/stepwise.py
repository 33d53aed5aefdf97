"""A request in single steps: write, draw, write, draw, with any amount of time between them.

A :class:`PausedRequest` is a value: it holds what has happened and the state of the random numbers, but nothing of the
engine. A step runs the protocol's program from its beginning and answers from the record what was done before; texts
and images that are in view enter the sequence again (a prefill), nothing is written or drawn twice. So any number of
steps may go on from one paused request, and steps in a row give what the whole request gives, up to rounding.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL.Image import Image

from irg.critics import Critic, Review, TextCritic, Verdict
from irg.engine.events import EngineEvent, RequestDone, RequestFailed
from irg.engine.ops import Draw, Drawn, Look, Operation, Program, Said, Say, Wait, Write, Written
from irg.image_files import ImageSource
from irg.randomness import generator
from irg.reasoning.events import GenerationError
from irg.reasoning.negative_prompt import with_negative_prompt
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job, Step
from irg.reasoning.settings import DRAW_FIELDS, Settings, check_prompt, check_seed, of_later_images

_MAX_ROUNDS = 100  # of Settings
_NO_SEARCH = {"candidates": 1, "keep_best": False, "budget_seconds": None, "budget_images": None}


@dataclass(frozen=True)
class Done:
    """An operation that was carried out.

    Attributes:
        op: its kind.
        result: of a Write, a Draw or a Wait; the others are carried out again, which costs little.
        random_state: before a Look.
        error: what it raised instead.
    """

    op: type[Operation]
    result: Any = None
    random_state: torch.Tensor | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class PausedRequest:
    """A request between two steps.

    Attributes:
        record: what was done so far, in order.
        random_state: of its random numbers, as ``torch.Generator.get_state`` gives it.
        drawn: the images that were drawn so far.
        texts: what led to each of them, the thinking, then the reflections; and the newest text, if its image is still
            to be drawn.
        ended: there is nothing more to do.
        stop: why (``done``, ``malformed: ...``); empty where it did not end, or the rounds are up.
    """

    pipe: IRGPipeline
    job: Job
    random_state: torch.Tensor
    record: tuple[Done, ...] = ()
    drawn: tuple[Drawn, ...] = ()
    texts: tuple[str, ...] = ()
    ended: bool = False
    stop: str = ""

    @property
    def image(self) -> Image | None:
        """The newest image: drawn, or given."""
        if self.drawn:
            return self.drawn[-1].image
        return self.job.images[-1] if self.job.images else None

    @property
    def text(self) -> str:
        """The newest text."""
        return self.texts[-1] if self.texts else ""

    @property
    def turn(self) -> int:
        """The number of the image that comes next: 0 the first; a given one counts."""
        return len(self.job.images) + len(self.drawn)

    @property
    def draws_next(self) -> bool:
        """Whether an image comes next, not a text."""
        return not self.ended and len(self.texts) > len(self.drawn)

    def write(
        self,
        *,
        text: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> "Steps":
        """Go on until an image would be drawn: think or, after an image, look at it and reflect.

        Args:
            text: takes the place of what the model would write, or of the first text where it writes several.
            temperature: of the texts; default: as set.
            max_tokens: the most tokens of a text; default: as set.
            seed: begins the random numbers anew; default: they go on.

        Raises:
            ValueError: an image has to be drawn first, or an argument is not usable.
            GenerationError: the step failed while it ran.
        """
        if self.draws_next:
            raise ValueError("there is a text already that no image was drawn from: draw it first")
        if text is not None:
            check_prompt(text)
        names = ("reflect_temperature", "max_reflect_tokens") if self.turn else ("temperature", "max_think_tokens")
        given = dict(zip(names, (temperature, max_tokens), strict=True))
        changed = self._with({name: value for name, value in given.items() if value is not None}, seed)
        return _step(changed, draws=False, text=text)

    def draw(self, *, seed: int | None = None, **options: Any) -> "Steps":
        """Draw the image that comes next. If its text is not there yet, it is written first, as by :meth:`write`.

        Args:
            seed: begins the random numbers anew; default: they go on.
            options: fields of :class:`irg.engine.settings.DrawSettings`; default: as set.

        Raises:
            ValueError: an argument is not usable.
            GenerationError: the step failed while it ran.
        """
        for name in options:
            if name not in DRAW_FIELDS:
                raise ValueError(f"{name} is no setting of one image; there are {', '.join(DRAW_FIELDS)}")
        own = of_later_images(options) if self.turn else options
        self._with(own, seed)  # a mistake is told now
        return self._draw(own, seed)

    def _draw(self, options: dict[str, Any], seed: int | None) -> "Steps":
        written = self if self.draws_next or self.ended else (yield from self.write())
        return (yield from _step(written._with(options, seed), draws=True))

    def _with(self, options: dict[str, Any], seed: int | None) -> "PausedRequest":
        """With other settings from here on, and other random numbers."""
        job = replace(self.job, settings=self.pipe.with_options(self.job.settings, options))
        state = self.random_state if seed is None else generator(check_seed(seed)).get_state()
        return replace(self, job=job, random_state=state)


Steps = Generator[EngineEvent, None, PausedRequest]
"""Yields the events of a step as they happen; its value is the request after it."""


def start(
    pipe: IRGPipeline,
    prompt: str,
    seed: int,
    settings: Settings | None = None,
    image: ImageSource | None = None,
    **options: Any,
) -> PausedRequest:
    """A request of which nothing is done yet. How many rounds it has is up to the caller.

    Args:
        settings: default: the pipeline's own.
        image: a first image to improve; default: it is drawn.
        options: single settings by name, as in a call of the pipeline.

    Raises:
        ValueError: the prompt, the seed, the image or a setting is not usable.
    """
    usual = settings or (pipe.defaults if image is None else pipe.defaults.sized_by_image())
    chosen = pipe.with_options(usual, options if image is None else of_later_images(options))
    for name, off in _NO_SEARCH.items():
        if getattr(chosen, name) != off:
            raise ValueError(f"{name} has no meaning for a request in single steps")
    chosen = replace(chosen, rounds=pipe.protocol.max_rounds or _MAX_ROUNDS)
    seed = check_seed(seed)
    if image is None:
        job = pipe.jobs.make(prompt, chosen, seed)
    else:
        job = pipe.jobs.make(prompt, chosen, seed, "improve", [image])
    return PausedRequest(pipe, job, generator(seed).get_state())


def run(steps: Steps) -> PausedRequest:
    """Take a step without looking at its events."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            paused: PausedRequest = stop.value
            return paused


def _step(before: PausedRequest, draws: bool, text: str | None = None) -> Steps:
    """Run the program to the end of this step."""
    if before.ended:
        return before
    random = torch.Generator().set_state(before.random_state)
    running = _Running(before, random, draws, text)
    with before.pipe.engine.session(1) as session:
        session.add(running.program(), random, turn=before.turn)
        for event in session:
            if isinstance(event, RequestFailed):
                raise GenerationError(event.request, before.job.prompt, event.error)
            if not isinstance(event, RequestDone):
                yield event
    return running.paused()


Resume = Callable[[], Operation]
"""Lets the protocol's program go on to its next operation."""


class _Running:
    """A step while it runs: the protocol's program with the record before it."""

    def __init__(self, before: PausedRequest, random: torch.Generator, draws: bool, text: str | None) -> None:
        self._before, self._random, self._draws, self._text = before, random, draws, text
        self._new: list[Done] = []
        self._steps: Sequence[Step] | None = None  # what the protocol's program returned
        job = before.job
        if job.critic is not None:
            asked = sum(done.op is Wait for done in before.record)
            critic = job.critic
            wrapped = _ReadBefore(critic, asked) if isinstance(critic, TextCritic) else _AskedBefore(critic, asked)
            job = replace(job, critic=wrapped)
        program = before.pipe.protocol.program(job)
        self._program: Program = with_negative_prompt(program, job.settings.negative_prompt)

    def program(self) -> Program:
        """The program that the engine runs: what was done is answered, what is new is carried out and noted."""
        past: Iterator[Done] = iter(self._before.record)
        with closing(self._program):
            resume: Resume = partial(next, self._program)
            while True:
                try:
                    op = resume()
                except StopIteration as stop:
                    self._steps = stop.value
                    return
                if (done := next(past, None)) is not None:
                    resume = yield from self._answer(op, done)
                elif not isinstance(op, Draw):
                    resume = yield from self._carry_out(op)
                elif self._draws:
                    self._new.append(Done(Draw, (yield op)))
                    return
                else:
                    self._check_text_used()
                    return

    def _answer(self, op: Operation, done: Done) -> Generator[Operation, Any, Resume]:
        """The result of an operation that was carried out in an earlier step."""
        assert type(op) is done.op, f"the program went another way than before: {op!r}, not {done.op.__name__}"
        if done.error is not None:
            return partial(self._program.throw, done.error)
        if isinstance(done.result, Written):
            return partial(self._program.send, (yield from _said(done.result)))
        if done.random_state is None:
            return partial(self._program.send, (yield op) if done.result is None else done.result)
        now = self._random.get_state()
        self._random.set_state(done.random_state)
        said = yield op
        self._random.set_state(now)
        return partial(self._program.send, said)

    def _carry_out(self, op: Operation) -> Generator[Operation, Any, Resume]:
        state = self._random.get_state() if isinstance(op, Look) else None
        try:
            if isinstance(op, Write) and self._text is not None:
                text, self._text = self._text, None
                result = yield from _said(Written((), text, (), 0.0, complete=True))
            else:
                result = yield op
        except Exception as error:  # of a Wait: the program may catch it
            self._new.append(Done(type(op), error=error))
            return partial(self._program.throw, error)
        self._new.append(Done(type(op), result if isinstance(op, Write | Wait) else None, state))
        return partial(self._program.send, result)

    def _check_text_used(self) -> None:
        if self._text is not None:
            raise ValueError("a text was given, but the model writes none in this step: a critic or nobody reflects")

    def paused(self) -> PausedRequest:
        """The request after this step."""
        before, results = self._before, [done.result for done in self._new]
        text, ended = _text(results), self._steps is not None
        return replace(
            before,
            record=before.record + tuple(self._new),
            random_state=self._random.get_state(),
            drawn=before.drawn + tuple(result for result in results if isinstance(result, Drawn)),
            texts=before.texts if self._draws or (ended and not text) else (*before.texts, text),
            ended=ended,
            stop=self._steps[-1].stop if self._steps else "",
        )


class _AskedBefore(Critic):
    """A critic whose first verdicts are in the record: it is not asked for them again."""

    def __init__(self, critic: Critic, asked: int) -> None:
        self.name, self._critic, self._asked = critic.name, critic, asked

    def review(self, review: Review) -> "Future[Verdict]":
        if self._asked:
            self._asked -= 1
            return Future()
        return self._critic.review(review)

    def close(self) -> None:
        self._critic.close()


class _ReadBefore(_AskedBefore, TextCritic):
    """The same of a critic that reads."""

    _critic: TextCritic

    def __init__(self, critic: TextCritic, asked: int) -> None:
        super().__init__(critic, asked)
        self.asks = critic.asks

    def accepts(self, prompt: str, thinking: str) -> bool:
        return self._critic.accepts(prompt, thinking)


def _said(written: Written) -> Generator[Operation, Any, Written]:
    """A text that was written, put into the sequence."""
    said: Said = yield Say(written.ids or written.text)
    return replace(written, handles=said.handles)


def _text(results: Sequence[Any]) -> str:
    """What was written in a step, or what a critic said."""
    written = [result.text for result in results if isinstance(result, Written)]
    verdicts = [result for result in results if isinstance(result, Verdict)]
    if written or not verdicts:
        return "\n\n".join(written)
    return verdicts[-1].text or verdicts[-1].change
