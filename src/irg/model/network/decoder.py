"""The mixture-of-transformers decoder: two experts per layer, one joint attention.

What is unusual: tokens travel as **two streams**. Tokens of the understanding expert and tokens of the generation
expert are separate contiguous tensors, so each expert is a plain matrix product without gathers; the streams meet
only inside attention, in *stream order* (all understanding tokens, then all generation tokens). Who sees whom is not
this file's business: it calls ``attend(layer, q, k, v)``, which a packed training batch and a key-value cache
implement.

Names of modules and parameters are those of BAGEL's checkpoints (``*_moe_gen`` is the generation expert).

Legend: U understanding tokens; G generation tokens; T = U + G; C hidden size; H query heads; K key-value heads;
E head size.
"""

from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irg.model.network.config import DecoderConfig


class Attend(Protocol):
    """Joint attention of one layer: q [T, H, E], k and v [T, K, E] in stream order -> [T, H, E]."""

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor: ...


class RMSNorm(nn.Module):
    """Root-mean-square norm; statistics in float32, result in the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rope(nn.Module):
    """Rotary positions, half-split form; cosines and sines in float32, then cast."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, [T, 1, E]; sin is negative in its first half, which saves :func:`rotate` a step."""
        cached = _frequencies.__wrapped__ if torch.compiler.is_compiling() else _frequencies
        frequencies = cached(self.head_dim, self.theta, positions_T.device)
        angle = positions_T.to(torch.float32)[:, None] * frequencies
        cos, sin = angle.cos(), angle.sin()
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        return cos[:, None].to(dtype), sin[:, None].to(dtype)


@lru_cache
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / theta ** (steps / head_dim)


def rotate(x_THE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to heads."""
    cos, sin = rope
    return x_THE * cos + x_THE.roll(x_THE.shape[-1] // 2, dims=-1) * sin


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SelfAttention(nn.Module):
    """Projections of both experts around one joint attention."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = size
        self.o_proj = nn.Linear(heads * size, hidden, bias=False)
        self.o_proj_moe_gen = nn.Linear(heads * size, hidden, bias=False)
        for expert in ("", "_moe_gen"):
            self.add_module("q_proj" + expert, nn.Linear(hidden, heads * size))
            self.add_module("k_proj" + expert, nn.Linear(hidden, kv_heads * size))
            self.add_module("v_proj" + expert, nn.Linear(hidden, kv_heads * size))
            self.add_module("q_norm" + expert, RMSNorm(size, config.rms_norm_eps))
            self.add_module("k_norm" + expert, RMSNorm(size, config.rms_norm_eps))

    def _project(self, x_NC: Tensor, expert: str) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            getattr(self, name + expert)(x_NC).unflatten(-1, (-1, self.size)) for name in ("q_proj", "k_proj", "v_proj")
        )
        return getattr(self, "q_norm" + expert)(q), getattr(self, "k_norm" + expert)(k), v

    def heads(self, x_UC: Tensor, x_GC: Tensor | None, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, E], k and v [T, K, E] in stream order."""
        q, k, v = self._project(x_UC, "")
        if x_GC is not None:
            streams = zip((q, k, v), self._project(x_GC, "_moe_gen"), strict=True)
            q, k, v = (torch.cat(pair) for pair in streams)
        return rotate(q, rope), rotate(k, rope), v

    def output(self, out_THE: Tensor, x_UC: Tensor, x_GC: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What attention gave, through the last projection of both experts."""
        out_TC = out_THE.flatten(-2)
        if x_GC is None:
            return self.o_proj(out_TC), None
        out_UC, out_GC = out_TC.split([x_UC.shape[0], x_GC.shape[0]])
        return self.o_proj(out_UC), self.o_proj_moe_gen(out_GC)


class DecoderLayer(nn.Module):
    """Pre-norm block with an understanding and a generation expert."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.self_attn = SelfAttention(config)
        for expert in ("", "_moe_gen"):
            self.add_module("mlp" + expert, MLP(config))
            self.add_module("input_layernorm" + expert, RMSNorm(config.hidden_size, config.rms_norm_eps))
            self.add_module("post_attention_layernorm" + expert, RMSNorm(config.hidden_size, config.rms_norm_eps))

    def _norm(self, which: str, x: Tensor, expert: str) -> Tensor:
        return getattr(self, which + expert)(x)

    def _feed_forward(self, x: Tensor, expert: str) -> Tensor:
        return x + getattr(self, "mlp" + expert)(self._norm("post_attention_layernorm", x, expert))

    def before_attention(
        self, x_UC: Tensor, x_GC: Tensor | None, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, H, E], k and v [T, K, E] in stream order."""
        normed_UC = self._norm("input_layernorm", x_UC, "")
        normed_GC = None if x_GC is None else self._norm("input_layernorm", x_GC, "_moe_gen")
        return self.self_attn.heads(normed_UC, normed_GC, rope)

    def after_attention(self, x_UC: Tensor, x_GC: Tensor | None, out_THE: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layer's result from its input and what attention gave."""
        out_UC, out_GC = self.self_attn.output(out_THE, x_UC, x_GC)
        del out_THE  # its memory is free while the feed-forward networks compute
        x_UC = self._feed_forward(x_UC + out_UC, "")
        if x_GC is not None:
            assert out_GC is not None
            x_GC = self._feed_forward(x_GC + out_GC, "_moe_gen")
        return x_UC, x_GC

    def forward(
        self, x_UC: Tensor, x_GC: Tensor | None, rope: tuple[Tensor, Tensor], attend: Attend
    ) -> tuple[Tensor, Tensor | None]:
        # no names for q, k and v: they would live on while the feed-forward networks compute
        return self.after_attention(x_UC, x_GC, attend(self.layer, *self.before_attention(x_UC, x_GC, rope)))


class Decoder(nn.Module):
    """Embedding, layers and the two final norms."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = Rope(config.head_dim, config.rope_theta)
        self.kv_heads = config.num_key_value_heads  # of this process: fewer where heads are split among several

    def forward(
        self, x_UC: Tensor, x_GC: Tensor | None, rope: tuple[Tensor, Tensor], attend: Attend
    ) -> tuple[Tensor, Tensor | None]:
        """Run embedded tokens through all layers; ``rope`` (see :class:`Rope`) in stream order."""
        for layer in self.layers:
            x_UC, x_GC = layer(x_UC, x_GC, rope, attend)
        return self.norm(x_UC), None if x_GC is None else self.norm_moe_gen(x_GC)


class CausalLM(nn.Module):
    """The decoder with its language head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
