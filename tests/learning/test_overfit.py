"""Eight trajectories by heart: losses down to nothing, and the pipeline draws them again from their prompts.

Who knows an image c from its text knows the velocity at any noised x = (1 - t) c + t noise: it is (x - c) / t. Nothing
is left to chance, so the least possible errors are 0, if the network can carry all of x: it must be as wide as a latent
token has values (48). The tiny model of the other tests has 32, and would stop at a third of the noise.
"""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from trajectory_rows import write_shards

from irg.curation.records import TrajectoryRecord
from irg.learning.data.in_memory import hold_in_memory
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.recipe import Dropout, Mixture, Optimizer, TrainRecipe
from irg.learning.trainer import train
from irg.model.weights.checkpoint import LoadedModel, load_model, save_model
from irg.model.weights.initialize import random_model
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline
from irg.sequence.images import patchify, to_tensor

from .conftest import PROFILE, make_image

PROMPTS = [3 * letter for letter in "abcdefgh"]


@pytest.fixture
def start(folder: Path) -> LoadedModel:
    """The tiny model, twice as wide; its (random) autoencoder gives these images latents of unit variance."""
    loaded = load_model(folder)
    decoder = replace(loaded.config.decoder, hidden_size=64, intermediate_size=128)
    loaded.config = replace(loaded.config, decoder=decoder)
    loaded.model = random_model(loaded.config, seed=1)
    images = [Image.open(io.BytesIO(make_image(i))) for i in range(8)]
    with torch.no_grad():
        z = loaded.autoencoder.encode(torch.stack([to_tensor(image) for image in images]))
        buffers = dict(loaded.autoencoder.named_buffers())
        buffers["latent_mean"] += z.mean((0, 2, 3))
        buffers["latent_std"] *= z.std((0, 2, 3))
    save_model(folder, loaded.config, loaded.model, loaded.autoencoder)
    return loaded


def test_eight_trajectories_by_heart(
    folder: Path, start: LoadedModel, tiny_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    rows = [TrajectoryRecord(prompt, "stuvwxyz"[i], make_image(i)) for i, prompt in enumerate(PROMPTS)]
    write_shards(rows, tmp_path / "eight")
    recipe = TrainRecipe(
        model=str(folder),
        data=(str(tmp_path / "eight"),),
        out=str(tmp_path / "run"),
        steps=160,
        mixture=Mixture(initial_full=1.0),
        dropout=Dropout(vae=0.0),
        optimizer=Optimizer(kind="muon", lr=1e-2, muon_lr=3e-2, eps=1e-8, cooldown=80),
        tokens_per_pack=800,
        noise_copies=8,
        timestep_shift=2.0,
        ema=0.9,
        log_every=20,
        save_every=160,
    )
    out = train(recipe, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["ce"] < 0.001
    assert lines[-1]["mse"] < 0.03 and lines[0]["mse"] > 0.8  # a guess from the noisy image alone: about 1

    encoder = TrajectoryEncoder(start.config, tiny_tokenizer, PROFILE)
    held = hold_in_memory([tmp_path / "eight" / "part-00000.parquet"], encoder, start.autoencoder, tmp_path, True)
    wanted = torch.stack([patchify(row.image.content.latents_Zhw.float(), 2).flatten() for row in held.values()])  # type: ignore[union-attr] # fmt: skip
    last: dict[int, torch.Tensor] = {}

    def keep(pipe: Any, step: int, time: float, info: dict[str, Any]) -> None:
        last[info["request"]] = info["latents"].clone()

    options = {"height": 32, "width": 32, "temperature": 0.0, "max_think_tokens": 6, "num_timesteps": 12}
    pipe = IRGPipeline.from_pretrained(out, device="cpu")
    outputs = pipe(PROMPTS, seed=1, mode="think", cfg_text_scale=1.0, callback_on_step_end=keep, **options)
    assert [output.thinking for output in outputs] == list("stuvwxyz")
    drawn = torch.stack([last[i].flatten() for i in range(8)])
    assert torch.cdist(drawn, wanted).argmin(dim=1).tolist() == list(range(8))
    assert (drawn - wanted).square().mean() < 0.02  # of latents of unit variance
