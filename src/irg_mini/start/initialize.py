"""A fresh small model: random weights arranged so that image tokens attend early to the words that name their place.

Nothing here changes the network; it is BAGEL's. But at a few thousand steps a plain random start hardly learns to
use its text, so three things that training would have to discover are given at the start:

1. a word that names a place, "(3,7)", starts as the position table's own features of that place;
2. in some heads the query of an image token and the key of a text or image token are the same projection of those
   features, so an image token looks at the words that name its place, and at its neighbors;
3. in the first layers some understanding heads look a fixed number of tokens back (query and key biases that rope turns
   into a preference for one distance), so a place word can gather the object, color and size written before it.

Legend: C hidden size; E head size.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from irg.model.network.config import ModelConfig
from irg.model.network.embeddings import sincos_rows
from irg.model.network.unified import UnifiedModel

MATCH_LAYERS = 4  # layers with place-matching heads
OFFSET_LAYERS = 2  # layers with look-back heads


@torch.no_grad()
def fresh_model(
    config: ModelConfig, seed: int, places: Mapping[int, tuple[float, float]] | None = None
) -> UnifiedModel:
    """A model with random weights.

    Args:
        places: token id -> (column, row) in units of latent tokens, for words that name a place.
    """
    torch.manual_seed(seed)
    model = UnifiedModel(config)
    depth = config.decoder.num_hidden_layers
    for name, p in model.language_model.named_parameters():
        if name.endswith(("o_proj.weight", "o_proj_moe_gen.weight", "down_proj.weight")):
            nn.init.normal_(p, std=1 / math.sqrt(p.shape[1] * 2 * depth))
        elif p.ndim == 2 and ".layers." in name:
            nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    nn.init.normal_(model.language_model.model.embed_tokens.weight, std=0.5)
    nn.init.normal_(model.language_model.lm_head.weight, std=0.02)
    nn.init.zeros_(model.llm2vae.weight)
    nn.init.zeros_(model.llm2vae.bias)
    if places:
        ids = torch.tensor(list(places))
        where = torch.tensor(list(places.values()))
        hidden = config.decoder.hidden_size
        model.language_model.model.embed_tokens.weight[ids] = sincos_rows(where[:, 0], where[:, 1], hidden)
        _match_places(model, config)
        _look_back(model, config)
    return model


def _slow_pairs(config: ModelConfig, limit: float) -> list[int]:
    """Rotary pairs that turn by less than ``limit`` radians a token: content survives the distance."""
    size, theta = config.decoder.head_dim, config.decoder.rope_theta
    return [d for d in range(size // 2) if theta ** (-2 * d / size) < limit]


def _match_places(model: UnifiedModel, config: ModelConfig) -> None:
    """Shared query/key projections of place features on half the heads of the first layers."""
    size, hidden, heads = config.decoder.head_dim, config.decoder.hidden_size, config.decoder.num_attention_heads
    slow = _slow_pairs(config, 0.02)
    slots = [*slow, *(d + size // 2 for d in slow)]
    quarter = hidden // 4
    # channel layout of the table: column sines, column cosines, row sines, row cosines
    useful = [i for i in range(quarter) if 0.05 < 10000 ** (-i / quarter)]
    for layer in model.language_model.model.layers[:MATCH_LAYERS]:
        attention = layer.self_attn
        for head in range(heads // 2):
            picked = [useful[int(j)] for j in torch.randperm(len(useful))[: len(slots) // 4]]
            channels = [block * quarter + i for i in picked for block in range(4)]
            projection = torch.zeros(size, hidden)
            for slot, channel in zip(slots, channels, strict=False):
                projection[slot, channel] = 1.0
            rows = slice(head * size, (head + 1) * size)
            for name in ("q_proj_moe_gen", "k_proj_moe_gen", "k_proj"):
                getattr(attention, name).weight[rows] = projection + 0.02 * torch.randn(size, hidden)


def _look_back(model: UnifiedModel, config: ModelConfig) -> None:
    """Understanding heads of the first layers that look 1, 2, 3, ... tokens back."""
    size, heads = config.decoder.head_dim, config.decoder.num_attention_heads
    theta = config.decoder.rope_theta
    for layer in model.language_model.model.layers[:OFFSET_LAYERS]:
        attention: Any = layer.self_attn
        for index, head in enumerate(range(heads // 2, heads)):
            rows = slice(head * size, (head + 1) * size)
            query, key = torch.zeros(size), torch.zeros(size)
            for d in (0, 1):
                query[d] = 1.0
                angle = (index + 1) * theta ** (-2 * d / size)
                key[d], key[d + size // 2] = math.cos(angle), math.sin(angle)
            for name, bias in (("q_proj", query), ("k_proj", key)):
                projection = getattr(attention, name)
                projection.weight[rows] *= 0.1
                projection.bias[rows] = bias * 3.0
        attention.q_norm.weight.fill_(1.5)
        attention.k_norm.weight.fill_(1.5)
