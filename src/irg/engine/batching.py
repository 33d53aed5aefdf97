"""Forwards over a batch of requests, in which an error ends only the requests that cannot run."""

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from irg.engine.request import Request

T = TypeVar("T")


class Batches:
    """Runs one kind of forward. A batch that fails is halved until a request fails alone; it ends with that error."""

    def __init__(self) -> None:
        self.max_requests = sys.maxsize  # of a forward; lowered when memory runs out

    def reset(self) -> None:
        """Try full batches again."""
        self.max_requests = sys.maxsize

    def run(
        self, requests: Sequence[Request], forward: Callable[[list[Request]], T]
    ) -> Iterator[tuple[list[Request], T]]:
        """Batches of the requests that could run, in order, each with ``forward``'s result.

        ``forward`` must leave everything as it was when it raises. An error in the loop over these results ends the
        requests of its batch when the loop's body runs under :func:`fail_on_error`.
        """
        n = self.max_requests
        pending = [list(requests[i : i + n]) for i in range(0, len(requests), n)]
        while pending:
            batch = [request for request in pending.pop(0) if request.live]
            if not batch:
                continue
            try:
                result = forward(batch)
            except Exception as error:
                clear_frames(error)
                half = len(batch) // 2
                if not half:
                    batch[0].fail(error)
                    continue
                if is_out_of_memory(error):
                    self.max_requests = min(self.max_requests, half)
                pending[:0] = [batch[:half], batch[half:]]
            else:
                yield batch, result


@contextmanager
def fail_on_error(*requests: Request) -> Iterator[None]:
    """An exception inside ends these requests, and nothing else."""
    try:
        yield
    except Exception as error:
        clear_frames(error)
        for request in requests:
            request.fail(error)


def require_finite(tensor: Tensor, what: str) -> None:
    """A clear error instead of a black image or a text without sense.

    Raises:
        ValueError: the tensor has NaN or infinite numbers.
    """
    if not bool(tensor.isfinite().all()):
        raise not_finite(what)


def not_finite(what: str) -> ValueError:
    """The error about NaN or infinite numbers in a result."""
    return ValueError(
        f"{what} has NaN or infinite numbers: so have the model's weights (irg model info looks), or the dtype is "
        "too narrow for them"
    )


def clear_frames(error: BaseException) -> None:
    """Drop the local variables (tensors on a device) that an exception's traceback keeps alive."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__context__


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
