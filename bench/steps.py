"""Error of the samplers against a fine grid, by forwards of the network: ``python bench/steps.py --model mini``.

The thinking texts are written once; every sampler then draws the same first images from the same noise. The truth is
Euler's method in many steps, guided throughout. Told are the root mean square error of the latents, and the median
PSNR of the 8-bit images. Nothing is timed: a forward costs the same in all of them.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from engine import PROMPTS
from irg.engine.engine import Engine
from irg.engine.flow import time_grid
from irg.engine.guidance import scales_at
from irg.engine.ops import Draw, Drawn, Program, Said, Say, Write, Written
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.engine.step_cache import network_steps
from irg.files import write_json
from irg.model.weights.checkpoint import LoadedModel, load_model
from irg.model.weights.folders import model_folder
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.reasoning.settings import Settings

EARLY = (0.4, 1.0)  # times of the paper's guidance of first images
SAMPLERS: dict[str, dict[str, object]] = {
    "euler": {},
    "adams": {"solver": "adams"},
    "dpm": {"solver": "dpm"},
    "unipc": {"solver": "unipc"},
    "euler, every 2nd step": {"network_interval": 2},
    "euler, every 3rd step": {"network_interval": 3},
    "euler, every 4th step": {"network_interval": 4},
    "euler, every 5th step": {"network_interval": 5},
    "euler, gap 0.09": {"network_gap": 0.09},
    "euler, gap 0.11": {"network_gap": 0.11},
    "euler, gap 0.14": {"network_gap": 0.14},
    "adams, every 2nd step": {"solver": "adams", "network_interval": 2},
    "euler, guided above 0.4": {"cfg_interval": EARLY},
    "unipc, guided above 0.4": {"solver": "unipc", "cfg_interval": EARLY},
}


@dataclass
class Options:
    """Compare samplers of different numbers of steps with a fine grid."""

    model: str = "mini"
    """mini, or a model folder."""
    prompts: int = len(PROMPTS)
    """How many are drawn."""
    steps: tuple[int, ...] = (4, 7, 10, 14, 20, 28)
    """Updates of an image: time points less one."""
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    """Which of them."""
    seed: int = 0
    """Of the first prompt's noise; the others' are the next ones."""
    truth: int = 200
    """Steps of the fine grid."""
    guidance: float | None = None
    """By the text; default: the model's own."""
    json: Path | None = None
    """Write all numbers to this file."""


@dataclass(frozen=True)
class Row:
    """A sampler with a number of steps. ``forwards``: of one branch of one image, in all steps together."""

    sampler: str
    steps: int
    forwards: int
    rmse: float
    psnr: float


def forwards(s: DrawSettings) -> int:
    """Branches that the network runs for, all steps together: two where guidance acts."""
    times = time_grid(s.num_timesteps, s.timestep_shift).tolist()
    runs = network_steps(times, s.network_interval, s.network_gap)
    guided = [scales_at(t, s.cfg_text_scale, s.cfg_img_scale, s.cfg_interval)[0] > 1 for t in times[:-1]]
    count = 0
    for step, now in enumerate(guided):
        changes = step > 0 and now != guided[step - 1]
        count += (1 + now) * (changes or runs[step])
    return count


def program(
    system: str, prompt: str, settings: Settings, variants: Sequence[DrawSettings], noise: torch.Tensor
) -> Program:
    """Think, and draw with each of the settings from the same noise."""
    yield Say(system)
    said: Said = yield Say(prompt)
    text: Written = yield Write(settings.max_think_tokens, temperature=0.0)
    assert settings.height and settings.width
    drawn: list[Drawn] = []
    for one in variants:
        drawn.append((yield Draw(settings.height, settings.width, one, said.handles + text.handles, noise=noise)))
    return drawn


def draw(loaded: LoadedModel, folder: Path, options: Options, variants: Sequence[DrawSettings]) -> list[list[Drawn]]:
    """Every prompt, drawn in every way."""
    profile, config = read_profile(folder) or BAGEL_PROFILE, loaded.config
    settings = usual(profile, config.vae_resize.max_size)
    tokenizer = TextTokenizer.from_file(folder / "tokenizer.json")
    engine = Engine(Runner(loaded.model, loaded.autoencoder), tokenizer, profile.draft_texts)
    assert settings.height and settings.width
    tokens = settings.height * settings.width // config.image_stride**2
    programs = []
    for seed, prompt in enumerate(PROMPTS[: options.prompts], start=options.seed):
        noise = torch.randn((tokens, config.latent_values), generator=torch.Generator().manual_seed(seed))
        programs.append((program(profile.system_prompt, prompt, settings, variants, noise), seed))
    return engine.run(programs)


def usual(profile: Profile, size: int) -> Settings:
    """The model's own settings."""
    return Settings.from_dict({"height": size, "width": size} | profile.settings)


def measure(options: Options) -> Iterator[Row]:
    """All samplers, each with all numbers of steps."""
    folder = model_folder(options.model)
    loaded = load_model(folder)
    own = usual(read_profile(folder) or BAGEL_PROFILE, loaded.config.vae_resize.max_size).initial
    own = replace(own, cfg_interval=(0.0, 1.0), cfg_text_scale=options.guidance or own.cfg_text_scale)
    cases = [
        (name, replace(own, num_timesteps=steps + 1, **changes))  # type: ignore[arg-type]
        for name, changes in ((name, SAMPLERS[name]) for name in options.samplers)
        for steps in options.steps
    ]
    truth = replace(own, num_timesteps=options.truth + 1)
    drawn = draw(loaded, folder, options, [truth, *(settings for _, settings in cases)])
    for number, (name, settings) in enumerate(cases, start=1):
        errors = [(one[number].latents - one[0].latents).square().mean().item() for one in drawn]
        psnrs = [psnr(one[number].image, one[0].image) for one in drawn]
        rmse = float(np.sqrt(np.mean(errors)))
        yield Row(name, settings.num_timesteps - 1, forwards(settings), rmse, float(np.median(psnrs)))


def psnr(image: Image.Image, truth: Image.Image) -> float:
    """Peak signal-to-noise ratio of 8-bit images, dB."""
    error = np.square(np.asarray(image, np.float64) - np.asarray(truth, np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def main(options: Options) -> int:
    """Print a Markdown table: a line for each sampler, a column for each number of steps."""
    rows = list(measure(options))
    print(
        f"{options.model}, {options.prompts} first images: RMSE of latents / PSNR in dB (forwards), against "
        f"{options.truth} steps"
    )
    print("| sampler | " + " | ".join(f"{n} steps" for n in options.steps) + " |")
    print("|---|" + "---:|" * len(options.steps))
    for name in options.samplers:
        cells = [f"{row.rmse:.3f} / {row.psnr:.1f} ({row.forwards})" for row in rows if row.sampler == name]
        print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        settings = asdict(options) | {"json": None}
        write_json(options.json, {"options": settings, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
