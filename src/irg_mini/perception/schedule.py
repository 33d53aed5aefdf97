"""The schedule of a small training run: warm-up, constant, linear cool-down, over a number of steps or of minutes."""

import time
from dataclasses import dataclass, field

TIMED_STEPS = 20
"""With a budget in minutes, the number of steps is fixed once this many have been timed."""


@dataclass
class Schedule:
    """A learning-rate schedule whose length may be given as a wall-clock budget."""

    steps: int
    minutes: float | None = None
    warmup: int = 30
    cooldown: float = 0.5
    """Last share of the steps in which the rate falls linearly to zero."""
    fixed: bool = field(default=False)
    _start: float = field(default=0.0, repr=False)
    _first: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown is a share between 0 and 1, not {self.cooldown}")
        self.fixed = self.fixed or self.minutes is None

    def start(self, step: int) -> None:
        """The clock runs from here; ``step`` is where the run begins."""
        self._start, self._first = time.time(), step

    @property
    def seconds(self) -> float:
        """Since ``start``."""
        return round(time.time() - self._start, 1)

    def factor(self, step: int) -> float:
        """Share of the full rate at a step (counted from 0)."""
        cooling = max(1, round(self.cooldown * self.steps))
        return max(0.0, min(1.0, (step + 1) / max(1, self.warmup), (self.steps - step) / cooling))

    def done(self, step: int) -> bool:
        """Whether ``step`` steps are all; also fixes the number of steps when the budget is in minutes."""
        timed = step - self._first
        if not self.fixed and timed >= TIMED_STEPS:
            assert self.minutes is not None
            left = self.minutes * 60 - (time.time() - self._start)
            self.steps = step + max(1, int(left / (time.time() - self._start) * timed))
            self.fixed = True
        return self.fixed and step >= self.steps
