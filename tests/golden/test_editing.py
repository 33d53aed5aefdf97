"""Editing as BAGEL does it, held against the images of other fine-tunes that were drawn on the same contexts.

ThinkMorph's first image about a given one is an edit with thinking; an edit of UMM-Reflection's is one without.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from irg.engine.engine import Engine
from irg.engine.ops import Draw, Look, Program, Say, Write
from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel
from irg.reasoning.protocols.bagel import Bagel
from irg.reasoning.protocols.base import Job, Step
from irg.reasoning.settings import Settings
from irg.sequence.images import ResizeRule, patchify

from .fixture import Case, close
from .runs import draw_settings


def drawing(case: Case, image: str) -> dict[str, Any]:
    """The record of an image."""
    found: dict[str, Any] = next(step for step in case.values["steps_in_call_order"] if step.get("draws") == image)
    return found


def replayed(case: Case, job: Job, thought: str, image: str, eps: str) -> Program:
    """The program ``edit`` with the recorded texts, noise and sample of the posterior."""
    ids = {name: tuple(numbers) for name, numbers in case.values["ids"].items()}
    program = Bagel().program(job)
    op = next(program)
    while True:
        match op:
            case Say(str(name)):
                op = Say(ids[name])
            case Write():
                op = replace(op, forced=ids[thought])
            case Draw():
                op = replace(op, noise=case[f"{image}.noise"])
                if f"{image}.sde_noise" in case:
                    op = replace(op, sde_noise=case[f"{image}.sde_noise"])
            case Look():
                op = replace(op, eps=case[eps][0])
        try:
            op = program.send((yield op))
        except StopIteration as stop:
            return stop.value


def check(case: Case, loaded: LoadedModel, program: Program, image: str) -> None:
    runner = Runner(loaded.model, loaded.autoencoder, rows=1, slots=8)
    steps: list[Step]
    (steps,) = Engine(runner).run([(program, 0)])
    drawn = steps[-1].image
    assert drawn is not None
    tokens_ND = patchify(drawn.latents, runner.config.latent_patch_size)
    close(tokens_ND, case[f"{image}.latent"], f"{case.name}, {image}.latent")
    off = np.abs(np.asarray(drawn.image).astype(int) - case[f"{image}.u8"].numpy())
    assert off.max() <= 1 and (off > 0).sum() <= 2  # truncated or rounded, a value may lie on the edge


def test_an_edit_with_thinking(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    recorded = case("protocols/thinkmorph/question_about_picture_48x80")
    given = Image.fromarray(recorded["image0.u8"].numpy())
    settings = Settings(mode="think", improving=draw_settings(drawing(recorded, "image 1")["settings"]))
    job = Job("question", "system prompt", settings, given.height, given.width, "edit", (given,))
    check(recorded, loaded, replayed(recorded, job, "thought 1", "image1", "vae0.eps"), "image1")


def test_an_edit_without_thinking(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    recorded = case("protocols/umm_reflection/reflect_64x64")
    given, step = Image.fromarray(recorded["image1.u8"].numpy()), drawing(recorded, "image 2")
    sde = {"sde_noise_level": step["sde"]["noise_level"], "sde_window_start": step["sde"]["begin"]}
    settings = Settings(mode="direct", improving=replace(draw_settings(step["settings"]), **sde))
    vae, vit = (ResizeRule(*recorded.values["transforms_used_here"][name]) for name in ("vae", "vit"))
    job = Job("payload 0", "", settings, given.height, given.width, "edit", (given,), {}, 0, vae, vit, rounded=True)
    check(recorded, loaded, replayed(recorded, job, "", "image2", "vae1.eps"), "image2")
