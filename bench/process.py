"""What a process and its machine are: peak memory, the processor's name (Linux; elsewhere what can be told)."""

import ctypes
import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def peak_memory() -> Iterator[Callable[[], int | None]]:
    """Peak of the process's resident memory inside the block, above what it had before (Linux; None elsewhere)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what the other side freed would be reused unseen
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, peak = _memory("VmRSS"), list[int | None]()
    yield lambda: None if before is None or peak[0] is None else max(0, peak[0] - before)
    peak.append(_memory("VmHWM"))


def _memory(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":")), None)


def processor() -> str:
    """The processor's name."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.machine()
