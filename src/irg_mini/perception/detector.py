"""Training of the mini world's detectors, and how far their verdicts can be trusted.

Two of them are trained apart: the label detector says what a model's own drafts show while it learns, the eval detector
only scores results. They differ in seed and in architecture, so that a model cannot please the one by the other's
mistakes.

Run: ``python -m irg_mini.perception.detector --out DIR --variant label --seed 1 --minutes 10``

Legend: B images; K classes; g cells on a side of the detector's grid; T things of a batch; H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from irg.files import write_json
from irg_mini.perception.autoencoder import load_compact, reconstruction
from irg_mini.perception.labeled_images import (
    Augmentation,
    LabeledImage,
    Pool,
    Reconstruct,
    Shift,
    Vocab,
    augmented_part,
    color_of,
    to_batch,
)
from irg_mini.perception.training import Training, TrainingConfig
from irg_mini.world.corrupt import corrupt
from irg_mini.world.detector import VARIANTS, Detector, DetectorConfig, Maps, overlap
from irg_mini.world.placement import sample_pair
from irg_mini.world.render import render
from irg_mini.world.request import ALL_TAGS
from irg_mini.world.request_sampling import DEFAULT_WEIGHTS
from irg_mini.world.rules import satisfied, see
from irg_mini.world.scene import pixel_box
from irg_mini.world.sprites import Sprites
from irg_mini.world.vocabularies import find_vocabulary


@dataclass(frozen=True)
class DetectorTrainingConfig(TrainingConfig):
    """How a detector is trained."""

    out: Path = Path("runs/label-detector")
    variant: str = "label"
    """One of the named architectures (`irg_mini.world.detector.VARIANTS`)."""
    width: int | None = None
    """Width of the coarse blocks in place of the variant's own."""
    seed: int = 1
    steps: int = 3000
    batch: int = 32
    muon_lr: float = 0.02
    cooldown: float = 0.6
    augmented_share: float = 0.75
    refresh: int = 3
    """Images of the pool rendered anew in each step."""
    held_out: int = 600
    measured: int = 2000
    """Images on which its verdicts are compared with the truth at the end."""
    autoencoder: Path | None = None
    """Folder of a trained compact autoencoder; a third of the pool then goes through it."""
    vocab: str | tuple[str, ...] = "core"
    """The vocabulary that it detects: core, geneval, full, or a list of nouns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; choose from {', '.join(VARIANTS)}")

    @property
    def detector(self) -> DetectorConfig:
        """The architecture that is trained."""
        config = DetectorConfig(names=find_vocabulary(self.vocab).nouns, **VARIANTS[self.variant])
        return config if self.width is None else replace(config, coarse_width=self.width)


# ---------------------------------------------------------------------------------------------------- targets, loss


@dataclass(frozen=True)
class Targets:
    """What the maps should say: the heat of every cell, and the rest at the cells that hold a center."""

    heat_BKgg: Tensor
    cell_T3: Tensor
    """int64 (image, row, col)."""
    color_T: Tensor
    box_T4: Tensor


def targets_of(examples: list[LabeledImage], shift: Shift, config: DetectorConfig, spread: float = 0.6) -> Targets:
    """Targets for images moved by ``shift``; ``spread`` is in cells."""
    grid, names = config.grid, {name: index for index, name in enumerate(config.names)}
    heat_BKgg = np.zeros((len(examples), len(names), grid, grid), np.float32)
    centers = np.arange(grid) + 0.5
    cells, colors, boxes = [], [], []
    for b, example in enumerate(examples):
        for thing in example.things:
            x0, y0, x1, y1 = (v / config.size for v in pixel_box(thing, config.size))
            x0, y0, x1, y1 = shift.box(b, (x0, y0, x1, y1))
            x, y = (x0 + x1) / 2 * grid, (y0 + y1) / 2 * grid
            row, col = int(y), int(x)
            if not (0 <= x < grid and 0 <= y < grid):
                continue
            bump = np.exp(-((centers[:, None] - y) ** 2 + (centers - x) ** 2) / (2 * spread**2))
            heat_gg = heat_BKgg[b, names[thing.name]]
            np.maximum(heat_gg, bump, out=heat_gg)
            heat_gg[row, col] = 1.0
            cells.append((b, row, col))
            colors.append(color_of(thing))
            boxes.append((x - col, y - row, np.log(x1 - x0), np.log(y1 - y0)))
    return Targets(
        torch.from_numpy(heat_BKgg),
        torch.tensor(cells, dtype=torch.int64).reshape(-1, 3),
        torch.tensor(colors, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    )


def detection_loss(maps: Maps, targets: Targets) -> dict[str, Tensor]:
    """Focal loss of the heat, cross-entropy of colors and L1 of boxes at the centers, and their total."""
    logits, heat = maps.heat_BKgg, targets.heat_BKgg
    p = torch.sigmoid(logits)
    center = heat == 1
    hit = -((1 - p) ** 2) * F.logsigmoid(logits)
    miss = -((1 - heat) ** 4) * p**2 * F.logsigmoid(-logits)
    things = max(1, len(targets.color_T))
    b, row, col = targets.cell_T3.unbind(1)
    losses = {"heat": torch.where(center, hit, miss).sum() / things}
    losses["color"] = F.cross_entropy(maps.color_BQgg[b, :, row, col], targets.color_T, reduction="sum") / things
    losses["box"] = (maps.box_B4gg[b, :, row, col] - targets.box_T4).abs().sum() / things
    losses["total"] = losses["heat"] + 0.5 * losses["color"] + 0.5 * losses["box"]
    return losses


# ---------------------------------------------------------------------------------------------------------- trainer


class DetectorTraining(Training[Pool]):
    """One training run of a detector."""

    config: DetectorTrainingConfig
    max_grad_norm = 10.0

    def __init__(self, config: DetectorTrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.detector = Detector(config.detector)
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, self.detector, adam_only=[self.detector.heads.weight])

    def losses(self, data: Pool, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        data.refresh(self.config.refresh)
        examples = data.draw(rng, self.config.batch)
        x_B3HW = to_batch(examples)
        shift = augmented_part(x_B3HW, Augmentation(move=0.04, zoom=0.08), self.config.augmented_share, generator)
        return detection_loss(self.detector(x_B3HW), targets_of(examples, shift, self.detector.config))

    def catch_up(self, data: Pool) -> None:
        data.refresh(self.config.refresh * self.step)

    def export(self) -> None:
        self.detector.save(self.config.out)


# ------------------------------------------------------------------------------------------------------ calibration


def calibrated(detector: Detector, examples: list[LabeledImage], seed: int = 0) -> DetectorConfig:
    """The detector's configuration with scores that are chances: of a peak at that height being a thing.

    Peaks on augmented images are matched with the truth (same class, boxes overlapping by 0.3), and a logistic curve
    over their logits is fitted.
    """
    raw = Detector(replace(detector.config, score_slope=1.0, score_shift=0.0)).eval()
    raw.load_state_dict(detector.state_dict())
    generator = torch.Generator().manual_seed(seed)
    logits, right = [], []
    for start in range(0, len(examples), 64):
        part = examples[start : start + 64]
        x_B3HW = to_batch(part)
        shift = augmented_part(x_B3HW, Augmentation(), 0.75, generator)
        images_BHW3 = ((x_B3HW + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for b, seen in enumerate(raw.detect(images_BHW3, threshold=0.02)):
            size = detector.config.size
            truth = [(t.name, tuple(v * size for v in shift.box(b, t.box))) for t in part[b].things]
            for item in seen:
                logits.append(np.log(item.score / max(1 - item.score, 1e-7)))
                right.append(any(name == item.name and overlap(box, item.box) > 0.3 for name, box in truth))
    slope, shift_ = _logistic(np.array(logits), np.array(right, float))
    return replace(detector.config, score_slope=slope, score_shift=shift_)


def _logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and shift of the logistic curve of greatest likelihood, lightly held to slope 1 (Newton's method)."""
    if len(x) == 0:
        return 1.0, 0.0
    design, weights = np.stack([x, np.ones_like(x)], 1), np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (p - y) + np.array([weights[0] - 1, 0.0])
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag([1.0, 1e-6])
        weights = weights - np.linalg.solve(hessian, gradient)
    return float(weights[0]), float(weights[1])


# ------------------------------------------------------------------------------------------------------- evaluation


def agreement(
    detector: Detector,
    count: int,
    seed: int,
    reconstruct: Reconstruct | None = None,
    sprites: Sprites | None = None,
    vocab: Vocab | None = None,
) -> dict[str, Any]:
    """How often the verdict from what the detector finds equals the true one, on correct and on corrupted scenes.

    Held-out requests; the corrupted half has at least one mistake made on purpose. Also per tag, and the share of
    things found with the right class and color.
    """
    requests, truths, images, wanted = [], [], [], []
    nouns: Vocab = vocab or detector.config.names
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        request, scene = sample_pair(rng, DEFAULT_WEIGHTS, nouns, split="test" if i % 4 < 2 else "train")
        if i % 2:
            scene, _ = corrupt(request, scene, rng, vocab=nouns)
        requests.append(request)
        wanted.append(see(scene, detector.config.size))
        truths.append(satisfied(request, wanted[-1]))
        images.append(render(scene, detector.config.size, sprites))
    images_BHW3 = np.stack(images) if reconstruct is None else reconstruct(np.stack(images))
    found = detector.detect(images_BHW3)
    agreed = np.array([satisfied(r, seen) == t for r, seen, t in zip(requests, found, truths, strict=True)])
    true = np.array(truths)
    things, hits, colors = 0, 0, 0
    for truth, seen in zip(wanted, found, strict=True):
        for item in truth:
            near = [s for s in seen if s.name == item.name and overlap(s.box, item.box) > 0.3]
            things, hits = things + 1, hits + bool(near)
            colors += any(s.color == item.color for s in near)
    by_tag = {tag: [bool(a) for a, r in zip(agreed, requests, strict=True) if r.tag == tag] for tag in ALL_TAGS}
    return {
        "agreement": _share(agreed),
        "on_correct": _share(agreed[true]),
        "on_wrong": _share(agreed[~true]),
        "by_tag": {tag: _share(values) for tag, values in by_tag.items() if values},
        "things_found": round(hits / things, 4),
        "colors_right": round(colors / max(1, hits), 4),
        "images": count,
    }


def _share(values: Sequence[bool] | np.ndarray) -> float | None:
    """Share of true values; None of no values."""
    return round(float(np.mean(values)), 4) if len(values) else None


def main(config: DetectorTrainingConfig) -> None:
    """Render the pool, train, calibrate, measure and save."""
    reconstruct = None if config.autoencoder is None else reconstruction(load_compact(config.autoencoder))
    run = DetectorTraining(config)
    size = run.detector.config.size
    pool = Pool(config.pool, 1000 * config.seed + 1, size, reconstruct=reconstruct, vocab=config.vocab)
    held = Pool(config.held_out, 1000 * config.seed + 2, size, reconstruct=reconstruct, vocab=config.vocab)
    run.run(pool)
    detector = Detector(calibrated(run.detector, held.examples)).eval()
    detector.load_state_dict(run.detector.state_dict())
    detector.save(config.out)
    seed, vocab = 1000 * config.seed + 3, config.vocab
    metrics = {"clean": agreement(detector, config.measured, seed, vocab=vocab)}
    if reconstruct is not None:
        metrics["decoded"] = agreement(detector, config.measured, seed, reconstruct, vocab=vocab)
    description = {"steps": run.step, "training": {k: str(v) for k, v in asdict(config).items()}}
    write_json(config.out / "metrics.json", description | metrics)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(DetectorTrainingConfig))
