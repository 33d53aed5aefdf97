"""The two losses, in literal numbers."""

import math

import pytest
import torch

from irg.learning.objective import FlowTargets, Losses, detail_weights, flow_targets, losses, shift_time, total
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder, token_batch
from irg.model.weights.checkpoint import LoadedModel
from irg.sequence import Latents, Target, Text, lay_out


def test_shift() -> None:
    assert shift_time(torch.tensor([0.0, 0.5, 1.0]), 4.0).tolist() == pytest.approx([0.0, 0.8, 1.0])
    assert shift_time(torch.tensor([0.25]), 1.0).tolist() == [0.25]


def test_noising() -> None:
    """t = sigmoid(n), shifted; x = (1 - t) clean + t noise; the target is noise - clean."""
    clean, noise = torch.tensor([[2.0, 4.0], [2.0, 4.0]]), torch.tensor([[0.0, 8.0], [1.0, -1.0]])
    flow = flow_targets(clean, noise, torch.tensor([0.0, -math.inf]), shift=4.0)
    assert flow.times_G.tolist() == pytest.approx([0.8, 0.0])
    assert flow.noisy_GD.tolist() == [pytest.approx([0.4, 7.2]), [2.0, 4.0]]
    assert flow.velocity_GD[0].tolist() == [-2.0, 4.0]


def test_means_over_tokens() -> None:
    scored = Losses(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([[1.0, 3.0], [4.0, 0.0]]))
    loss, ce, mse = total(scored, ce_weight=0.5, mse_weight=2.0)
    assert (ce.item(), mse.item(), loss.item()) == (3.0, 2.0, 5.5)


def test_weighted_mean() -> None:
    scored = Losses(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(0, 2))
    _, ce, mse = total(scored, ce_weights_L=torch.tensor([1.0, 1.0, 2.0]))
    assert (ce.item(), mse.item()) == (3.75, 0.0)


def test_detail_weights() -> None:
    """Two images of two tokens, 2 x 2 latents of one channel: root variance 0 and 2 in one, 1 and 1 in the other."""
    clean = torch.tensor([[5.0, 5, 5, 5], [-2, 2, -2, 2], [0, 2, 0, 2], [9, 7, 7, 9]])
    images = torch.tensor([3, 3, 8, 8])
    assert detail_weights(clean, images, 2, 3.0).tolist() == pytest.approx([0.25, 1.75, 1.0, 1.0])  # 1 and 7, by 4
    assert detail_weights(clean, images, 2, 0.0).tolist() == [1.0] * 4
    assert detail_weights(torch.zeros(2, 4), torch.tensor([0, 0]), 2, 3.0).tolist() == [1.0, 1.0]
    scored = Losses(torch.zeros(0), torch.tensor([[2.0], [4.0]]))
    assert total(scored, mse_weights_M=torch.tensor([0.25, 1.75]))[2].item() == (0.5 + 7.0) / 2


def test_nothing_to_score_is_no_loss() -> None:
    assert [t.item() for t in total(Losses(torch.zeros(0), torch.zeros(0, 3)))] == [0.0, 0.0, 0.0]


def test_only_texts_with_loss_and_targets_are_scored(tiny_loaded: LoadedModel) -> None:
    """Rows picked by the layout: n ids give n + 1 loss tokens, a target of 1 x 2 tokens two rows of errors."""
    model = tiny_loaded.model
    parts = [Text((5, 6)), Latents((1, 1)), Text((7, 8, 9), loss=True), Target((1, 2))]
    layout = lay_out(parts, model.config.grammar)
    order = StreamOrder.of([layout])
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 48, generator=generator) for _ in range(2))
    flow: FlowTargets = flow_targets(clean, noise, torch.tensor([-math.inf, 0.3, 0.3]), 1.0)
    batch = token_batch([layout], order, None, flow.noisy_GD, flow.times_G)
    labels = torch.from_numpy(layout.labels_T[order.und_T])
    rows = (labels != -100).nonzero().flatten()
    attend = PackedAttention([layout], order)
    with torch.no_grad():
        scored = losses(model, batch, attend, flow.velocity_GD, rows, labels[rows], torch.tensor([1, 2]))
        hidden, generated = model(batch, attend)
    assert labels[rows].tolist() == [7, 8, 9, 257]
    assert generated is not None
    log_probability = model.logits(hidden[rows]).log_softmax(-1)[range(4), labels[rows]]
    assert torch.allclose(scored.ce_L, -log_probability, atol=1e-5)
    error = (model.llm2vae(generated[1:]) - (noise - clean)[1:]) ** 2
    assert torch.allclose(scored.mse_MD, error, atol=1e-5)


def test_text_alone_has_no_flow_loss(tiny_loaded: LoadedModel) -> None:
    model = tiny_loaded.model
    layout = lay_out([Text((7,), loss=True)], model.config.grammar)
    order = StreamOrder.of([layout])
    batch = token_batch([layout], order)
    none = torch.zeros(0, dtype=torch.int64)
    scored = losses(model, batch, PackedAttention([layout], order), None, torch.tensor([0, 1]), torch.tensor([7, 257]), none)  # fmt: skip # noqa: E501
    assert scored.ce_L.shape == (2,) and scored.mse_MD.shape == (0, 48)
    loss, _, mse = total(scored)
    loss.backward()
    assert mse.item() == 0.0
    model.zero_grad()
