"""Case f: velocities of the three contexts, and guided ones."""

import re
from collections.abc import Callable

import torch

from irg.engine.guidance import guide
from irg.engine.ops import Draw, Look, Program, Said, Say, Write, Written
from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel

from .fixture import Case, close, equal, read_image, sub_cases
from .runs import Watched, check_contexts, draw_settings, grid_of, restore_all
from .test_guidance import SETTINGS

CONTEXTS = ("main", "cfg_text", "cfg_img")
PREFIXES = ("", "cfg_text_", "cfg_img_")


def test_velocities(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    """All contexts in one forward, at every recorded time with one plan; the contexts are left as they were."""
    f = case("f_velocity")
    runner = Runner(loaded.model, loaded.autoencoder, rows=1, slots=8)
    contexts = [context for name in CONTEXTS for context in restore_all(runner, f.context(name))]
    equal([c.position for c in contexts], [f.integers(f"in.{n}packed_position_ids")[0] for n in PREFIXES], "positions")
    x = f["in.packed_init_noises"].to(runner.model.device)
    grid = grid_of(f, "in.packed_vae_position_ids", runner.grammar.latent_side)
    assert grid[0] * grid[1] == len(x)
    branches = runner.branches([(context, grid) for context in contexts])
    checked = 0
    for name in sub_cases(f, "raw_main"):
        if not (told := re.search(r"t=([\d.]+)", f.what(f"{name}.raw_main"))):
            continue  # made-up velocities
        t = torch.full((len(contexts) * len(x),), float(told[1]), device=x.device)
        raw = branches.velocity(x.repeat(len(contexts), 1), t).split(len(x))
        for context, got in zip(CONTEXTS, raw, strict=True):
            close(got, f[f"{name}.raw_{context}"], f"{name}.raw_{context}")
        for result in f.names:
            if result.startswith(f"{name}.") and (match := SETTINGS.search(f.what(result))):
                renorm, text, image, least = match[1], *(float(n) for n in match.groups()[1:])
                close(guide(*raw, text, image, renorm, least), f[result], result)
                checked += 1
    assert checked
    for name, context in zip(CONTEXTS, contexts, strict=True):
        check_contexts(runner, [context], f.context(name), f"{name} after the predictions")


def test_contexts_of_a_program(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    """The engine makes the same three contexts out of one sequence, prefilling only what a branch lacks."""
    f = case("f_velocity")
    ids = {name: tuple(numbers) for name, numbers in f.values["prompts"].items()}
    rows, columns = grid_of(f, "in.packed_vae_position_ids", loaded.config.max_latent_size)
    stride = loaded.config.image_stride
    settings = draw_settings({"num_timesteps": 3, "cfg_text_scale": 4.0, "cfg_img_scale": 2.0})

    def program() -> Program:
        yield Say(ids["sys"])
        yield Say(ids["prompt"])
        yield Write(len(ids["think1"]), forced=ids["think1"])
        looked: Said = yield Look(read_image(f, "ctx.image_u8"), eps=f["ctx.vae_eps"][0])
        thought: Written = yield Write(len(ids["think2"]), forced=ids["think2"])
        yield Draw(rows * stride, columns * stride, settings, thought.handles, looked.handles)

    watched = Watched(Runner(loaded.model, loaded.autoencoder, rows=1, slots=8))
    drawings = 0
    for drawing in watched.run(program()):
        drawings += 1
        for name, context in zip(CONTEXTS, drawing.contexts, strict=True):
            check_contexts(watched.runner, [context], f.context(name), name)
    assert drawings == 1
