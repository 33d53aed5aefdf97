"""Flex attention against the dense reference, on a pack of all six modes."""

import pytest
import torch
from torch import Tensor

from irg.learning.modes import MODES, EncodedImage, EncodedTrajectory, write
from irg.model.network.flex_attention import FlexAttention
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder
from irg.sequence.layout import TokenLayout, lay_out, visibility
from irg.sequence.parts import Text, noised_copies
from irg.sequence.special import Grammar, SpecialTokens

GRAMMAR = Grammar(SpecialTokens(0, 1, 2, 3), latent_side=8, patch_side=8)


def six_modes() -> list[TokenLayout]:
    """One sample of every mode (and BAGEL's two), targets noised twice; and texts that continue one prefix."""
    image = EncodedImage(0, (2, 3), (2, 2))
    one = EncodedTrajectory((9,), (5, 6), (7, 8, 9), image, how_to_think=(4,), how_to_improve=(4, 5))
    two = EncodedTrajectory((9,), (5, 6), (7, 8), image, (6, 6, 6), image, (4,), (4, 5))
    samples = [write(mode, two if mode.startswith("improving") else one) for mode in MODES]
    siblings = [Text((5, 6)), Text((7, 8), sibling=True), Text((9,), sibling=True)]
    return [lay_out(noised_copies(sample, 2), GRAMMAR) for sample in [*samples, siblings]]


def heads(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, h, 8, generator=generator, requires_grad=True) for h in (4, 2, 2))
    return q, k, v


def test_flex_is_dense() -> None:
    """Same results (flex attention has no backward on a CPU)."""
    layouts = six_modes()
    order = StreamOrder.of(layouts)
    q, k, v = (x.detach() for x in heads(sum(map(len, layouts))))
    dense, flex = (attend(layouts, order)(0, q, k, v) for attend in (PackedAttention, FlexAttention))
    assert torch.allclose(dense, flex, atol=1e-5)


def test_masks_of_a_real_pack() -> None:
    """The tile plan's rule is the grammar's, sample by sample, and nothing crosses samples."""
    layouts = six_modes()
    order = StreamOrder.of(layouts)
    mask = FlexAttention(layouts, order).mask
    tokens = sum(map(len, layouts))
    q, k = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    seen = mask.mask_mod(torch.zeros(()), torch.zeros(()), q, k)
    stream = torch.from_numpy(order.stream_of_T)
    reading = seen[stream][:, stream]
    wanted = torch.block_diag(*(torch.from_numpy(visibility(layout)).int() for layout in layouts)).bool()
    assert torch.equal(reading, wanted)


def test_the_mask_comes_with_the_move_to_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no layer makes another."""
    layouts = six_modes()
    attend = FlexAttention(layouts, StreamOrder.of(layouts))
    assert attend._mask is None  # in the thread that makes packs
    attend = attend.to("cpu")
    monkeypatch.setattr(FlexAttention, "_made_mask", lambda self: pytest.fail("made in a layer"))
    attend(0, *(x.detach() for x in heads(sum(map(len, layouts)))))


@pytest.mark.gpu
def test_flex_on_a_gpu() -> None:
    layouts = six_modes()
    order = StreamOrder.of(layouts)
    parts = [x.detach().cuda() for x in heads(sum(map(len, layouts)))]
    # kernels want heads of at least 16
    q, k, v = (torch.nn.functional.pad(x, (0, 8)).requires_grad_() for x in parts)
    results, grads = [], []
    for attend in (PackedAttention(layouts, order, device="cuda"), FlexAttention(layouts, order, "cuda")):
        results.append(attend(0, q, k, v))
        grads.append(torch.autograd.grad(results[-1].square().sum(), (q, k, v)))
    assert torch.allclose(results[0], results[1], atol=1e-3)
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(*grads, strict=True))
