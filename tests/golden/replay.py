"""Recorded runs of other models' protocols, replayed by our own programs.

A case tells, in the order of calls, what was put into which context, what was written, and what each image was drawn
on. A protocol's program is run on the engine with the recorded texts (as ids), images and noises in the place of its
own; guidance, contexts and what follows what are its own. Texts that it reads (a stop, an edit) are written for the
case by a :class:`Script`: the recordings have ids only. Texts that it puts in are looked up by their names in the case.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from irg.engine.cache import Context
from irg.engine.ops import Draw, Look, Program, Say, Write, Written
from irg.engine.runner import Runner
from irg.reasoning.protocols.base import Job, Protocol, Step, Task
from irg.reasoning.settings import Settings, with_options
from irg.sequence.images import ResizeRule

from . import fixture
from .fixture import Case, close, equal, read_image
from .runs import Watched, check_contexts


@dataclass(frozen=True)
class Script:
    """How a case's recordings and a protocol's program meet.

    Attributes:
        texts: the case's name of each official text.
        text_of: the text that stands for what was written under a name; default: the name.
        said: the case's name of a text that is put in; default: the text.
        to_the_end: the recording ends with its last image, not with a stop: that many rounds are asked for.
    """

    protocol: type[Protocol]
    texts: Mapping[str, str] = field(default_factory=dict)
    task: Task = "generate"
    prompt: str = "user prompt"
    text_of: Callable[[str, Case], str] = lambda name, case: name
    said: Callable[[str], str] = lambda text: text
    to_the_end: bool = False


def steps(case: Case, what: str) -> list[dict[str, Any]]:
    """The recorded calls that write (``writes``) or draw (``draws``), in order."""
    return [step for step in case.values["steps_in_call_order"] if what in step]


class Replay:
    """One case, run by its protocol's program; contexts of texts are checked as they are written."""

    def __init__(self, case: Case, script: Script, runner: Runner) -> None:
        self.case, self.script = case, script
        self.watched = Watched(runner)
        self.writes, self.draws = iter(steps(case, "writes")), iter(steps(case, "draws"))
        self.images = iter(self._looked_at())
        self.written: list[Written] = []
        self.result: list[Step] = []

    def job(self) -> Job:
        """The request as the authors' scripts make it, with the case's rules of resizing."""
        protocol, case = self.script.protocol(), self.case
        images = (read_image(case, "image0.u8"),) if "image0.u8" in case else ()
        height, width = case["image1.u8"].shape[:2]
        rules = {f"{name}_resize": ResizeRule(*rule) for name, rule in case.values["transforms_used_here"].items()}
        texts = dict(self.script.texts)
        system = texts.get(protocol.system_text("generate"), "")
        options = protocol.job_options(self.watched.runner.config) | rules
        settings = with_options(Settings(), protocol.settings)
        if self.script.to_the_end:
            settings = replace(settings, rounds=len(steps(case, "draws")) - 1)
        return Job(self.script.prompt, system, settings, height, width, self.script.task, images, texts, **options)

    def run(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Run to the end; every image's recorded call and its drawing, after its first step."""
        calls = iter(steps(self.case, "draws"))
        for drawing in self.watched.run(self._program()):
            yield next(calls), drawing
        for left in (self.writes, self.draws, self.images):
            assert next(left, None) is None, f"{self.case.name}: recorded, and not done"

    def _program(self) -> Program:
        program = self.script.protocol().program(self.job())
        op = next(program)
        while True:
            match op:
                case Say(str(text)):
                    result = yield Say(self._ids(self.script.said(text)))
                case Look():
                    result = yield self._look(op)
                case Draw():
                    result = yield self._draw(op)
                case Write():
                    result = yield from self._write(op)
                case _:
                    result = yield op
            try:
                op = program.send(result)
            except StopIteration as stop:
                self.result = stop.value
                return

    def _ids(self, name: str) -> tuple[int, ...]:
        return tuple(self.case.values["ids"][name])

    def _look(self, op: Look) -> Look:
        """The recorded image, in the same form: the same encoders, and the recorded sample of the posterior."""
        number, vae, vit = next(self.images)
        assert (op.vae, op.vit) == (vae is not None, vit is not None), f"{self.case.name}: image {number}"
        eps = self.case[f"{vae}.eps"][0] if f"{vae}.eps" in self.case else None
        assert (eps is None) == (not op.vae or op.posterior == "mean")
        image = read_image(self.case, f"image{number}.u8")
        if vit is not None:
            config = self.watched.runner.config
            patches = fixture.patches_of(replace(config, vit_resize=op.vit_resize or config.vit_resize), image)
            close(patches.content, self.case[f"{vit}.vit_patches"], f"{self.case.name}: {vit}", atol=1e-6)
        return replace(op, image=image, eps=eps)

    def _looked_at(self) -> Iterator[tuple[int, str | None, str | None]]:
        """(image, tensors of the autoencoder's and the ViT's view) in the order in which contexts first have them.

        Branches that were made anew from the same image count once: ours share its parts.
        """
        seen: set[str] = set()
        calls = [s for s in self.case.values["steps_in_call_order"] if "writes" in s or "draws" in s]
        for call in calls:
            parts = call["context"] if "writes" in call else call["contexts"]["main"]["parts"]
            views = [part for part in parts if part["kind"] != "text" and part["tensor"] not in seen]
            while views:
                first = views.pop(0)
                seen.add(first["tensor"])
                number = int(first["content"][0].split()[-1])
                if first["kind"] == "vit":
                    yield number, None, first["tensor"]
                elif views and views[0]["kind"] == "vit" and views[0]["content"] == first["content"]:
                    second = views.pop(0)
                    seen.add(second["tensor"])
                    yield number, first["tensor"], second["tensor"]
                else:
                    yield number, first["tensor"], None

    def _draw(self, op: Draw) -> Draw:
        """The recorded noise, on the recorded number of time points. Guidance stays the protocol's."""
        call, case = next(self.draws), self.case
        name = call["draws"].replace(" ", "")
        settings = replace(op.settings, num_timesteps=call["settings"]["num_timesteps"])
        sde_noise = None
        if "sde" in call:
            assert settings.sde_noise_level == call["sde"]["noise_level"]
            assert settings.sde_window_size == len(call["sde"]["steps"])
            settings = replace(settings, sde_window_start=call["sde"]["begin"])
            sde_noise = case[f"{name}.sde_noise"]
        assert op.settings.timestep_shift == call["settings"]["timestep_shift"]
        return replace(op, settings=settings, noise=case[f"{name}.noise"], sde_noise=sde_noise)

    def _write(self, op: Write) -> Iterator[Any]:
        """The recorded text; its context is checked."""
        call = next(self.writes)
        name = call["writes"]
        what = f"{self.case.name}: context of {name}"
        assert op.temperature == call["temperature"] and op.max_tokens == call["max_length"], what
        if call.get("top_p") is not None:
            assert op.top_p == call["top_p"], what
        prefix, choices = tuple(call.get("forced_prefix", ())), op.choices
        assert bool(op.prefix) == bool(prefix) and bool(choices) == ("score_field" in call), what
        written = yield replace(op, prefix=prefix, choices=(), forced=tuple(call["ids"]))
        request = self.watched.engine.scheduler.running[0]
        context = Context(request.main.row, call["cache_len"], call["start_position"][0])
        recorded = fixture.Context(
            self.case[f"{call['tensor']}.k"], self.case[f"{call['tensor']}.v"], [context.length], [context.position]
        )
        check_contexts(self.watched.runner, [context], recorded, what)
        added = len(prefix) + len(call["ids"]) + 2
        equal((request.main.length, request.main.position), (context.length + added, context.position + added), what)
        if f"{call['tensor']}.logits" in self.case:
            self._check_logits(context, call, prefix)
        self.written.append(written)
        return replace(written, text=self.script.text_of(name, self.case))

    def _check_logits(self, context: Context, call: dict[str, Any], prefix: tuple[int, ...]) -> None:
        """Logits after the prefix and after each token of the text."""
        runner = self.watched.runner
        fork = runner.cache.fork(context, context.length, context.position)
        fed = [runner.grammar.special.bos, *prefix, *call["ids"]]
        logits_NV = runner.feed([fork], [fed])[0]
        close(logits_NV[len(prefix) :], self.case[f"{call['tensor']}.logits"], f"{self.case.name}: logits")
        runner.cache.free(fork)
