"""A stand-in for CUDA graphs on a CPU: records operations, and carries them out again on the very same tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    """What was computed in host memory beside tensors is not computed again, as in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Compute all results anew, each into its place."""
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            for kept, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():  # a view is there already
                    kept.copy_(new)

    def pool(self) -> str:
        """Graphs share their memory by this."""
        return "pool"


@contextmanager
def recording(graph: RecordedGraph, pool: str | None = None, capture_error_mode: str = "") -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with graph:
        yield
