"""A model between two: the weighted mean of the weights of two runs of one line of training.

``python -m irg.learning.averaging --models EARLIER LATER --share 0.35 --out DIR``. A short last run can give one skill
and take another; where it began from the other's result, their weights may be mixed, and the mean often has most of
both (Wortsman et al. 2022, arXiv 2203.05482; towards the earlier of two: arXiv 2109.01903).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from irg.learning.export import write_model
from irg.model.weights.checkpoint import load_model
from irg.model.weights.profile import read_profile
from irg.reasoning.prompts import BAGEL_PROFILE


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
    """Write the mean of both models, in float32 and the first one's layout; all that is no weight is the first one's.

    Raises:
        ValueError: a folder is no model, the two differ in configuration, or ``out`` is not empty.
    """
    first, second = (Path(folder) for folder in options.models)
    out = Path(options.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another folder")
    one, other = (load_model(folder, dtype=torch.float32) for folder in (first, second))
    if one.config != other.config:
        raise ValueError(f"{first} and {second} are not of one configuration")
    weights, later = one.model.state_dict(), other.model.state_dict()
    with torch.no_grad():
        for name, weight in weights.items():
            if weight.is_floating_point():
                weight.lerp_(later[name], options.share)
    write_model(out, first, one, weights, read_profile(first) or BAGEL_PROFILE, torch.float32)


if __name__ == "__main__":
    import tyro

    average(tyro.cli(Averaging))
