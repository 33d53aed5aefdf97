"""Many programs at once: equal operations of different requests become one forward.

Each turn of the loop prefills whatever is waiting, then decodes one token for every request that writes, or, when
nobody writes, takes one denoising step for every request that draws, all guidance branches of all images in one
forward. New requests join between turns. A request's random numbers are its own, so its result does not depend on its
company.

Legend: G latent tokens of all images; N of one; D values per token; V vocabulary.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from irg.engine.drafting import SPANS, Guesser, next_limit
from irg.engine.flow import time_grid
from irg.engine.guidance import guide
from irg.engine.ops import Draw, Drawn, Forget, Look, Operation, Program, Said, Say, Write, Written
from irg.engine.runner import Branches, Runner
from irg.engine.task import Drawing, Task, Writing
from irg.model.weights.tokenizer import TextTokenizer
from irg.randomness import generator
from irg.sequence.images import patchify, to_image, unpatchify
from irg.sequence.parts import Latents, Part, Patches, Text


@dataclass(frozen=True)
class TextPiece:
    """A piece of text was written."""

    task: int
    text: str


@dataclass(frozen=True)
class StepDone:
    """One update of an image is done: it now stands at time ``time`` (1 = noise, 0 = finished)."""

    task: int
    step: int
    total: int
    time: float
    latents_ND: Tensor = field(repr=False)


@dataclass(frozen=True)
class OperationDone:
    """An operation's result, as the program gets it."""

    task: int
    result: Said | Written | Drawn


@dataclass(frozen=True)
class ProgramDone:
    """A program ended with this value."""

    task: int
    value: Any


PATIENCE = 64
"""Decoding turns that images wait, so that more of them are drawn together; then they get a step in between."""

EngineEvent = TextPiece | StepDone | OperationDone | ProgramDone


class Engine:
    """Runs programs on one model."""

    def __init__(
        self, runner: Runner, tokenizer: TextTokenizer | None = None, forms: Sequence[str] = (), guess: bool = True
    ) -> None:
        """``forms``: example texts of the kind that the model writes. ``guess``: several tokens a forward, where they
        can be guessed (:mod:`irg.engine.drafting`); it changes no text."""
        self.runner, self.tokenizer = runner, tokenizer
        special = runner.grammar.special
        known = [(special.bos, *self._ids(text), special.eos) for text in forms]
        self.guesser = Guesser(known) if guess else None
        self.tasks: list[Task] = []
        self._plan: tuple[Any, Branches] | None = None
        self._added = 0
        self._waited = 0  # decoding turns since somebody could have drawn
        self.seconds = {"prefill": 0.0, "decode": 0.0, "denoise": 0.0, "vae": 0.0}

    # ---- public

    def add(self, program: Program, seed: int, index: int | None = None) -> Task:
        """Start a program; it joins at the next turn."""
        if not self.tasks and self.guesser is not None:
            self.guesser.reset()  # the same requests are guessed the same, and so computed the same, every time
        task = Task(self._added if index is None else index, program, seed, self.runner.cache)
        try:
            task.advance(None)
        except BaseException:
            task.close()
            raise
        self.tasks.append(task)
        self._added += 1
        return task

    def run(self, programs: Iterable[tuple[Program, int]]) -> list[Any]:
        """Run (program, seed) pairs to their ends and return their values in order."""
        tasks = [self.add(program, seed, index) for index, (program, seed) in enumerate(programs)]
        for _ in self.events():
            pass
        return [task.result for task in tasks]

    def events(self) -> Iterator[EngineEvent]:
        """Work until nothing is left to do, telling what happens. Closing the iterator drops what is unfinished."""
        try:
            while self.tasks:
                yield from self.turn()
        finally:
            self.stop()

    def stop(self) -> None:
        """Drop whatever is unfinished and free its rows."""
        for task in self.tasks:
            task.close()
        self.tasks.clear()
        self._plan = None

    @torch.inference_mode()
    def turn(self) -> list[EngineEvent]:
        """One turn of the loop."""
        events = self._prefill()
        writers = [t for t in self.tasks if t.writing is not None]
        drawers = [t for t in self.tasks if t.drawing is not None]
        if drawers and (not writers or self._waited >= PATIENCE):
            self._waited = 0
            events += self._denoise(drawers)
        elif writers:
            self._waited += bool(drawers)
            events += self._decode(writers)
        for task in [t for t in self.tasks if t.done]:
            events.append(ProgramDone(task.index, task.result))
            task.close()
            self.tasks.remove(task)
        return events

    @torch.inference_mode()
    def score(self, ops: Sequence[Say | Look], ids: Sequence[int], seed: int = 0) -> Tensor:
        """What the model thinks of a given text: logits before each of its tokens and before its eos, float32
        [len(ids) + 1, V]. ``ops`` are what comes before it."""
        context, random = self.runner.cache.new(), generator(seed)
        try:
            for op in ops:
                self.runner.extend([(context, self._parts_of(op, random))])
            return self.runner.feed([context], [[self.runner.grammar.special.bos, *ids]])[0]
        finally:
            self.runner.cache.free(context)

    # ---- prefill: Say, Look and Forget, and the start of Write and Draw

    def _prefill(self) -> list[EngineEvent]:
        """Carry out every waiting Say and Look in one forward, then start waiting Writes and Draws."""
        events: list[EngineEvent] = []
        while True:
            for task in self.tasks:
                while isinstance(task.op, Forget):
                    task.forget(task.op.handles[-1])
                    task.advance(None)
            if not (waiting := [t for t in self.tasks if isinstance(t.op, Say | Look)]):
                break
            started = time.perf_counter()
            added = [self._parts_of(task.op, task.generator) for task in waiting]
            self.runner.extend([(t.main, parts) for t, parts in zip(waiting, added, strict=True)])
            for task, parts in zip(waiting, added, strict=True):
                said = Said(task.append(parts))
                events.append(OperationDone(task.index, said))
                task.advance(said)
            self.seconds["prefill"] += time.perf_counter() - started
        for task in self.tasks:
            if isinstance(task.op, Write) and task.writing is None:
                task.writing = Writing(task.op, feed=self.runner.grammar.special.bos)
        self._start_drawings([t for t in self.tasks if isinstance(t.op, Draw) and t.drawing is None])
        return events

    def _parts_of(self, op: Operation | None, generator: torch.Generator) -> list[Part]:
        if isinstance(op, Say):
            return [Text(self._ids(op.text))]
        assert isinstance(op, Look)
        config = self.runner.config
        parts: list[Part] = []
        if op.vae:
            pixels = config.vae_resize(op.image)
            down, channels = config.autoencoder.downsample, config.autoencoder.z_channels
            shape = (channels, pixels.shape[1] // down, pixels.shape[2] // down)
            eps = op.eps if op.eps is not None else torch.randn(shape, generator=generator)
            latents = self.runner.read_latents(pixels[None], eps[None])[0]
            patch = config.latent_patch_size
            parts.append(Latents((shape[1] // patch, shape[2] // patch), latents))
        if op.vit:
            pixels = config.vit_resize(op.image)
            patch = config.vit.patch_size
            parts.append(Patches((pixels.shape[1] // patch, pixels.shape[2] // patch), patchify(pixels, patch)))
        return parts

    def _ids(self, text: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(text, tuple):
            return text
        assert self.tokenizer is not None, "this engine has no tokenizer: give token ids"
        return self.tokenizer.encode(text)

    # ---- decoding

    def _decode(self, writers: Sequence[Task]) -> list[EngineEvent]:
        """The next tokens of every writer: one for sure, and of the guesses after it those that come true. A finished
        text feeds its eos in the same forward as the others' tokens."""
        started = time.perf_counter()
        fed_BN = self._fed(writers)
        logits_BNV = self.runner.feed([t.main for t in writers], fed_BN)
        events: list[EngineEvent] = []
        going = list(range(len(writers)))
        for n in range(len(fed_BN[0])):
            rest = len(fed_BN[0]) - n - 1
            ended = [b for b in going if _writing(writers[b]).closing]
            for b in ended:
                self.runner.cache.retract(writers[b].main, rest)
                events += self._end_text(writers[b])
            going = [b for b in going if b not in ended]
            if not going:
                break
            chosen = self._choose([writers[b] for b in going], logits_BNV[going, n])
            for b, token in zip(going, chosen, strict=True):
                events += self._take(writers[b], token)
            right = [b for b in going if fed_BN[b][n + 1 : n + 2] == [_writing(writers[b]).feed]]
            for b in set(going).difference(right):
                w = _writing(writers[b])
                self.runner.cache.retract(writers[b].main, rest)
                w.guesses = next_limit(w.guesses, n)
            going = right
        self.seconds["decode"] += time.perf_counter() - started
        return events

    def _fed(self, writers: Sequence[Task]) -> list[list[int]]:
        """What every writer feeds: its next token and guesses; all equally many, eos where there are fewer."""
        special = self.runner.grammar.special
        fed = []
        for task in writers:
            w, guesses = _writing(task), list[int]()
            if self.guesser is not None and not w.closing:
                guesses = self.guesser.guess([special.bos, *w.ids[-max(SPANS) :]], w.guesses)
            fed.append([w.feed, *guesses])
        longest = max(map(len, fed))
        return [[*tokens, *[special.eos] * (longest - len(tokens))] for tokens in fed]

    def _take(self, task: Task, token: int) -> list[EngineEvent]:
        """Go on with a token that was chosen."""
        w, special = _writing(task), self.runner.grammar.special
        w.take(token, special.eos)
        if self.guesser is not None:
            ids = w.ids[-max(SPANS) - 1 :]
            tail = [special.bos, *ids, *[special.eos] * w.closing][-max(SPANS) - 1 :]
            self.guesser.learn(tail, len(tail) - 1)
        return [] if w.closing else self._show(task, w)

    def _choose(self, writers: Sequence[Task], logits_BV: Tensor) -> list[int]:
        """Greedy, or by each request's own random numbers (the Gumbel-max form of sampling)."""
        temperatures = [t.writing.op.temperature for t in writers]  # type: ignore[union-attr]
        if any(temperatures):
            uniform_BV = torch.stack(
                [
                    torch.rand(logits_BV.shape[1], generator=t.generator)
                    if temperature
                    else torch.full((logits_BV.shape[1],), 0.5)
                    for t, temperature in zip(writers, temperatures, strict=True)
                ]
            ).to(logits_BV.device)
            gumbel_BV = -(-uniform_BV.clamp_min(1e-20).log()).clamp_min(1e-20).log()
            scale_B1 = torch.tensor(temperatures, device=logits_BV.device)[:, None]
            logits_BV = logits_BV + scale_B1 * gumbel_BV
        return logits_BV.argmax(dim=-1).tolist()

    def _show(self, task: Task, w: Writing) -> list[EngineEvent]:
        if self.tokenizer is None:
            return []
        if w.stream is None:
            w.stream = self.tokenizer.stream()
        piece = w.stream(w.ids[-1])
        return [TextPiece(task.index, piece)] if piece else []

    def _end_text(self, task: Task) -> list[EngineEvent]:
        w = _writing(task)
        handles = task.append([Text(tuple(w.ids))])
        task.writing = None
        text = self.tokenizer.decode(w.ids) if self.tokenizer is not None else ""
        written = Written(handles, text, tuple(w.ids), time.perf_counter() - w.started, w.complete)
        task.advance(written)
        return [OperationDone(task.index, written)]

    # ---- drawing

    def _start_drawings(self, tasks: Sequence[Task]) -> None:
        """Noise, time grid and guidance contexts; what a branch lacks is prefilled, all branches in one forward."""
        started = time.perf_counter()
        missing: list[tuple[Any, list[Part]]] = []
        for task in tasks:
            op = task.op
            assert isinstance(op, Draw)
            stride = self.runner.config.image_stride
            grid = (op.height // stride, op.width // stride)
            shape = (grid[0] * grid[1], self.runner.config.latent_values)
            noise = op.noise if op.noise is not None else torch.randn(shape, generator=task.generator)
            s = op.settings
            times = time_grid(s.num_timesteps, s.timestep_shift).tolist()
            drawing = Drawing(op, grid, noise.to(self.runner.model.device, torch.float32), times, task.main)
            task.drawing = drawing
            if s.cfg_text_scale > 1:
                drawing.text_free, parts = task.branch(op.without_text)
                missing.append((drawing.text_free, parts))
                if s.cfg_img_scale > 1:
                    drawing.image_free, parts = task.branch(op.without_image)
                    missing.append((drawing.image_free, parts))
        self.runner.extend(missing)
        for task in tasks:
            if (started_now := task.drawing) is not None:
                task.remember(started_now.op.without_text, started_now.text_free)
                task.remember(started_now.op.without_image, started_now.image_free)
        if tasks:
            self.seconds["prefill"] += time.perf_counter() - started

    def _denoise(self, drawers: Sequence[Task]) -> list[EngineEvent]:
        """One Euler step of every image in flight."""
        started = time.perf_counter()
        drawings = [t.drawing for t in drawers if t.drawing is not None]
        velocities = self._velocities(drawings)
        events: list[EngineEvent] = []
        for task, drawing, v_ND in zip(drawers, drawings, velocities, strict=True):
            now, after = drawing.times[drawing.step], drawing.times[drawing.step + 1]
            drawing.x_ND = drawing.x_ND - v_ND * (now - after)
            drawing.step += 1
            events.append(StepDone(task.index, drawing.step, drawing.total, after, drawing.x_ND))
        self.seconds["denoise"] += time.perf_counter() - started
        return events + self._finish_drawings([t for t in drawers if t.drawing and t.drawing.step == t.drawing.total])

    def _velocities(self, drawings: Sequence[Drawing]) -> list[Tensor]:
        """Guided velocity of every image: one forward for all images and branches."""
        wanted = [d.contexts for d in drawings]
        key = (self.runner.cache.slots, tuple((d, len(cs)) for d, cs in zip(drawings, wanted, strict=True)))
        if self._plan is None or self._plan[0] != key:
            blocks = [(c, d.grid) for d, contexts in zip(drawings, wanted, strict=True) for c in contexts]
            self._plan = (None, self.runner.branches(blocks))
            # planning may have grown the cache
            self._plan = ((self.runner.cache.slots, key[1]), self._plan[1])
        x_GD = torch.cat([d.x_ND for d, contexts in zip(drawings, wanted, strict=True) for _ in contexts])
        sizes = [len(d.x_ND) for d, contexts in zip(drawings, wanted, strict=True) for _ in contexts]
        times = [d.times[d.step] for d, contexts in zip(drawings, wanted, strict=True) for _ in contexts]
        if len(set(times)) == 1:  # in step with each other
            times_G = torch.tensor(times[:1], device=x_GD.device)
        else:
            times_G = torch.repeat_interleave(torch.tensor(times), torch.tensor(sizes)).to(x_GD.device)
        pieces = iter(self._plan[1].velocity(x_GD, times_G).split(sizes))
        return self._guided(drawings, [[next(pieces) for _ in contexts] for contexts in wanted])

    @staticmethod
    def _guided(drawings: Sequence[Drawing], raw: list[list[Tensor]]) -> list[Tensor]:
        """Guidance, once for all images that share branches and settings."""
        out: list[Tensor] = [pieces[0] for pieces in raw]
        groups: dict[Any, list[int]] = {}
        for i, (drawing, pieces) in enumerate(zip(drawings, raw, strict=True)):
            if len(pieces) > 1:
                s = drawing.op.settings
                rule = (len(pieces), s.cfg_text_scale, s.cfg_img_scale, s.cfg_renorm_type, s.cfg_renorm_min)
                groups.setdefault(rule, []).append(i)
        for (branches, text_scale, image_scale, renorm, least), members in groups.items():
            sizes = [len(raw[i][0]) for i in members]
            stacked = [torch.cat([raw[i][b] for i in members]) for b in range(branches)]
            group_G = torch.repeat_interleave(torch.arange(len(members)), torch.tensor(sizes)).to(stacked[0].device)
            image_free = stacked[2] if branches > 2 else None
            guided = guide(stacked[0], stacked[1], image_free, text_scale, image_scale, renorm, least, group_G)
            for i, piece in zip(members, guided.split(sizes), strict=True):
                out[i] = piece
        return out

    def _finish_drawings(self, tasks: Sequence[Task]) -> list[EngineEvent]:
        """Decode finished latents, images of one size together."""
        started = time.perf_counter()
        by_grid: dict[tuple[int, int], list[Task]] = {}
        for task in tasks:
            assert task.drawing is not None
            by_grid.setdefault(task.drawing.grid, []).append(task)
        events: list[EngineEvent] = []
        for grid, members in by_grid.items():
            patch = self.runner.config.latent_patch_size
            latents = [unpatchify(t.drawing.x_ND, grid, patch) for t in members if t.drawing]
            pixels_B3HW = self.runner.decode_latents(torch.stack(latents))
            for task, latent, pixels in zip(members, latents, pixels_B3HW, strict=True):
                drawing = task.drawing
                assert drawing is not None
                image = to_image(pixels)
                drawn = Drawn(image, latent, time.perf_counter() - drawing.started)
                task.end_drawing()
                events.append(OperationDone(task.index, drawn))
                task.advance(drawn)
        if tasks:
            self.seconds["vae"] += time.perf_counter() - started
        return events


def _writing(task: Task) -> Writing:
    """The text that a task is writing."""
    assert task.writing is not None
    return task.writing
