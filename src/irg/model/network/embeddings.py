"""Position tables, the time embedding and the ViT connector (formulas: ``golden/README.md``, "Embeddings").

Legend: N rows of a table; C hidden size; P patches; G latent tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos_rows(columns: Tensor, rows: Tensor, hidden: int) -> Tensor:
    """2-D sine-cosine features of places: float32 [N, C], computed in float64.

    The first half of the channels encodes the column, the second half the row; each half is all sines, then all
    cosines, with frequencies 10000^(-i / (hidden / 4)). Places need not be whole numbers.
    """
    quarter = hidden // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def half(place_N: Tensor) -> Tensor:
        angle = place_N.to(torch.float64)[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    return torch.cat([half(columns), half(rows)], dim=1).to(torch.float32)


class PositionTable(nn.Module):
    """A frozen ``side`` x ``side`` table of 2-D sine-cosine features; row = row * side + column."""

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__()
        self.side, self.hidden = side, hidden
        self.pos_embed = nn.Parameter(torch.empty(side * side, hidden), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the table with its formula (a no-op on the meta device)."""
        if self.pos_embed.is_meta:
            return
        index = torch.arange(self.side * self.side)
        with torch.no_grad():
            self.pos_embed.copy_(sincos_rows(index % self.side, index // self.side, self.hidden))

    def forward(self, cells_N: Tensor) -> Tensor:
        return F.embedding(cells_N, self.pos_embed)


class TimeEmbedder(nn.Module):
    """Time t in [0, 1] -> [G, C]: 128 cosines and 128 sines of t * 10000^(-i/128), then a two-layer SiLU MLP."""

    features = 256

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @staticmethod
    def sinusoid(times_G: Tensor) -> Tensor:
        """float32 [G, 256], cosines first. t is used as it is, not times 1000."""
        half = TimeEmbedder.features // 2
        frequencies = torch.exp(
            -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=times_G.device) / half
        )
        angle = times_G.to(torch.float32)[:, None] * frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def forward(self, times_G: Tensor) -> Tensor:
        return self.mlp(self.sinusoid(times_G).to(self.dtype))


class Connector(nn.Module):
    """ViT width -> decoder width: linear, tanh-gelu, linear."""

    def __init__(self, vit_hidden: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vit_hidden, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, features_PC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features_PC), approximate="tanh"))
