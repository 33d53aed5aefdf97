"""Shared-context attention against the dense reference, forward and backward."""

import pytest
import torch
from torch import Tensor

from irg.learning.modes import MODES, EncodedImage, EncodedTrajectory, write
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.network.token_batch import StreamOrder
from irg.sequence import Grammar, Latents, Patches, SpecialTokens, Target, Text, TokenLayout, lay_out
from irg.sequence.parts import Part, noised_copies

GRAMMAR = Grammar(SpecialTokens(0, 1, 2, 3), latent_side=8, patch_side=8)


def modes(copies: int) -> list[TokenLayout]:
    """One sample of every mode, targets noised ``copies`` times, reflections of another length."""
    image = EncodedImage(0, (2, 3), (2, 2))
    one = EncodedTrajectory((9,), (5, 6), (7, 8, 9), image, how_to_think=(4,), how_to_improve=(4, 5))
    two = EncodedTrajectory((9,), (5, 6), (7, 8), image, (6, 6, 6), image, (4,), (4, 5))
    samples = [write(mode, two if mode.startswith("improving") else one) for mode in MODES]
    return [lay_out(noised_copies(sample, copies), GRAMMAR) for sample in samples]


ODD: list[list[Part]] = [
    [Target((2, 2)), Target((2, 2), noise=1)],  # no context at all
    [Text((5,)), Target((1, 2)), Target((3, 3))],  # targets of unequal sizes
    [Text((5, 6)), Target((2, 2)), Latents((2, 2)), Patches((1, 3)), Text((7,), loss=True), Target((2, 2), noise=1)],
    [Text((8, 9, 9, 9)), Patches((2, 2)), Text((4,), loss=True)],
    [Text((5,)), Target((2, 2)), Text((7, 7)), Target((2, 2))],  # the second target sees more than the first
]
SIBLINGS: list[list[Part]] = [
    [Text((5, 6)), *(Text((7,) * n, loss=True, sibling=True) for n in (3, 1, 4))],
    [Text((5, 6, 6)), *(Text((7,) * n, loss=True, sibling=True) for n in (4, 4, 4))],
    [Latents((2, 2)), Text((5,), sibling=True), Text((6,)), Target((2, 1)), Text((8, 8), sibling=True)],
    [Text((1, 2), sibling=True)],  # no context at all
]


def run(attend: PackedAttention | SharedPrefixAttention, tokens: int, kv_heads: int) -> list[Tensor]:
    """Output, then the gradients of q, k and v."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = [torch.randn(tokens, heads, 8, generator=generator).requires_grad_() for heads in (4, kv_heads, kv_heads)]
    out = attend(0, *qkv)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return [out.detach(), *(x.grad for x in qkv if x.grad is not None)]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("slack", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(
    "layouts", [modes(1), modes(3), *([lay_out(parts, GRAMMAR) for parts in some] for some in (ODD, SIBLINGS))]
)
def test_equals_dense(layouts: list[TokenLayout], slack: float, kv_heads: int) -> None:
    order, tokens = StreamOrder.of(layouts), sum(map(len, layouts))
    shared = run(SharedPrefixAttention(layouts, order, slack=slack), tokens, kv_heads)
    dense = run(PackedAttention(layouts, order), tokens, kv_heads)
    assert len(shared) == len(dense) == 4
    for got, wanted in zip(shared, dense, strict=True):
        assert torch.allclose(got, wanted, atol=2e-6)


def test_alike_samples_stand_side_by_side() -> None:
    """Equally many noised images of one size, and contexts of similar length."""
    samples: list[list[Part]] = [
        [Text((5,) * words), *(Target((2, 2), noise=i) for i in range(copies))]
        for words, copies in ((18, 2), (16, 2), (8, 2), (18, 1))
    ]
    layouts = [lay_out(parts, GRAMMAR) for parts in samples]
    attend = SharedPrefixAttention(layouts, StreamOrder.of(layouts))
    assert [(g.rows, g.context, g.leaves, g.block) for g in attend.groups] == [
        (2, 20, 2, 6),
        (1, 10, 2, 6),
        (1, 20, 1, 6),
    ]


def test_sibling_texts_of_similar_length_share_a_padded_group() -> None:
    layouts = [lay_out(parts, GRAMMAR) for parts in SIBLINGS[:2]]
    (group,) = SharedPrefixAttention(layouts, StreamOrder.of(layouts)).groups
    assert (group.rows, group.context, group.leaves, group.block) == (2, 5, 3, 6)
