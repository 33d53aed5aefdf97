"""Activation checkpointing: what selective checkpointing keeps is not computed again, compiled or not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from irg.learning import parallel
from irg.learning.data.packing import Pack, UnreadImages
from irg.model.network.flex_attention import KEEPS_COMPILED
from irg.model.network.token_batch import TokenBatch

RUNS = {"attention": 0}


@torch.library.custom_op("irg_test::attention", mutates_args=())
def attention(x: Tensor) -> Tensor:
    """Stands for flex attention, which has no backward on a CPU; counts how often it runs."""
    RUNS["attention"] += 1
    return x.sin()


@torch.library.custom_op("irg_test::attention_backward", mutates_args=())
def attention_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Another operator, so that nothing is left of which the compiler would make C++, which takes twenty seconds."""
    return grad * x.cos()


attention.register_fake(torch.empty_like)
attention_backward.register_fake(lambda grad, x: torch.empty_like(x))


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


attention.register_autograd(lambda ctx, grad: attention_backward(grad, ctx.saved_tensors[0]), setup_context=_save)


class Layer(nn.Module):
    def __init__(self, attend: Any) -> None:
        super().__init__()
        self.before, self.after, self.attend = nn.Linear(8, 8), nn.Linear(8, 8), attend

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attend(self.before(x)))


@pytest.mark.skipif(not KEEPS_COMPILED, reason="needs a PyTorch that shows compiled functions to checkpointing")
@pytest.mark.parametrize(("how", "runs"), [("none", 1), ("full", 2), ("selective", 1)])
def test_compiled_attention_is_kept(how: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(attention, options={"wrap_inductor_compiled_regions": True})
    layer = Layer(compiled)
    monkeypatch.setattr(parallel, "blocks", lambda model: [layer])
    parallel.recompute(None, how)  # type: ignore[arg-type]
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    RUNS["attention"] = 0
    layer(x).sum().backward()
    assert RUNS["attention"] == runs
    wanted = torch.autograd.grad(Layer.forward(layer, x).sum(), list(layer.parameters()))
    for parameter, grad in zip(layer.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, grad)  # type: ignore[arg-type]


def test_all_of_a_pack_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors, those of its batch, and images that the autoencoder has yet to read."""
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.numel()) or self)
    one, two = torch.zeros(1), torch.zeros(2)
    pack = Pack(TokenBatch(two, two), None, None, one, one, one, one, unread=UnreadImages([torch.zeros(3)], [0]))  # type: ignore[arg-type]
    same = pack.pinned()
    assert sorted(pinned) == [1, 1, 1, 1, 2, 2, 3] and same.unread is not None and same.unread.of_block == [0]
