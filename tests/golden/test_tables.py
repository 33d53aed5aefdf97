"""Case k: masks, position ids, patchify, resize sizes, resized pixels, time embedding; and the grids of g."""

import ast
import math
import re
from collections.abc import Callable

import torch

from irg.engine.flow import time_grid
from irg.engine.guidance import scales_at
from irg.model.network.embeddings import TimeEmbedder
from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.images import ResizeRule, patchify, unpatchify
from irg.sequence.layout import SplitMode, cells_of, visibility_of

from .fixture import Case, close, equal, numbered, read_image, sub_cases


def test_masks(case: Callable[[str], Case]) -> None:
    k = case("k_tables")
    for index, wanted in enumerate(numbered(k, "mask{}")):
        lens, modes = re.findall(r"\[[^\]]*\]", k.what(f"mask{index}"))[-2:]
        splits = [SplitMode[mode.upper()] for mode in ast.literal_eval(modes)]
        equal(visibility_of(ast.literal_eval(lens), splits), wanted, f"mask{index}")


def test_position_ids(case: Callable[[str], Case]) -> None:
    k = case("k_tables")
    names = [name for name in k.names if name.startswith("pos_ext_")]
    assert names
    for name in names:
        height, width, patch = (int(n) for n in re.fullmatch(r"pos_ext_(\d+)x(\d+)_p(\d+)", name).groups())  # type: ignore[union-attr]
        side = int(re.search(r"(\d+) per side", k.what(name)).group(1))  # type: ignore[union-attr]
        equal(cells_of((height // patch, width // patch), side), k[name], name)


def test_patchify(case: Callable[[str], Case]) -> None:
    k = case("k_tables")
    image, wanted = k["patchify_in"], k["patchify_out"]
    patch = math.isqrt(wanted.shape[1] // image.shape[0])
    close(patchify(image, patch), wanted, "patchify", atol=0)
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    close(unpatchify(wanted, grid, patch), image, "unpatchify", atol=0)


def test_resize_sizes(case: Callable[[str], Case]) -> None:
    resize = case("k_tables").values["resize"]
    assert resize
    for name, sizes in resize.items():
        rule = ResizeRule(*(int(n) for n in name.split("_")[-3:]))
        for size in sizes:
            assert list(rule.size(*size["in_wh"])) == size["out_wh"], f"{name}: {size['in_wh']}"


def test_resized_pixels(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    k = case("k_tables")
    image = read_image(k, "resize_in_u8")
    close(loaded.config.vae_resize(image), k["resize_vae_out"], "resize_vae_out", atol=1e-6)
    close(loaded.config.vit_resize(image), k["resize_vit_out"], "resize_vit_out", atol=1e-6)


@torch.no_grad()
def test_time_embedding(case: Callable[[str], Case], loaded: LoadedModel, device: torch.device) -> None:
    k = case("k_tables")
    times = k["time_t"].to(device)
    close(TimeEmbedder.sinusoid(times), k["time_freq"], "time_freq", atol=1e-6)
    close(loaded.model.time_embedder(times), k["time_embed"], "time_embed")


def test_time_grids_and_steps(case: Callable[[str], Case]) -> None:
    g = case("g_generate_image")
    for run in sub_cases(g, "timesteps"):
        settings = g.values[f"{run}.settings"]
        grid = time_grid(settings["num_timesteps"], settings["timestep_shift"])
        close(grid[:-1], g[f"{run}.timesteps"], f"{run}.timesteps", atol=1e-7)
        latents = [g[name] for name in g.names if name.startswith(f"{run}.latent") and name[-1].isdigit()]
        x, v = g[f"{run}.x"], g[f"{run}.v"]
        after = torch.cat([x[1:], torch.cat(latents)[None]])
        stepped = [x[i] - v[i] * (grid[i] - grid[i + 1]) for i in range(len(x))]
        close(torch.stack(stepped), after, f"{run}: Euler steps", atol=1e-5)
    for name in g.names:
        if match := re.fullmatch(r"grid(\d+)_shift([\d.]+)", name):
            close(time_grid(int(match[1]), float(match[2])), g[name], name, atol=1e-7)


def test_guidance_intervals(case: Callable[[str], Case]) -> None:
    g = case("g_generate_image")
    for run in sub_cases(g, "timesteps"):
        s = g.values[f"{run}.settings"]
        wanted = (s.get("cfg_text_scale", 1.0), s.get("cfg_img_scale", 1.0))
        interval = tuple(s.get("cfg_interval", (0, 1)))
        used = [scales_at(t, *wanted, interval) for t in g[f"{run}.timesteps"]]
        assert [text for text, _ in used] == s["text_scale_used"], run
        assert [image for _, image in used] == s["img_scale_used"], run
