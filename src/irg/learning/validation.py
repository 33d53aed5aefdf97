"""Does the image listen to its text? Velocity errors of rows kept out of training, at one high noise level.

A falling loss hides a condition that is ignored; the gap between the right thinking, none and another row's does not.
"""

import math
from collections.abc import Callable, Sequence

import torch

from irg.learning.data.packing import Attention, Pack, pack_of
from irg.learning.modes import EncodedTrajectory, write
from irg.learning.objective import Losses
from irg.model.network.config import ModelConfig
from irg.sequence.layout import lay_out
from irg.sequence.parts import Part, Text

LEVEL = 0.9
CONDITIONS = ("with", "without", "shuffled")
Score = Callable[[Pack, int], Losses]
"""Noise a pack (with the generator of that number, without a timestep shift) and score it."""


class Validation:
    """Measures held-out rows, in packs of about as many tokens as in training."""

    def __init__(
        self, rows: Sequence[EncodedTrajectory], config: ModelConfig, tokens_per_pack: int, attention: Attention
    ) -> None:
        self.rows, self.config, self.attention = list(rows), config, attention
        self.groups: list[list[int]] = []  # the rows of a pack, the same for all conditions, so that noise is, too
        room = 0
        for row, trajectory in enumerate(rows):
            length = len(lay_out(write("initial_full", trajectory), config.grammar))
            if length > room:
                self.groups.append([])
                room = tokens_per_pack
            self.groups[-1].append(row)
            room -= length

    @torch.no_grad()
    def measure(self, score: Score) -> dict[str, float]:
        """Mean squared velocity errors by condition, named as in the log."""
        result = {}
        for condition in CONDITIONS:
            errors = [
                score(self.pack(condition, rows), number).mse_MD.mean(dim=-1) for number, rows in enumerate(self.groups)
            ]
            result[f"val/mse@{LEVEL}/{condition}"] = torch.cat(errors).mean().item()
        return result

    def pack(self, condition: str, rows: Sequence[int]) -> Pack:
        """Rows in mode ``initial_full`` with the right thinking, none, or the next row's."""
        samples = [self._sample(condition, row) for row in rows]
        layouts = [lay_out(sample, self.config.grammar) for sample in samples]
        normal = math.log(LEVEL / (1 - LEVEL))
        return pack_of(samples, layouts, self.config, lambda: normal, attention=self.attention)

    def _sample(self, condition: str, row: int) -> list[Part]:
        parts = write("initial_full", self.rows[row])
        match condition:
            case "without":
                return [part for part in parts if not (isinstance(part, Text) and part.loss)]
            case "shuffled":
                other = Text(self.rows[(row + 1) % len(self.rows)].thinking, loss=True)
                return [other if isinstance(part, Text) and part.loss else part for part in parts]
        return parts
