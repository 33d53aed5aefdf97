"""A model between two: the weighted mean of the weights of two runs of one line of training.

``python -m irg.learning.averaging --models EARLIER LATER --share 0.35 --out DIR``. A short last run can give one skill
and take another; where it began from the other's result, their weights may be mixed, and the mean often has most of
both (Wortsman et al. 2022, arXiv 2203.05482; towards the earlier of two: arXiv 2109.01903).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from irg.model.checkpoint import load_model, save_model

_BESIDE = ("tokenizer.json", "irg.json")


@dataclass(frozen=True)
class Averaging:
    """Which models, and how much of the later one."""

    models: tuple[str, str]
    """Two folders of one configuration."""
    out: str
    share: float = 0.5
    """How far from the first to the second, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")


def average(options: Averaging) -> None:
    """Write the mean of both models, in float32; the autoencoder, the tokenizer and the settings are the first one's.

    Raises:
        ValueError: a folder is no model, the two differ in configuration, or ``out`` holds a model.
    """
    first, second = (Path(folder) for folder in options.models)
    out = Path(options.out)
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already: choose another folder")
    one, other = (load_model(folder, dtype=torch.float32) for folder in (first, second))
    if one.config != other.config:
        raise ValueError(f"{first} and {second} are not of one configuration")
    weights, later = one.model.state_dict(), other.model.state_dict()
    with torch.no_grad():
        for name, weight in weights.items():
            if weight.is_floating_point():
                weight.lerp_(later[name], options.share)
    save_model(out, one.config, one.model, one.autoencoder)
    for name in _BESIDE:
        if (first / name).is_file():
            shutil.copyfile(first / name, out / name)


if __name__ == "__main__":
    import tyro

    average(tyro.cli(Averaging))
