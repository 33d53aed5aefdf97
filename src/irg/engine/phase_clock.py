"""Seconds by phase of the engine's work, on a GPU those of the GPU: a launch returns long before it is carried out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Any

import torch


class PhaseClock:
    """Adds up. Nothing waits for the device before :attr:`seconds` is read, which any thread may do."""

    def __init__(self, phases: Sequence[str], device: torch.device, events: Any = None) -> None:
        """``events``: the module that has them: ``torch.cuda`` on CUDA, else none; tests give one of their own."""
        self._seconds = dict.fromkeys(phases, 0.0)
        self._events = torch.cuda if device.type == "cuda" else events
        self._open: list[tuple[str, Any, Any]] = []  # intervals whose ends the device may not have reached
        self._lock = Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, so far."""
        self._settle(wait=True)
        return dict(self._seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around everything that belongs to a phase."""
        started = perf_counter()
        begin = self._now()
        yield
        if begin is None:
            self._seconds[name] += perf_counter() - started
        else:
            self._open.append((name, begin, self._now()))
            self._settle(wait=False)

    def _now(self) -> Any:
        """An event behind all that has been launched; None without events."""
        if self._events is None:
            return None
        event = self._events.Event(enable_timing=True)
        event.record()
        return event

    def _settle(self, wait: bool) -> None:
        with self._lock:
            while self._open and (wait or self._open[0][2].query()):
                name, begin, end = self._open.pop(0)
                if wait:
                    end.synchronize()
                self._seconds[name] += begin.elapsed_time(end) / 1000
