"""Case g: whole sampling runs, every step of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from irg.engine.cache import Context
from irg.engine.flow import time_grid
from irg.engine.guidance import guide, scales_at
from irg.engine.ops import Draw, Look, Program, Said, Say, Write, Written
from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.images import to_image, unpatchify

from .fixture import Case, close, close_uint8, latent_grid, read_image, sub_cases
from .runs import Watched, check_contexts, check_steps, draw_settings, restore_all

BRANCHES = {"main": "", "cfg_text": "cfg_text_", "cfg_img": "cfg_img_"}


def recorded_context(g: Case, run: str, prefix: str) -> str | None:
    """Which recorded context a run drew on: the one of the run's KV lengths and target positions."""
    if f"{run}.in.{prefix}key_values_lens" not in g:
        return None
    lens = g.integers(f"{run}.in.{prefix}key_values_lens")
    target = g.integers(f"{run}.in.{prefix}packed_position_ids")
    found = [
        name
        for name in sub_cases(g, "kv_lens")
        if g.integers(f"{name}.kv_lens") == lens and sorted(set(target)) == sorted(set(g.integers(f"{name}.rope")))
    ]
    assert len(found) == 1, f"{run}: {found}"
    return found[0]


def images(loaded: LoadedModel, settings: dict[str, Any]) -> list[tuple[int, int]]:
    """Token grids of a run's images."""
    return [latent_grid(loaded.config, *size) for size in settings["image_sizes"]]


def sample(
    runner: Runner,
    contexts: dict[str, list[Context]],
    grids: list[tuple[int, int]],
    recorded: dict[str, Any],
    noise: Tensor,
) -> list[Tensor]:
    """x after every step. All images of the run are one renorm group, as in the reference."""
    s = draw_settings(recorded)
    times, x, out = time_grid(s.num_timesteps, s.timestep_shift), noise.to(runner.model.device), []
    branches = runner.branches([pair for group in contexts.values() for pair in zip(group, grids, strict=True)])
    for now, after in zip(times, times[1:], strict=False):
        text, image = scales_at(now, s.cfg_text_scale, s.cfg_img_scale, s.cfg_interval)
        raw = branches.velocity(
            x.repeat(len(contexts), 1), torch.full((len(contexts) * len(x),), float(now), device=x.device)
        )
        by_name = dict(zip(contexts, raw.split(len(x)), strict=True))
        free = (by_name.get(name) for name in ("cfg_text", "cfg_img"))
        v = guide(by_name["main"], *free, text, image, s.cfg_renorm_type, s.cfg_renorm_min)
        x = x - v * float(now - after)
        out.append(x.cpu())
    return out


def test_runs_on_recorded_contexts(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    """All runs, the packed ones included."""
    g = case("g_generate_image")
    for run in sub_cases(g, "x"):
        runner = Runner(loaded.model, loaded.autoencoder, rows=1, slots=8)
        recorded = g.values[f"{run}.settings"]
        names = {branch: recorded_context(g, run, prefix) for branch, prefix in BRANCHES.items()}
        contexts = {b: restore_all(runner, g.context(name)) for b, name in names.items() if name is not None}
        noise = g[f"{run}.in.packed_init_noises"]
        latents = sample(runner, contexts, images(loaded, recorded), recorded, noise)
        s = draw_settings(recorded)
        check_steps(g, run, noise, time_grid(s.num_timesteps, s.timestep_shift), latents)
        for branch, name in names.items():
            if name is not None:
                check_contexts(runner, contexts[branch], g.context(name), f"{run}: {name} after the run")


def test_runs_of_the_engine(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    """Runs of one image as programs. Case f tells the texts of the contexts that both cases use."""
    g, f = case("g_generate_image"), case("f_velocity")
    if not all(torch.equal(g[f"{name}.{kv}"], f[f"{name}.{kv}"]) for name in BRANCHES for kv in "kv"):
        pytest.skip("case f has other contexts than case g, whose texts are told nowhere")
    ids = {name: tuple(numbers) for name, numbers in f.values["prompts"].items()}

    def program(run: str, improving: bool) -> Program:
        settings = g.values[f"{run}.settings"]
        yield Say(ids["sys"])
        asked: Said = yield Say(ids["prompt"])
        thought: Written = yield Write(len(ids["think1"]), forced=ids["think1"])
        without_text, without_image = asked.handles + thought.handles, ()
        if improving:
            looked: Said = yield Look(read_image(g, "ctx.image_u8"), eps=g["ctx.vae_eps"][0])
            thought = yield Write(len(ids["think2"]), forced=ids["think2"])
            without_text, without_image = thought.handles, looked.handles
        (size,) = settings["image_sizes"]
        noise = g[f"{run}.in.packed_init_noises"]
        return (yield Draw(*size, draw_settings(settings), without_text, without_image, noise))

    runs = [run for run in sub_cases(g, "x") if len(g.values[f"{run}.settings"]["image_sizes"]) == 1]
    assert runs
    for run in runs:
        watched = Watched(Runner(loaded.model, loaded.autoencoder, rows=1, slots=8))
        for drawing in watched.run(program(run, improving=recorded_context(g, run, "") == "main")):
            for branch, context in zip(
                BRANCHES, (drawing.main, drawing.text_uncond, drawing.image_uncond), strict=True
            ):
                name = recorded_context(g, run, BRANCHES[branch])
                if context is not None:
                    assert name is not None, f"{run}: {branch} is not needed"
                    check_contexts(watched.runner, [context], g.context(name), f"{run}: {name}")
        (drawing,), (latents,) = watched.drawings, watched.latents
        assert drawing.op.noise is not None
        check_steps(g, run, drawing.op.noise, drawing.times, latents)


def test_decoded(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    g = case("g_generate_image")
    runner = Runner(loaded.model, loaded.autoencoder)
    for run in sub_cases(g, "latent_map"):
        ((grid),) = images(loaded, g.values[f"{run}.settings"])
        latent = unpatchify(g[f"{run}.latent0"], grid, loaded.config.latent_patch_size)
        close(latent[None], g[f"{run}.latent_map"], f"{run}.latent_map", atol=0)
        if f"{run}.decoded" in g:
            pixels = runner.decode_latents(latent[None])
            close(pixels, g[f"{run}.decoded"], f"{run}.decoded")
            close_uint8(
                np.asarray(to_image(pixels[0])), g[f"{run}.decoded_u8"], g[f"{run}.decoded"][0], f"{run}.decoded_u8"
            )
