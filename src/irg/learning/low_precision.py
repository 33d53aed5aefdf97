"""bfloat16 training in one CPU process: a low-precision twin of the model computes, float32 weights are trained.

FSDP does this where weights are sharded; it wants every tensor of a layer gathered and knows nothing of Muon. Here a
twin is copied anew before each step and hands its gradients over after it, which costs a few milliseconds for a model
of a size that a CPU can train.
"""

from copy import deepcopy

import torch
from torch import nn

from irg.model.network.unified import UnifiedModel


class Shadow:
    """The bfloat16 twin of a model."""

    def __init__(self, model: UnifiedModel) -> None:
        self.twin = deepcopy(model).to(torch.bfloat16)
        own, twins = dict(model.named_parameters()), dict(self.twin.named_parameters())
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = [(own[name], twin) for name, twin in twins.items()]

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the twin the model's weights."""
        torch._foreach_copy_([twin for _, twin in self.pairs], [weight for weight, _ in self.pairs])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the twin's gradients to the model's, in float32, and clear them."""
        for weight, twin in self.pairs:
            if twin.grad is None:
                continue
            grad = twin.grad.to(weight.dtype)
            weight.grad = grad if weight.grad is None else weight.grad + grad
            twin.grad = None
