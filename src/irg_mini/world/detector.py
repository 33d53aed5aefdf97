"""A small detector of the world's things: one convolutional network, one peak per thing (after CenterNet).

Each cell of a coarse grid says how likely the center of a thing of each class is there; at peaks the network also says
color, box and place inside the cell. This is the only module of this package that needs torch.

Legend: B images; H, W pixels; K classes; C channels; g cells on a side of the grid; Q colors (ten, then "none").
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from irg.deprecation import warn
from irg.files import write_bytes, write_json
from irg_mini.world.classes import COLORS
from irg_mini.world.rules import Seen
from irg_mini.world.scene import Box

PEAKS = 32
"""Peaks looked at in one image; a scene has far fewer things."""


BUNDLED = Path(__file__).parents[1] / "assets"
"""Bundled detectors: ``label-detector`` labels training rows; ``eval-detector`` scores results and takes no part in
training."""


LABEL_DETECTOR, EVAL_DETECTOR = "label-detector", "eval-detector"
RENAMED = {"mini-judge": LABEL_DETECTOR, "mini-referee": EVAL_DETECTOR}


@dataclass(frozen=True)
class DetectorConfig:
    """A detector's architecture and vocabulary.

    The image, cut into ``patch`` x ``patch`` blocks, goes through ``fine_depth`` residual blocks at stride ``patch``;
    ``coarse_depth`` more follow after halving the grid. The heads read the coarse grid (stride 2 * patch).
    """

    names: tuple[str, ...]
    size: int = 96
    patch: int = 4
    fine_width: int = 48
    fine_depth: int = 2
    coarse_width: int = 112
    coarse_depth: int = 4
    kernel: int = 3
    dilations: tuple[int, ...] = (1, 2)
    """Dilation of the coarse blocks' first convolutions, taken in turn."""
    score_slope: float = 1.0
    """Scores are sigmoid(slope * logit + shift), fitted so that a score is the chance of being right."""
    score_shift: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "dilations", tuple(self.dilations))
        if not self.names:
            raise ValueError("a detector needs at least one class name")
        if self.size % (2 * self.patch):
            raise ValueError(f"size {self.size} must be a multiple of twice the patch ({2 * self.patch})")

    @property
    def stride(self) -> int:
        """Pixels a cell of the output grid covers on a side."""
        return 2 * self.patch

    @property
    def grid(self) -> int:
        """Cells on a side of the output grid."""
        return self.size // self.stride


VARIANTS: dict[str, dict[str, Any]] = {
    "label": {},
    "eval": {
        "patch": 3,
        "fine_width": 32,
        "fine_depth": 1,
        "coarse_width": 72,
        "coarse_depth": 3,
        "kernel": 5,
        "dilations": (1,),
    },
}
"""Named architectures: they differ in stride, kernels, width and depth, so that their mistakes differ too."""


def _convolution(c_in: int, c_out: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=padding, dilation=dilation, bias=False), nn.BatchNorm2d(c_out)
    )


class _Block(nn.Module):
    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, kernel, dilation)
        self.second = _convolution(channels, channels, 3)

    def forward(self, x_BCgg: Tensor) -> Tensor:
        return x_BCgg + self.second(F.relu(self.first(F.relu(x_BCgg))))


@dataclass(frozen=True)
class Maps:
    """What the network says of every cell."""

    heat_BKgg: Tensor
    """Logits: is the center of a thing of this class here?"""
    color_BQgg: Tensor
    """Logits over the ten colors and "none"."""
    box_B4gg: Tensor
    """Center inside the cell (x, y; 0..1 between its edges), then log(width), log(height) in shares of the image."""


class Detector(nn.Module):
    """Finds the world's things in images of its own size (others are resized first)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        fine, coarse = config.fine_width, config.coarse_width
        self.stem = nn.Sequential(nn.PixelUnshuffle(config.patch), _convolution(3 * config.patch**2, fine, 3))
        self.fine = nn.Sequential(*(_Block(fine, 3) for _ in range(config.fine_depth)))
        self.halve = nn.Sequential(nn.PixelUnshuffle(2), _convolution(4 * fine, coarse, 1))
        dilations = [config.dilations[i % len(config.dilations)] for i in range(config.coarse_depth)]
        self.coarse = nn.Sequential(*(_Block(coarse, config.kernel, dilation) for dilation in dilations))
        self.heads = nn.Conv2d(coarse, len(config.names) + len(COLORS) + 1 + 4, 1)
        # A thing's center is rare: start at that rate, or the first steps are spent unlearning false alarms.
        nn.init.constant_(self.heads.bias[: len(config.names)], -5.0)  # type: ignore[index]

    def forward(self, x_B3HW: Tensor) -> Maps:
        """Maps for images in [-1, 1] of the configured size."""
        sizes = [len(self.config.names), len(COLORS) + 1, 4]
        return Maps(*self.heads(F.relu(self.features(x_B3HW))).split(sizes, dim=1))

    def features(self, x_B3HW: Tensor) -> Tensor:
        """What the heads read, [B, C, g, g], before its last rectifier."""
        features: Tensor = self.coarse(self.halve(self.fine(self.stem(x_B3HW))))
        return features

    @torch.no_grad()
    def detect(self, images_BHW3: np.ndarray, threshold: float = 0.2, batch: int = 64) -> list[list[Seen]]:
        """The things seen in each image, the surest first; boxes in pixels of the images given.

        ``images_BHW3`` is uint8 [B, H, W, 3]. Nothing is random. The network is left in the mode it was in.
        """
        if images_BHW3.dtype != np.uint8 or images_BHW3.ndim != 4 or images_BHW3.shape[3] != 3:
            raise ValueError(f"images must be uint8 [B, H, W, 3], not {images_BHW3.dtype} {images_BHW3.shape}")
        height, width = images_BHW3.shape[1:3]
        was_training = self.training
        self.eval()
        found: list[list[Seen]] = []
        for start in range(0, len(images_BHW3), batch):
            x_B3HW = to_input(images_BHW3[start : start + batch], self.config.size)
            x_B3HW = x_B3HW.to(self.heads.weight.device)
            found += decode_maps(self(x_B3HW), self.config, threshold, (width, height))
        self.train(was_training)
        return found

    def save(self, folder: Path) -> None:
        """Write model.safetensors and config.json."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_bytes(folder / "model.safetensors", save(state))
        write_json(folder / "config.json", asdict(self.config))

    @classmethod
    def load(cls, folder: Path | str) -> Detector:
        """The detector that ``save`` wrote to a folder, or a bundled one by name, ready to detect.

        Raises:
            ValueError: there is none.
        """
        folder = find_detector(folder)
        try:
            data = json.loads((folder / "config.json").read_text())
            if not data.get("fine_heads", True):  # an option that earlier versions had, and wrote
                del data["fine_heads"]
            unknown = set(data) - {field.name for field in fields(DetectorConfig)}
            if unknown:
                raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
            detector = cls(DetectorConfig(**data))
            detector.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"no detector in {folder}: {error}") from None
        return detector.eval()


def find_detector(name: Path | str) -> Path:
    """The folder of a detector: itself, or of a bundled one by name. Earlier names of bundled ones still count."""
    if Path(name).is_dir():
        return Path(name)
    if str(name) in RENAMED:
        warn(f"detector {name}", RENAMED[str(name)])
        name = RENAMED[str(name)]
    bundled = BUNDLED / str(name)
    return bundled if bundled.is_dir() else Path(name)


def to_input(images_BHW3: np.ndarray, size: int) -> Tensor:
    """uint8 images as float32 [B, 3, size, size] in [-1, 1]."""
    x_B3HW = torch.from_numpy(np.array(images_BHW3)).permute(0, 3, 1, 2).float()
    if x_B3HW.shape[2:] != (size, size):
        x_B3HW = F.interpolate(x_B3HW, (size, size), mode="bilinear", antialias=True)
    return x_B3HW / 127.5 - 1


# --------------------------------------------------------------------------------------------------- maps to things


def overlap(box_a: tuple[float, ...], box_b: tuple[float, ...]) -> float:
    """Intersection over union of two (x0, y0, x1, y1)."""
    width = min(box_a[2], box_b[2]) - max(box_a[0], box_b[0])
    height = min(box_a[3], box_b[3]) - max(box_a[1], box_b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (box_a, box_b))
    return shared / (areas - shared)


def decode_maps(maps: Maps, config: DetectorConfig, threshold: float, size: tuple[int, int]) -> list[list[Seen]]:
    """Peaks of the heat maps as things: per image, the surest first, boxes scaled to ``size`` (width, height)."""
    heat_BKgg = maps.heat_BKgg.float()
    peaks_BKgg = heat_BKgg.masked_fill(F.max_pool2d(heat_BKgg, 3, stride=1, padding=1) > heat_BKgg, -torch.inf)
    flat_BN = peaks_BKgg.flatten(1)
    logits_BP, index_BP = flat_BN.topk(min(PEAKS, flat_BN.shape[1]), dim=1)
    scores_BP = torch.sigmoid(config.score_slope * logits_BP + config.score_shift)
    colors_Bgg = maps.color_BQgg.argmax(dim=1)
    box_B4gg = maps.box_B4gg.float()
    images = []
    for b in range(len(heat_BKgg)):
        candidates = []
        for score, index in zip(scores_BP[b].tolist(), index_BP[b].tolist(), strict=True):
            if score < threshold:
                break
            kind, row, col = np.unravel_index(index, heat_BKgg.shape[1:])
            box = _box(box_B4gg[b, :, row, col].tolist(), int(col), int(row), config.grid, size)
            color = int(colors_Bgg[b, row, col])
            name = config.names[int(kind)]
            candidates.append(Seen(name, COLORS[color] if color < len(COLORS) else None, box, score))
        images.append(without_doubles(candidates))
    return images


def _box(values: list[float], col: int, row: int, grid: int, size: tuple[int, int]) -> Box:
    x, y = (col + values[0]) / grid, (row + values[1]) / grid
    width, height = (float(np.exp(min(value, 0.5))) for value in values[2:])
    return (
        (x - width / 2) * size[0],
        (y - height / 2) * size[1],
        (x + width / 2) * size[0],
        (y + height / 2) * size[1],
    )


def without_doubles(seen: list[Seen], same: float = 0.4, other: float = 0.6) -> list[Seen]:
    """Drop what overlaps something surer: of the same class beyond ``same``, of another beyond ``other`` (IoU).

    ``seen`` is sorted, the surest first.
    """
    kept: list[Seen] = []
    for item in seen:
        limits = ((other_item, same if other_item.name == item.name else other) for other_item in kept)
        if all(overlap(item.box, kept_item.box) <= limit for kept_item, limit in limits):
            kept.append(item)
    return kept
