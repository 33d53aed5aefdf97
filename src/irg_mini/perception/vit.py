"""Supervised pre-training of a small ViT on the mini world: what SigLIP's pre-training is to BAGEL.

Linear heads on every patch's feature predict what stands where; they are dropped afterwards. The patch that holds a
thing's center predicts its class, color, size and place on the world's grid; every patch predicts which class and color
covers it, the background and how the image is degraded. So each feature a language model later reads already says,
linearly, what a sentence about the image needs.

Run: ``python -m irg_mini.perception.vit --out DIR --minutes 10``

Legend: B images; P patches of all images; N patches of one image; S patches a side; D values per patch;
C features; M images in the pool; H, W pixels.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from irg.files import write_bytes, write_json
from irg.model.network.config import VitConfig
from irg.model.network.vit import VisionTransformer
from irg_mini.perception.autoencoder import load_compact, reconstruction
from irg_mini.perception.labeled_images import (
    Augmentation,
    LabeledImage,
    Pool,
    Shift,
    augmented_part,
    background_index,
    color_of,
    to_batch,
)
from irg_mini.perception.training import Training, TrainingConfig, weights_of
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS, GRID, SIZES, classes
from irg_mini.world.render import DEGRADATIONS

NOTHING = -100  # what cross_entropy leaves out


@dataclass(frozen=True)
class VitTrainingConfig(TrainingConfig):
    """How a ViT is pre-trained."""

    out: Path = Path("runs/vit")
    vit: VitConfig = field(default_factory=lambda: VitConfig(192, 576, 4, 6, patch_size=12, image_size=96))
    steps: int = 5000
    batch: int = 48
    augmented_share: float = 0.7
    degraded_share: float = 0.12
    refresh: int = 4
    """Images of the pool rendered anew in each step."""
    save_every: int = 500
    autoencoder: Path | None = None
    """Folder of a trained compact autoencoder; a share of the pool then goes through it."""
    init: Path | None = None
    """Weights of a ViT to start from (a model.safetensors)."""
    vocab: str = "core"
    """The vocabulary of the images: core, geneval or full."""
    low_precision: bool = False
    """Matrix products in bfloat16: twice as fast on CPUs that have units for it, far slower on others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vit.image_size % self.vit.patch_size:
            raise ValueError("the ViT's image size must be a multiple of its patch size")

    @property
    def side(self) -> int:
        """Patches on a side."""
        return self.vit.image_size // self.vit.patch_size


# ---------------------------------------------------------------------------------------------------------- targets

CENTER_HEADS = ("class", "color", "size", "col", "row")
"""What the patch that holds a thing's center predicts; the last class is "no center here", predicted by every patch."""


def heads(vocab: str = "core") -> dict[str, int]:
    """Number of answers of every question: those of the centers, then those of every patch (the last cover, and its
    color, is "nothing")."""
    center = {"class": len(classes(vocab)) + 1, "color": len(COLORS) + 1, "size": len(SIZES), "col": GRID, "row": GRID}
    return center | {
        "cover": len(classes(vocab)) + 1,
        "cover_color": len(COLORS) + 2,
        "background": len(BACKGROUNDS),
        "quality": len(DEGRADATIONS) + 1,
    }


def targets_of(examples: list[LabeledImage], shift: Shift, side: int, vocab: str = "core") -> dict[str, Tensor]:
    """Right answers, int64 [P] for each head; ``NOTHING`` where a patch predicts nothing."""
    names = {name: index for index, name in enumerate(classes(vocab))}
    shape = (len(examples), side, side)
    counts = heads(vocab)
    answers = {name: np.full(shape, NOTHING, np.int64) for name in counts}
    for name in ("class", "cover", "cover_color"):
        answers[name][:] = counts[name] - 1
    for b, example in enumerate(examples):
        answers["background"][b] = background_index(example.scene)
        answers["quality"][b] = (
            len(DEGRADATIONS) if example.degradation is None else DEGRADATIONS.index(example.degradation)
        )
        nearest = np.full((side, side), np.inf)
        covered = np.full((side, side), 0.3)
        for thing in example.things:
            x0, y0, x1, y1 = shift.box(b, thing.box)
            share = np.outer(_inside(y0, y1, side), _inside(x0, x1, side))
            mine = share > covered
            covered[mine] = share[mine]
            answers["cover"][b][mine], answers["cover_color"][b][mine] = names[thing.name], color_of(thing)
            x, y = shift(b, ((thing.col + 0.5) / GRID, (thing.row + 0.5) / GRID))
            patch = (min(side - 1, max(0, int(y * side))), min(side - 1, max(0, int(x * side))))
            distance = (y * side - patch[0] - 0.5) ** 2 + (x * side - patch[1] - 0.5) ** 2
            if distance < nearest[patch]:  # where two centers share a patch, it predicts the more central one
                nearest[patch] = distance
                center = (
                    names[thing.name],
                    color_of(thing),
                    list(SIZES).index(thing.size),
                    min(GRID - 1, max(0, int(x * GRID))),
                    min(GRID - 1, max(0, int(y * GRID))),
                )
                for head, answer in zip(CENTER_HEADS, center, strict=True):
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
    examples: list[LabeledImage], config: VitTrainingConfig, generator: torch.Generator, share: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Patches [P, D] of a batch, ``share`` of it augmented, and the right answers."""
    x_B3HW = to_batch(examples)
    # Small moves only: what the world puts on a grid place should still be read as that place.
    shift = augmented_part(x_B3HW, Augmentation(move=0.02, zoom=0.03), share, generator)
    return to_patches(x_B3HW, config.vit.patch_size), targets_of(examples, shift, config.side, config.vocab)


# ---------------------------------------------------------------------------------------------------------- trainer


class VitTraining(Training[Pool]):
    """One pre-training run: the ViT and its heads.

    Args:
        held: images that it is measured on when weights are saved.
    """

    config: VitTrainingConfig
    max_grad_norm = 5.0

    def __init__(self, config: VitTrainingConfig, held: Pool | None = None) -> None:
        torch.manual_seed(config.seed)
        self.vit = VisionTransformer(config.vit)
        for parameter in self.vit.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02 if parameter.shape[0] == config.vit.positions else 0.05)
        if config.init is not None:
            self.vit.load_state_dict(load_file(config.init))
        self.heads = Heads(config.vit.hidden_size, config.vocab)
        self.held = held
        position = self.vit.vision_model.embeddings.position_embedding.weight
        network = nn.ModuleDict({"vit": self.vit, "heads": self.heads})
        super().__init__(config, network, adam_only=[position, self.heads.linear.weight])

    def logits(self, patches_PD: Tensor) -> dict[str, Tensor]:
        """Answers of every patch of equally large images."""
        count = self.config.side**2
        images = len(patches_PD) // count
        cells_P = torch.arange(count).repeat(images)
        return self.heads(self.vit(patches_PD, cells_P, [count] * images))

    def losses(self, data: Pool, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        data.refresh(config.refresh)
        patches_PD, targets = batch_of(data.draw(rng, config.batch), config, generator, config.augmented_share)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.low_precision):
            logits = self.logits(patches_PD)
        return pretraining_loss({name: values.float() for name, values in logits.items()}, targets)

    def catch_up(self, data: Pool) -> None:
        data.refresh(self.config.refresh * self.step)

    def validate(self) -> dict[str, Any]:
        """Measure on clean and on augmented held-out images; also written to metrics.json."""
        if self.held is None:
            return {}
        clean, augmented = (self.measure(self.held, augmented) for augmented in (False, True))
        metrics = {"seconds": self.schedule.seconds, "clean": clean, "augmented": augmented}
        write_json(self.config.out / "metrics.json", {"step": self.step} | metrics)
        return metrics

    @torch.no_grad()
    def measure(self, pool: Pool, augmented: bool) -> dict[str, float]:
        """Shares of right answers on a pool: at true centers, and centers found and falsely found."""
        generator = torch.Generator().manual_seed(1)
        names = list(self.heads.answers)
        logits: dict[str, list[Tensor]] = {name: [] for name in names}
        targets: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(0, len(pool.examples), 64):
            part = pool.examples[start : start + 64]
            patches_PD, answers = batch_of(part, self.config, generator, share=1.0 if augmented else 0.0)
            for name, values in self.logits(patches_PD).items():
                logits[name].append(values.argmax(dim=-1))
                targets[name].append(answers[name])
        predicted = {name: torch.cat(values) for name, values in logits.items()}
        true = {name: torch.cat(values) for name, values in targets.items()}
        right = {name: (predicted[name] == true[name])[true[name] != NOTHING].float().mean().item() for name in names}
        none = self.heads.answers["class"] - 1
        center_P, found_P = true["class"] != none, predicted["class"] != none
        right["class"] = (predicted["class"] == true["class"])[center_P].float().mean().item()
        same_place_P = (predicted["col"] == true["col"]) & (predicted["row"] == true["row"])
        right["place"] = same_place_P[center_P].float().mean().item()
        right["centers_found"] = found_P[center_P].float().mean().item()
        right["false_centers"] = (found_P & ~center_P).sum().item() / max(1, int(center_P.sum()))
        return {name: round(value, 4) for name, value in right.items()}

    def export(self) -> None:
        """Write the ViT's weights (no heads) and its configuration."""
        write_bytes(self.config.out / "model.safetensors", save(weights_of(self.vit)))
        write_json(self.config.out / "config.json", asdict(self.config.vit))


def main(config: VitTrainingConfig) -> None:
    """Render the pools, then pre-train."""
    reconstruct = None if config.autoencoder is None else reconstruction(load_compact(config.autoencoder))
    size = config.vit.image_size
    pool = Pool(config.pool, config.seed + 1, size, 0.15, config.degraded_share, reconstruct, vocab=config.vocab)
    held = Pool(config.held_out, config.seed + 2, size, 0.15, config.degraded_share, vocab=config.vocab)
    training = VitTraining(config, held)
    training.run(pool)
    training.log(training.validate())


if __name__ == "__main__":
    import tyro

    main(tyro.cli(VitTrainingConfig))
