"""Attention against a softmax written out, and packs however their samples are grouped."""

import pytest
import torch
from torch import Tensor

from irg.model.network.packed_attention import PackedAttention, dense_attention, to_bias
from irg.model.network.token_batch import StreamOrder
from irg.sequence import Grammar, Latents, Part, Patches, SpecialTokens, Target, Text, TokenLayout, lay_out, visibility

H, K, E = 4, 2, 8  # query heads, key-value heads, head size
GRAMMAR = Grammar(SpecialTokens(0, 1, 2, 3), latent_side=4, patch_side=4)
SAMPLES: list[list[Part]] = [
    [Text((5, 6, 7))],
    [Text((5,)), Target((2, 2)), Target((2, 2), noise=1)],
    [Text((8, 9)), Latents((1, 3)), Patches((2, 2)), Text((4, 4, 4), loss=True), Target((1, 3))],
    [Patches((2, 2)), Text((9,))],
    [Text((5, 6, 7, 8))],
]


def naive(q_QHE: Tensor, k_LKE: Tensor, v_LKE: Tensor, visible_QL: Tensor) -> Tensor:
    """One head and one query at a time; head h reads key-value head h // (H / K)."""
    out = torch.zeros_like(q_QHE)
    for head in range(q_QHE.shape[1]):
        group = head // (q_QHE.shape[1] // k_LKE.shape[1])
        for query in range(len(q_QHE)):
            keys = visible_QL[query].nonzero().flatten()
            weights = (k_LKE[keys, group] @ q_QHE[query, head] / q_QHE.shape[2] ** 0.5).softmax(0)
            out[query, head] = weights @ v_LKE[keys, group]
    return out


def qkv(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(tokens, heads, E, generator=generator) for heads in (H, K, K))  # type: ignore[return-value]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_dense_is_softmax(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, H, E, generator=generator)
    k, v = (torch.randn(9, kv_heads, E, generator=generator) for _ in range(2))
    visible = torch.rand(5, 9, generator=generator) < 0.5
    visible[:, 2] = True
    bias = to_bias(visible[None, None], torch.float32)
    got = dense_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), bias)[0].transpose(0, 1)
    assert torch.allclose(got, naive(q, k, v, visible), atol=1e-6)


def test_bias() -> None:
    assert to_bias(torch.tensor([True, False]), torch.float32).tolist() == [0.0, float("-inf")]


def pack(layouts: list[TokenLayout], slack: float) -> tuple[PackedAttention, StreamOrder, Tensor]:
    order = StreamOrder.of(layouts)
    attend = PackedAttention(layouts, order, slack=slack)
    return attend, order, attend(0, *qkv(sum(len(layout) for layout in layouts)))


@pytest.mark.parametrize(("slack", "batches"), [(0.0, 1), (0.5, 2), (0.85, 5)])
def test_samples_see_themselves_however_they_are_grouped(slack: float, batches: int) -> None:
    layouts = [lay_out(parts, GRAMMAR) for parts in SAMPLES]
    attend, order, got = pack(layouts, slack)
    q, k, v = (t[torch.from_numpy(order.stream_of_T)] for t in qkv(len(got)))  # in reading order
    wanted, start = torch.zeros_like(q), 0
    for layout in layouts:
        rows = slice(start, start := start + len(layout))
        wanted[rows] = naive(q[rows], k[rows], v[rows], torch.from_numpy(visibility(layout)))
    assert torch.allclose(got[torch.from_numpy(order.stream_of_T)], wanted, atol=1e-6)
    assert len(attend.batches) == batches


def test_similar_lengths_share_a_batch() -> None:
    layouts = [lay_out([Text((5,) * n)], GRAMMAR) for n in (18, 3, 16, 8, 15)]  # 20, 5, 18, 10, 17 tokens
    attend, _, _ = pack(layouts, slack=0.85)
    assert [shape for shape, _ in attend.batches] == [(3, 20), (1, 10), (1, 5)]


def test_stream_order() -> None:
    """Understanding tokens first, then generation tokens, each in reading order."""
    order = StreamOrder.of([lay_out([Text((5,)), Target((1, 2))], GRAMMAR), lay_out([Latents((1, 1))], GRAMMAR)])
    # reading order: bos 5 eos | start L L end | start L end
    assert order.und_T.tolist() == [0, 1, 2, 3, 6, 7, 9]
    assert order.gen_T.tolist() == [4, 5, 8]
    assert order.stream_of_T.tolist() == [0, 1, 2, 3, 7, 8, 4, 5, 9, 6]
