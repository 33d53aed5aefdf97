"""Seconds by phase, with a device's events."""

import pytest
import torch

from irg.engine.phase_clock import PhaseClock


class Device:
    """Its time in milliseconds, and how far it has come with what was launched."""

    launched = 0.0
    done = 0.0

    def Event(self, enable_timing: bool) -> "Event":
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, -1.0

    def record(self) -> None:
        self.at = self.device.launched

    def query(self) -> bool:
        return self.device.done >= self.at

    def synchronize(self) -> None:
        self.device.done = max(self.device.done, self.at)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query() and end.query(), "read before the device was there"
        return end.at - self.at


def test_seconds_are_the_devices_and_reading_waits() -> None:
    device = Device()
    clock = PhaseClock(("decode", "vae"), torch.device("cpu"), device)
    for name, milliseconds in (("decode", 200.0), ("vae", 3000.0), ("decode", 50.0)):
        with clock.phase(name):
            device.launched += milliseconds
    assert device.done == 0, "launching waits for nothing"
    assert clock.seconds == {"decode": pytest.approx(0.25), "vae": pytest.approx(3.0)} and device.done == 3250


def test_intervals_that_are_over_are_not_kept() -> None:
    device = Device()
    clock = PhaseClock(("decode",), torch.device("cpu"), device)
    for _ in range(100):
        with clock.phase("decode"):
            device.launched += 10
        device.done = device.launched - 5
    assert len(clock._open) <= 2 and clock.seconds["decode"] == pytest.approx(1.0)
