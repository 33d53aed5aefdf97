"""Flow steps whose layers are compiled, all but attention.

From the attention of one layer to that of the next nothing depends on how long contexts are. So three functions serve
all layers, steps and images: up to the first attention, from one to the next, and behind the last. torch.compile fuses
their norms, rotary positions, SwiGLU, sums and casts; attention reads slices of the cache, as it does uncompiled.
They are compiled for the first image's number of tokens, and once more, with that left open, when another comes.

Legend: U understanding, G generation tokens; T = U + G; C hidden size; H query heads; K key-value heads; E head size;
D values per token.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from irg.engine.static_decoding import MAX_SHAPES, check_whole
from irg.model.network.decoder import Attend, DecoderLayer
from irg.model.network.token_batch import TokenBatch
from irg.model.network.unified import UnifiedModel

Rope = tuple[Tensor, Tensor]
Heads = tuple[Tensor, Tensor, Tensor]


class CompiledDrawing:
    """Predicts velocities."""

    def __init__(self, model: UnifiedModel, backend: str | None = None) -> None:
        """``backend``: of torch.compile; None: its own.

        Raises:
            ValueError: the model is spread over several devices, or offloaded.
        """
        check_whole(model)
        self.model = model
        how: dict[str, Any] = {"fullgraph": True} | ({"backend": backend} if backend else {})
        compiled: list[Callable[..., Any]] = [torch.compile(part, **how) for part in (_first, _next, _last)]
        self._first, self._next, self._last = compiled

    def velocity(self, batch: TokenBatch, attend: Attend) -> Tensor:
        """Flow velocity of a batch's latents, float32 [G, D], as :class:`UnifiedModel` gives it."""
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
            return self._velocity(batch, attend)

    def _velocity(self, batch: TokenBatch, attend: Attend) -> Tensor:
        x_UC, x_GC = self.model.embed(batch)
        rope = batch.once("rope", lambda: self.model.language_model.model.rope(batch.positions_T, x_UC.dtype))
        layers = list(self.model.language_model.model.layers)
        heads = self._first(layers[0], x_UC, x_GC, rope)
        for number, (layer, following) in enumerate(pairwise(layers)):
            out_THE = attend(number, *heads)
            del heads  # their memory is free while the feed-forward networks compute
            x_UC, x_GC, *heads = self._next(layer, following, x_UC, x_GC, out_THE, rope)
        out_THE = attend(len(layers) - 1, *heads)
        v_GD: Tensor = self._last(self.model, layers[-1], x_UC, x_GC, out_THE, batch.latents_GD, batch.times_G)
        return v_GD


def _first(layer: DecoderLayer, x_UC: Tensor, x_GC: Tensor, rope: Rope) -> Heads:
    return layer.before_attention(x_UC, x_GC, rope)


def _next(
    layer: DecoderLayer, following: DecoderLayer, x_UC: Tensor, x_GC: Tensor, out_THE: Tensor, rope: Rope
) -> tuple[Tensor, ...]:
    x_UC, after_GC = layer.after_attention(x_UC, x_GC, out_THE)
    assert after_GC is not None
    return x_UC, after_GC, *following.before_attention(x_UC, after_GC, rope)


def _last(
    model: UnifiedModel, layer: DecoderLayer, x_UC: Tensor, x_GC: Tensor, out_THE: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    _, after_GC = layer.after_attention(x_UC, x_GC, out_THE)
    return model.velocity(model.language_model.model.norm_moe_gen(after_GC), noisy, times)
