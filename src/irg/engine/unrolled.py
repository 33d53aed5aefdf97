"""The decoder as plain functions over its weights: the same operations in the same order, without module calls.

A small model on a CPU spends a fifth of a decoding step in the machinery around modules. Parameters are shared with the
model, so what changes them in place (an optimiser, ``.to(...)``) changes both.

Legend: U understanding tokens; G generation tokens; N tokens of one of them; C hidden size; H heads; E head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irg.model.decoder import MLP, Attend, Decoder, DecoderLayer, RMSNorm, SelfAttention, rotate

DecoderFunction = Callable[[Tensor, Tensor | None, Tensor, Attend], tuple[Tensor, Tensor | None]]


def unrolled(decoder: Decoder) -> DecoderFunction:
    """What ``decoder.forward`` does, as a faster function; the decoder itself if a layer is not the plain one.

    Layers that were wrapped or hooked (adapters, quantisation, sharding) are not plain.
    """
    if not all(_is_plain(layer) for layer in decoder.layers):
        return decoder
    layers = [(_Expert.of(layer, ""), _Expert.of(layer, "_moe_gen")) for layer in decoder.layers]

    def forward(x_UC: Tensor, x_GC: Tensor | None, positions_T: Tensor, attend: Attend) -> tuple[Tensor, Tensor | None]:
        rope = decoder.rope(positions_T, x_UC.dtype)
        for index, (und, gen) in enumerate(layers):
            q, k, v = und.project(x_UC)
            if x_GC is not None:
                q, k, v = (torch.cat(pair) for pair in zip((q, k, v), gen.project(x_GC), strict=True))
            out_TC = attend(index, rotate(q, rope), rotate(k, rope), v).flatten(1)
            if x_GC is None:
                x_UC = und.finish(x_UC, out_TC)
            else:
                out_UC, out_GC = out_TC.split([len(x_UC), len(x_GC)])
                x_UC, x_GC = und.finish(x_UC, out_UC), gen.finish(x_GC, out_GC)
        return decoder.norm(x_UC), None if x_GC is None else decoder.norm_moe_gen(x_GC)

    return forward


@dataclass(frozen=True, slots=True)
class _Expert:
    """One expert's weights in one layer."""

    head_size: int
    eps: float
    input_norm: Tensor
    query: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]
    value: tuple[Tensor, Tensor]
    query_norm: Tensor
    key_norm: Tensor
    out: Tensor
    post_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    @staticmethod
    def of(layer: DecoderLayer, expert: str) -> "_Expert":
        def weight(name: str) -> Tensor:
            return layer.get_parameter(f"{name}.weight")

        def affine(name: str) -> tuple[Tensor, Tensor]:
            return weight(name), layer.get_parameter(f"{name}.bias")

        norm = layer.get_submodule("input_layernorm" + expert)
        assert isinstance(norm, RMSNorm)
        return _Expert(
            head_size=layer.self_attn.size,
            eps=norm.eps,
            input_norm=weight("input_layernorm" + expert),
            query=affine("self_attn.q_proj" + expert),
            key=affine("self_attn.k_proj" + expert),
            value=affine("self_attn.v_proj" + expert),
            query_norm=weight("self_attn.q_norm" + expert),
            key_norm=weight("self_attn.k_norm" + expert),
            out=weight("self_attn.o_proj" + expert),
            post_norm=weight("post_attention_layernorm" + expert),
            gate=weight(f"mlp{expert}.gate_proj"),
            up=weight(f"mlp{expert}.up_proj"),
            down=weight(f"mlp{expert}.down_proj"),
        )

    def project(self, x_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [N, H, E]; the first two normalised."""
        x_NC = torch.rms_norm(x_NC, self.input_norm.shape, self.input_norm, self.eps)
        shape = (len(x_NC), -1, self.head_size)
        q, k = F.linear(x_NC, *self.query).view(shape), F.linear(x_NC, *self.key).view(shape)
        q = torch.rms_norm(q, self.query_norm.shape, self.query_norm, self.eps)
        k = torch.rms_norm(k, self.key_norm.shape, self.key_norm, self.eps)
        return q, k, F.linear(x_NC, *self.value).view(shape)

    def finish(self, x_NC: Tensor, attended_NC: Tensor) -> Tensor:
        """Output projection and feed-forward block, with their residuals."""
        x_NC = x_NC + F.linear(attended_NC, self.out)
        normed_NC = torch.rms_norm(x_NC, self.post_norm.shape, self.post_norm, self.eps)
        gated_NC = F.silu(F.linear(normed_NC, self.gate)) * F.linear(normed_NC, self.up)
        return x_NC + F.linear(gated_NC, self.down)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer consists of nothing but its own modules, with no hooks on them."""
    return all(
        type(m) in (DecoderLayer, SelfAttention, MLP, RMSNorm, nn.Linear)
        and not (m._forward_hooks or m._forward_pre_hooks)
        for m in layer.modules()
    )
