"""The model that a run started from, which the policy is held against."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from irg.learning import sampling
from irg.learning.parallel import Ranks
from irg.model.network.lora import LoraLinear
from irg.model.network.unified import UnifiedModel


class Reference:
    """A model as it was when this was made. Weights that aren't trained are shared with it; where adapters are trained,
    the reference is the same model without them and takes no memory."""

    def __init__(self, model: UnifiedModel, ranks: Ranks, dtype: torch.dtype) -> None:
        self._adapters = [module for module in model.modules() if isinstance(module, LoraLinear)]
        self._model = model
        if not self._adapters:
            start = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
            copied = sampling.averaged_model(model, start, None, ranks, dtype, everywhere=True)
            assert copied is not None
            self._model = copied

    @contextmanager
    def model(self) -> Iterator[UnifiedModel]:
        """The model, for forwards without gradients."""
        scales = [adapter.scale for adapter in self._adapters]
        for adapter in self._adapters:
            adapter.scale = 0.0
        try:
            yield self._model
        finally:
            for adapter, scale in zip(self._adapters, scales, strict=True):
                adapter.scale = scale
