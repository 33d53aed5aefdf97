"""bfloat16 training in one CPU process: a low-precision copy of the model computes, float32 weights are trained.

FSDP does this where weights are sharded; it gathers every tensor of a layer and does not work with Muon. Here the
copy is refreshed before each step and its gradients are added to the model's after it, which costs a few milliseconds
for a model of a size that a CPU can train.
"""

from copy import deepcopy

import torch
from torch import nn

from irg.model.network.unified import UnifiedModel


class LowPrecisionCopy:
    """A bfloat16 copy of a model."""

    def __init__(self, model: UnifiedModel) -> None:
        self.model = deepcopy(model).to(torch.bfloat16)
        weights, copies = dict(model.named_parameters()), dict(self.model.named_parameters())
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = [(weights[name], copy) for name, copy in copies.items()]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights."""
        torch._foreach_copy_([copy for _, copy in self.pairs], [weight for weight, _ in self.pairs])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copy's gradients to the model's, in float32, and clear them."""
        for weight, copy in self.pairs:
            if copy.grad is None:
                continue
            grad = copy.grad.to(weight.dtype)
            weight.grad = grad if weight.grad is None else weight.grad + grad
            copy.grad = None
