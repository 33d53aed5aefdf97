"""Fine-tuning of the compact autoencoder's decoder on latents that a model drew.

The renderer is deterministic, so what a model drew of a plan and the plan's rendering are exact pairs: the decoder
learns to undo the errors that this model makes. Half of each batch are encodings of rendered scenes with noise, so that
images that are read and written again stay as they were. The encoder is not changed, so neither are the latents, and
the network needs no new training. The label detector's features of both images are compared, too: what makes a thing
recognizable counts more than its pixels do.

Run: ``python -m irg_mini.perception.decoder --model mini --out DIR --minutes 8``. It writes a whole
``ae.safetensors``.

Legend: B images; H, W pixels; h, w latent cells; z latent channels; M images or latents in the pool.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from torch import Tensor

from irg.engine.ops import Drawn, Program, Say
from irg.files import write_bytes, write_json
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job
from irg_mini import world
from irg_mini.perception.autoencoder import batch_of, reconstruction_loss, render_pool, to_batch
from irg_mini.perception.training import Training, TrainingConfig, weights_of
from irg_mini.world.detector import LABEL_DETECTOR, Detector

PAIRS_A_FILE = 160
DRAWN_TOGETHER = 32


@dataclass(frozen=True)
class DecoderConfig(TrainingConfig):
    """How a decoder is fine-tuned."""

    model: str = "mini"
    """Whose autoencoder, and whose drawings."""
    out: Path = Path("runs/decoder")
    muon_lr: float = 0.002
    adam_lr: float = 3e-4
    warmup: int = 20
    batch: int = 24
    drawn: int = 1600
    """Plans that the model draws."""
    drawn_share: float = 0.5
    """Share of a batch that are the model's latents; the rest are encodings with noise."""
    noise: float = 0.5
    """Largest spread of that noise, in standardized latents."""
    edge_weight: float = 1.0
    scale_weight: float = 0.5
    feature_weight: float = 0.1
    """Of the difference of the label detector's features, relative to their size."""
    pool: int = 4000
    held_out: int = 160
    """Plans of the end of ``drawn`` that are only measured."""
    size: int = 128
    vocab: str | tuple[str, ...] = "geneval"
    """The vocabulary of plans and renderings: core, geneval, full, or a list of nouns."""
    sprites: str = "fluent"
    detector: str = LABEL_DETECTOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drawn_share <= 1:
            raise ValueError(f"drawn_share is a share between 0 and 1, not {self.drawn_share}")
        if not 0 < self.held_out < self.drawn:
            raise ValueError(f"held_out must be from 1 to drawn - 1 ({self.drawn - 1}), got {self.held_out}")


@dataclass(frozen=True)
class Pools:
    """What batches are drawn from: the model's latents, standardized [M, z, h, w], the renderings of their plans, and
    other renderings, uint8 [M, H, W, 3]."""

    latents_Mzhw: np.ndarray
    plans_MHW3: np.ndarray
    rendered_MHW3: np.ndarray


class DecoderTraining(Training[Pools]):
    """One run: the decoder learns, the encoder and the latents' statistics stay."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, autoencoder: Any, held: Pools) -> None:
        self.autoencoder, self.held = autoencoder, held
        self.autoencoder.requires_grad_(False)
        self.autoencoder.decoder.requires_grad_(True)
        self.device = next(autoencoder.parameters()).device
        self.detector = Detector.load(config.detector).to(self.device).eval().requires_grad_(False)
        super().__init__(config, self.autoencoder.decoder)

    def losses(self, data: Pools, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        drawn = round(config.drawn_share * config.batch)
        chosen = rng.integers(len(data.latents_Mzhw), size=drawn)
        z_Bzhw, x_B3HW = self._pairs(data, chosen)
        if drawn < config.batch:
            read_B3HW = batch_of(data.rendered_MHW3, rng, config.batch - drawn).to(self.device)
            with torch.no_grad():
                read_Bzhw = self.autoencoder.encode(read_B3HW)
            level_B = torch.rand(len(read_Bzhw), generator=generator) * config.noise
            noise_Bzhw = level_B.view(-1, 1, 1, 1) * torch.randn(read_Bzhw.shape, generator=generator)
            read_Bzhw += noise_Bzhw.to(self.device)
            z_Bzhw, x_B3HW = torch.cat([z_Bzhw, read_Bzhw]), torch.cat([x_B3HW, read_B3HW])
        y_B3HW = self.autoencoder.decoder(self.autoencoder.restore(z_Bzhw))
        losses = reconstruction_loss(y_B3HW, x_B3HW, config.edge_weight, config.scale_weight)
        if config.feature_weight:
            losses["features"] = self._feature_distance(y_B3HW, x_B3HW)
            losses["total"] = losses["total"] + config.feature_weight * losses["features"]
        return losses

    def _pairs(self, data: Pools, which: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Latents that the model drew [B, z, h, w], and the renderings of their plans [B, 3, H, W]."""
        z_Bzhw = torch.from_numpy(data.latents_Mzhw[which]).float()
        return z_Bzhw.to(self.device), to_batch(data.plans_MHW3[which]).to(self.device)

    def _feature_distance(self, y_B3HW: Tensor, x_B3HW: Tensor) -> Tensor:
        """Mean difference of the detector's features, relative to their size in ``x``."""
        size = self.detector.config.size
        features = [self.detector.features(_resized(images, size)) for images in (y_B3HW, x_B3HW)]
        return (features[0] - features[1]).abs().mean() / features[1].abs().mean()

    def validate(self) -> dict[str, Any]:
        """PSNR, in dB, to the held-out plans' renderings, and of renderings that are read and written again."""
        drawn, read = [], []
        with torch.no_grad():
            for start in range(0, len(self.held.latents_Mzhw), 32):
                z_Bzhw, plans_B3HW = self._pairs(self.held, slice(start, start + 32))
                drawn += _psnr(self.autoencoder.decode(z_Bzhw), plans_B3HW)
                read += _psnr(self.autoencoder.decode(self.autoencoder.encode(plans_B3HW)), plans_B3HW)
        return {"psnr_drawn": round(float(np.mean(drawn)), 3), "psnr_read": round(float(np.mean(read)), 3)}

    def export(self) -> None:
        out = self.config.out
        write_bytes(out / "ae.safetensors", save(weights_of(self.autoencoder)))
        write_json(out / "training.json", asdict(self.config) | {"out": str(out)})


def _psnr(y_B3HW: Tensor, x_B3HW: Tensor) -> list[float]:
    squares_B = ((y_B3HW.clamp(-1, 1) - x_B3HW) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return (-10 * torch.log10(squares_B)).tolist()


def _resized(images_B3HW: Tensor, size: int) -> Tensor:
    if images_B3HW.shape[-1] == size:
        return images_B3HW
    return torch.nn.functional.interpolate(images_B3HW, (size, size), mode="bilinear", antialias=True)


# ------------------------------------------------------------------------------------------------------------- pairs


def _draw_plan(job: Job, plan: str) -> Program:
    """The image of a plan that is given. Result: its :class:`Drawn`."""
    if job.system:
        yield Say(job.system)
    prompt = yield Say(job.prompt)
    said = yield Say(plan)
    return (yield job.draw(0, prompt.handles + said.handles))


def draw_pairs(pipe: IRGPipeline, config: DecoderConfig, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Latents, float16 [M, z, h, w], that the model drew of random plans, and the plans' renderings."""
    settings = pipe.with_options(pipe.defaults, {"mode": "think"})
    sprites = world.load_sprites(config.sprites)
    latents, renderings = [], []
    for start in range(0, len(numbers), DRAWN_TOGETHER):
        programs = []
        for number in numbers[start : start + DRAWN_TOGETHER]:
            rng = np.random.default_rng([config.seed, 2511, number])
            request, scene = world.sample_pair(rng, None, config.vocab)
            job = pipe.jobs.make(world.caption(request, rng), settings, number)
            programs.append((_draw_plan(job, world.think(request, scene)), number))
            renderings.append(world.render(scene, config.size, sprites))
        drawn: list[Drawn] = pipe.engine.run(programs)
        latents += [one.latents.cpu().numpy().astype(np.float16) for one in drawn]
    return np.stack(latents), np.stack(renderings)


def pairs(pipe: IRGPipeline, config: DecoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a run, in files of ``PAIRS_A_FILE``; those of an earlier start are read."""
    found = []
    for start in range(0, config.drawn, PAIRS_A_FILE):
        numbers = range(start, min(start + PAIRS_A_FILE, config.drawn))
        path = config.out / f"pairs-{numbers[0]:05d}-{numbers[-1]:05d}.safetensors"
        if not path.exists():
            latents, renderings = draw_pairs(pipe, config, numbers)
            write_bytes(path, save_arrays({"latents": latents, "renderings": renderings}))
            print(f"{numbers[-1] + 1} of {config.drawn} plans are drawn", flush=True)
        found.append(load_file(path))
    return (
        np.concatenate([arrays["latents"] for arrays in found]),
        np.concatenate([arrays["renderings"] for arrays in found]),
    )


def main(config: DecoderConfig) -> None:
    """Let the model draw, then train."""
    torch.set_num_threads(config.threads)
    pipe = IRGPipeline.from_pretrained(config.model, dtype=torch.float32)
    latents_Mzhw, plans_MHW3 = pairs(pipe, config)
    rendered_MHW3 = render_pool(config.pool, config.size, config.seed + 1, vocab=config.vocab)
    kept = config.drawn - config.held_out
    held = Pools(latents_Mzhw[kept:], plans_MHW3[kept:], rendered_MHW3[:0])
    training = DecoderTraining(config, pipe.engine.runner.autoencoder, held)
    before = training.validate()
    training.run(Pools(latents_Mzhw[:kept], plans_MHW3[:kept], rendered_MHW3))
    training.log({"before": before, "after": training.validate()})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(DecoderConfig))
