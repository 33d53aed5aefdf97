"""Cases h_*: the whole interleaved sequence, by our own program on the engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from irg.engine.engine import Engine
from irg.engine.ops import Draw, Drawn, Look, Program, Say, Write
from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel
from irg.reasoning.protocols.base import Job, Step
from irg.reasoning.protocols.irg import IRG
from irg.reasoning.settings import Settings
from irg.sequence.images import to_image
from irg.sequence.parts import Latents

from . import fixture
from .fixture import Case, close, close_uint8, equal, read_image
from .runs import Watched, check_contexts, check_steps, draw_settings, held

BRANCHES = ("main", "cfg_text", "cfg_img")


@pytest.fixture
def cases(case: Callable[[str], Case], case_names: list[str]) -> list[Case]:
    found = [case(name) for name in case_names if name.startswith("h_")]
    assert found
    return found


def draws(h: Case) -> list[dict[str, Any]]:
    """What is recorded of every image: settings, KV lengths and target positions of its contexts."""
    return [step for step in h.values["steps_in_call_order"] if step["call"] == "generate_image"]


@dataclass
class Replay:
    """The program ``irg`` with the recorded texts and noises; with ``strict``, it also looks at the recorded image.

    Texts are forced token by token: the model's own choices are case e's business.
    """

    h: Case
    strict: bool

    def program(self) -> Program:
        h, ids = self.h, {name: tuple(numbers) for name, numbers in self.h.values["ids"].items()}
        first, later = (draw_settings(step["settings"]) for step in draws(h))
        height, width = h["image1.u8"].shape[:2]
        program = IRG().program(Job("prompt", "sys", Settings(initial=first, improving=later), height, width))
        thoughts, noises, op = (
            iter((ids["think1"], ids["think2"])),
            iter(("image1.noise", "image2.noise")),
            next(program),
        )
        while True:
            match op:
                case Say(str(name)):
                    op = Say(ids[name])
                case Write():
                    op = replace(op, forced=next(thoughts))
                case Draw():
                    op = replace(op, noise=h[next(noises)])
                case Look(own):
                    op = replace(
                        op, image=read_image(h, "image1.u8") if self.strict else own, eps=h["context.vae_eps"][0]
                    )
            try:
                op = program.send((yield op))
            except StopIteration as stop:
                return stop.value


def contexts_of(h: Case, turn: int) -> Iterator[tuple[str, fixture.Context]]:
    """The recorded contexts of an image, by branch."""
    step = draws(h)[turn]
    for branch in BRANCHES:
        if step["cache_lens"][branch] is not None:
            k, v = (h[f"image{turn + 1}.{branch}.{what}"] for what in "kv")
            yield branch, fixture.Context(k, v, [step["cache_lens"][branch]], [step["target_position"][branch]])


def close_image(h: Case, name: str, drawn: Drawn, runner: Runner) -> None:
    """Latents, decoder output and the image as it is saved."""
    equal(to_image(h[f"{name}.decoded"][0]), h[f"{name}.u8"], f"{name}.u8 of the recorded decoder output")
    close(drawn.latents[None], h[f"{name}.latent_map"], f"{name}.latent_map")
    close(runner.decode_latents(drawn.latents[None]), h[f"{name}.decoded"], f"{name}.decoded")
    close_uint8(np.asarray(drawn.image), h[f"{name}.u8"], h[f"{name}.decoded"][0], f"{name}.u8")


def test_every_step(cases: list[Case], loaded: LoadedModel) -> None:
    """Turn 2 is fed the recorded image, as one gray level may differ in ours."""
    for h in cases:
        watched = Watched(Runner(loaded.model, loaded.autoencoder, rows=1, slots=8))
        steps: list[Step] = []

        def program(h: Case = h, steps: list[Step] = steps) -> Program:
            steps += yield from Replay(h, strict=True).program()

        for turn, drawing in enumerate(watched.run(program())):
            request = watched.engine.scheduler.running[0]
            by_branch = dict(zip(BRANCHES, (drawing.main, drawing.text_uncond, drawing.image_uncond), strict=True))
            recorded = dict(contexts_of(h, turn))
            assert set(recorded) == {branch for branch, context in by_branch.items() if context is not None}
            for branch, wanted in recorded.items():
                check_contexts(watched.runner, [by_branch[branch]], wanted, f"{h.name}, image {turn + 1}, {branch}")
            keys, values = held(watched.runner, drawing.main)
            for part in request.parts:
                if isinstance(part, Latents):
                    close(part.content[None], h["context.vae_latent"], "context.vae_latent")
        for name in [name.removesuffix(".k") for name in h.names if name.endswith(".after.k")]:
            n = h[f"{name}.k"].shape[1]  # a cache after a single prefill: a prefix of what image 2 is drawn on
            close(keys[:, :n], h[f"{name}.k"], f"{h.name}: {name}.k")
            close(values[:, :n], h[f"{name}.v"], f"{h.name}: {name}.v")
        # main's (length, position) after every part, as the recorded calls list them
        calls = [s for s in h.values["steps_in_call_order"] if s.get("context", "").startswith("main")]
        boundaries = [(s["kv_lens_after"][0], s["rope_after"][0]) for s in calls if "kv_lens_after" in s]
        assert [request.marks(range(n + 1)) for n in range(len(request.parts))] == boundaries, h.name
        for turn, (drawing, latents, step) in enumerate(zip(watched.drawings, watched.latents, steps, strict=True)):
            name = f"image{turn + 1}"
            check_steps(h, name, h[f"{name}.noise"], drawing.times, latents)
            assert step.image is not None
            close_image(h, name, step.image, watched.runner)
        close(loaded.config.vae_resize(read_image(h, "image1.u8"))[None], h["context.vae_input"], "vae_input", atol=0)


def test_end_to_end(cases: list[Case], loaded: LoadedModel) -> None:
    """With our own image 1, all requests together. Where a value of it lies on a truncation edge, a gray level may
    differ; then a few of image 2 may."""
    runner = Runner(loaded.model, loaded.autoencoder, rows=1, slots=8)
    results = Engine(runner).run([(Replay(h, strict=False).program(), 0) for h in cases])
    for h, steps in zip(cases, results, strict=True):
        first, second = (step.image for step in steps)
        close_image(h, "image1", first, runner)
        if np.array_equal(np.asarray(first.image), h["image1.u8"]):
            close(second.latents[None], h["image2.latent_map"], "image2.latent_map")
        off = np.abs(np.asarray(second.image).astype(int) - h["image2.u8"].numpy().astype(int))
        assert off.max() <= 1, f"{h.name}: {int((off > 1).sum())} values of image 2 are off by more than a grey level"
        equal(
            [len(step.thinking.ids) for step in steps], [len(h.values["ids"][n]) for n in ("think1", "think2")], "ids"
        )
