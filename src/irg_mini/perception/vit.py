"""Supervised pre-training of a small image reader on the mini world: what SigLIP's pre-training is to BAGEL.

Linear heads on every patch's feature must tell what stands where; they are dropped afterwards. The patch that holds a
thing's center tells its class, color, size and place on the world's grid; every patch tells which class and color
covers it, the background and what is wrong with the image. So each feature a language model later reads already says,
linearly, what a sentence about the image needs.

Run: ``python -m irg_mini.perception.vit --out DIR --minutes 10``

Legend: B images; P patches of all images; N patches of one image; S patches a side; D values per patch;
C features; M images in the pool; H, W pixels.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from irg.learning.optim import MuonAdamW
from irg.model.network.config import VitConfig
from irg.model.network.vit import VisionTransformer
from irg_mini.perception.labeled_images import (
    Pool,
    Shift,
    Sight,
    Softening,
    background_index,
    color_of,
    softened_part,
    to_batch,
)
from irg_mini.perception.schedule import Pace
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS, GRID, SIZES, classes
from irg_mini.world.render import SPOILINGS

NOTHING = -100  # what cross_entropy leaves out


@dataclass(frozen=True)
class VitPretrainingConfig:
    """How an image reader is pre-trained."""

    out: Path = Path("runs/vit")
    vit: VitConfig = field(default_factory=lambda: VitConfig(192, 576, 4, 6, patch_size=12, image_size=96))
    steps: int = 5000
    minutes: float | None = None
    batch: int = 48
    muon_lr: float = 0.015
    adam_lr: float = 2e-3
    warmup: int = 50
    cooldown: float = 0.5
    softened_share: float = 0.7
    spoiled_share: float = 0.12
    pool: int = 8000
    refresh: int = 4
    """Images of the pool rendered anew in each step."""
    held_out: int = 512
    seed: int = 0
    threads: int = 1
    autoencoder: Path | None = None
    """Folder of a trained compact autoencoder; a share of the pool then goes through it."""
    init: Path | None = None
    """Weights of a reader to start from (a model.safetensors)."""
    vocab: str = "core"
    """The vocabulary of the images: core, geneval or full."""
    low_precision: bool = False
    """Matrix products in bfloat16: twice as fast on CPUs that have units for it, far slower on others."""

    def __post_init__(self) -> None:
        if self.vit.image_size % self.vit.patch_size:
            raise ValueError("the reader's image size must be a multiple of its patch size")
        if self.pool < self.batch:
            raise ValueError(f"a pool of {self.pool} images cannot fill a batch of {self.batch}")

    @property
    def side(self) -> int:
        """Patches on a side."""
        return self.vit.image_size // self.vit.patch_size


# ---------------------------------------------------------------------------------------------------------- targets

CENTER_HEADS = ("class", "color", "size", "col", "row")
"""What the patch that holds a thing's center tells; the last class is "no center here", asked of every patch."""


def heads(vocab: str = "core") -> dict[str, int]:
    """Number of answers of every question: those of the centers, then those of every patch (the last cover, and its
    color, is "nothing")."""
    center = {"class": len(classes(vocab)) + 1, "color": len(COLORS) + 1, "size": len(SIZES), "col": GRID, "row": GRID}
    return center | {
        "cover": len(classes(vocab)) + 1,
        "cover_color": len(COLORS) + 2,
        "background": len(BACKGROUNDS),
        "quality": len(SPOILINGS) + 1,
    }


def targets_of(sights: list[Sight], shift: Shift, side: int, vocab: str = "core") -> dict[str, Tensor]:
    """Right answers, int64 [P] for each head; ``NOTHING`` where a patch is not asked."""
    names = {name: index for index, name in enumerate(classes(vocab))}
    shape = (len(sights), side, side)
    counts = heads(vocab)
    answers = {name: np.full(shape, NOTHING, np.int64) for name in counts}
    for name in ("class", "cover", "cover_color"):
        answers[name][:] = counts[name] - 1
    for b, sight in enumerate(sights):
        answers["background"][b] = background_index(sight.scene)
        answers["quality"][b] = len(SPOILINGS) if sight.spoiling is None else SPOILINGS.index(sight.spoiling)
        nearest = np.full((side, side), np.inf)
        covered = np.full((side, side), 0.3)
        for thing in sight.things:
            x0, y0, x1, y1 = shift.box(b, thing.box)
            share = np.outer(_inside(y0, y1, side), _inside(x0, x1, side))
            mine = share > covered
            covered[mine] = share[mine]
            answers["cover"][b][mine], answers["cover_color"][b][mine] = names[thing.name], color_of(thing)
            x, y = shift(b, ((thing.col + 0.5) / GRID, (thing.row + 0.5) / GRID))
            patch = (min(side - 1, max(0, int(y * side))), min(side - 1, max(0, int(x * side))))
            distance = (y * side - patch[0] - 0.5) ** 2 + (x * side - patch[1] - 0.5) ** 2
            if distance < nearest[patch]:  # where two centers share a patch, it tells of the more central one
                nearest[patch] = distance
                told = (
                    names[thing.name],
                    color_of(thing),
                    list(SIZES).index(thing.size),
                    min(GRID - 1, max(0, int(x * GRID))),
                    min(GRID - 1, max(0, int(y * GRID))),
                )
                for head, answer in zip(CENTER_HEADS, told, strict=True):
                    answers[head][b][patch] = answer
    return {name: torch.from_numpy(values.reshape(-1)) for name, values in answers.items()}


def _inside(low: float, high: float, side: int) -> np.ndarray:
    """Share of each of ``side`` equal stretches of 0..1 that lies between two ends."""
    edges = np.arange(side + 1) / side
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * side


class Heads(nn.Module):
    """One linear read-out per question."""

    def __init__(self, width: int, vocab: str = "core") -> None:
        super().__init__()
        self.answers = heads(vocab)
        self.linear = nn.Linear(width, sum(self.answers.values()))

    def forward(self, features_PC: Tensor) -> dict[str, Tensor]:
        """Logits [P, answers] for each question."""
        pieces = self.linear(features_PC).split(list(self.answers.values()), dim=-1)
        return dict(zip(self.answers, pieces, strict=True))


def pretraining_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean cross-entropy of each question and their weighted total."""
    losses = {}
    for name, target_P in targets.items():
        each_P = F.cross_entropy(logits[name], target_P, ignore_index=NOTHING, reduction="none")
        weight_P = (target_P != NOTHING).float()
        if name == "class":  # centers are few: without more weight "no center" is learnt first and for long
            weight_P = torch.where(target_P == logits["class"].shape[-1] - 1, 0.25, 1.0)
        losses[name] = (each_P * weight_P).sum() / weight_P.sum().clamp_min(1)
    weights = {"background": 0.2, "quality": 0.3, "size": 0.5, "cover": 0.7, "cover_color": 0.5}
    losses["total"] = sum(weights.get(name, 1.0) * loss for name, loss in losses.items())  # type: ignore[assignment]
    return losses


# ------------------------------------------------------------------------------------------------------------- data


def to_patches(x_B3HW: Tensor, patch: int) -> Tensor:
    """Images as patches [P, D], row by row, values ordered (row, column, RGB)."""
    batch, channels, height, width = x_B3HW.shape
    tiles = x_B3HW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(-1, patch * patch * channels)


def batch_of(
    sights: list[Sight], config: VitPretrainingConfig, generator: torch.Generator, share: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Patches [P, D] of a batch, ``share`` of it softened, and the right answers."""
    x_B3HW = to_batch(sights)
    # Small moves only: what the world puts on a grid place should still be read as that place.
    shift = softened_part(x_B3HW, Softening(move=0.02, zoom=0.03), share, generator)
    return to_patches(x_B3HW, config.vit.patch_size), targets_of(sights, shift, config.side, config.vocab)


# ---------------------------------------------------------------------------------------------------------- trainer


class VitPretraining:
    """One pre-training run: the reader, its heads and their optimizer."""

    def __init__(self, config: VitPretrainingConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.vit = VisionTransformer(config.vit)
        for parameter in self.vit.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02 if parameter.shape[0] == config.vit.positions else 0.05)
        if config.init is not None:
            self.vit.load_state_dict(load_file(config.init))
        self.heads = Heads(config.vit.hidden_size, config.vocab)
        position = self.vit.vision_model.embeddings.position_embedding.weight
        self.optimizer = MuonAdamW(
            [*self.vit.parameters(), *self.heads.parameters()],
            muon_lr=config.muon_lr,
            adam_lr=config.adam_lr,
            adam_only=[position, self.heads.linear.weight],
        )
        self.pace = Pace(config.steps, config.minutes, config.warmup, config.cooldown)
        self.step = 0

    def logits(self, patches_PD: Tensor) -> dict[str, Tensor]:
        """Answers of every patch of equally large images."""
        count = self.config.side**2
        images = len(patches_PD) // count
        cells_P = torch.arange(count).repeat(images)
        return self.heads(self.vit(patches_PD, cells_P, [count] * images))

    def train_step(self, pool: Pool) -> dict[str, float]:
        """One update on images drawn from the pool, which is refreshed a little."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pool.refresh(config.refresh)
        patches_PD, targets = batch_of(pool.draw(rng, config.batch), config, generator, config.softened_share)
        self.optimizer.scale_rates(self.pace.factor(self.step))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.low_precision):
            logits = self.logits(patches_PD)
        losses = pretraining_loss({name: values.float() for name, values in logits.items()}, targets)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_([*self.vit.parameters(), *self.heads.parameters()], 5.0)
        self.optimizer.step()
        self.step += 1
        return {name: round(float(value.detach()), 4) for name, value in losses.items()}

    @torch.no_grad()
    def measure(self, pool: Pool, softened: bool) -> dict[str, float]:
        """Shares of right answers on a pool: at true centers, and centers found and falsely seen."""
        generator = torch.Generator().manual_seed(1)
        names = list(self.heads.answers)
        logits: dict[str, list[Tensor]] = {name: [] for name in names}
        targets: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(0, len(pool.sights), 64):
            part = pool.sights[start : start + 64]
            patches_PD, answers = batch_of(part, self.config, generator, share=1.0 if softened else 0.0)
            for name, values in self.logits(patches_PD).items():
                logits[name].append(values.argmax(dim=-1))
                targets[name].append(answers[name])
        told = {name: torch.cat(values) for name, values in logits.items()}
        true = {name: torch.cat(values) for name, values in targets.items()}
        right = {name: (told[name] == true[name])[true[name] != NOTHING].float().mean().item() for name in names}
        none = self.heads.answers["class"] - 1
        center_P, seen_P = true["class"] != none, told["class"] != none
        right["class"] = (told["class"] == true["class"])[center_P].float().mean().item()
        right["place"] = ((told["col"] == true["col"]) & (told["row"] == true["row"]))[center_P].float().mean().item()
        right["centres_found"] = seen_P[center_P].float().mean().item()
        right["false_centres"] = (seen_P & ~center_P).sum().item() / max(1, int(center_P.sum()))
        return {name: round(value, 4) for name, value in right.items()}

    def save(self, metrics: dict[str, Any]) -> None:
        """Write the reader's weights (no heads), its configuration and what was measured."""
        out = self.config.out
        out.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().contiguous() for name, value in self.vit.state_dict().items()}
        save_file(state, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(asdict(self.config.vit), indent=1) + "\n")
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")

    def run(self, pool: Pool, held: Pool, log: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Train to the end of the schedule, measure and save."""
        self.pace.start(self.step)
        while not self.pace.done(self.step):
            losses = self.train_step(pool)
            if self.step % 50 == 0:
                log({"step": self.step, "steps": self.pace.steps, "seconds": self.pace.seconds} | losses)
            if self.step % 500 == 0:
                log(self._measured(held))
        metrics = self._measured(held)
        log(metrics)
        return metrics

    def _measured(self, held: Pool) -> dict[str, Any]:
        """Measure on clean and softened held-out images, and save."""
        metrics: dict[str, Any] = {"step": self.step, "seconds": self.pace.seconds}
        metrics |= {"clean": self.measure(held, softened=False), "softened": self.measure(held, softened=True)}
        self.save(metrics)
        return metrics


def main(config: VitPretrainingConfig) -> None:
    """Render the pools, then pre-train."""
    from irg_mini.perception.autoencoder import softener

    torch.set_num_threads(config.threads)
    soften = None if config.autoencoder is None else softener(config.autoencoder)
    size = config.vit.image_size
    pool = Pool(config.pool, config.seed + 1, size, 0.15, config.spoiled_share, soften, vocab=config.vocab)
    held = Pool(config.held_out, config.seed + 2, size, 0.15, config.spoiled_share, vocab=config.vocab)
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "log.jsonl").open("w") as file:

        def log(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        VitPretraining(config).run(pool, held, log)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(VitPretrainingConfig))
