"""When a run by reward is given up: rewards that fail, texts that lose their form, a policy that collapses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from irg.learning.rl.recipe import Limits

_MEANING = {
    "reward_failed": "of all texts have a reward that failed",
    "malformed": "of all texts are malformed",
    "kl": "nats a token from the model that the run started from",
    "entropy": "nats of entropy a token",
    "equal_groups": "of all groups have equal rewards",
}


@dataclass
class LimitGuard:
    """Counts for each limit in how many steps in a row it was passed. Its counts are part of the checkpoint."""

    limits: Limits
    passed: dict[str, int] = field(default_factory=dict)

    def check(self, record: Mapping[str, float], why: str = "") -> None:
        """Look at a step's figures; those that are missing pass no limit.

        Args:
            why: the reason of a failed reward, for the message.

        Raises:
            ValueError: a limit was passed in too many steps in a row.
        """
        limits = self.limits
        bounds = {"reward_failed": limits.reward_failures}
        bounds |= {name: getattr(limits, name) for name in ("malformed", "kl", "equal_groups")}
        beyond = {name: bool(bound) and record.get(name, 0.0) > bound for name, bound in bounds.items()}
        bounds["entropy"] = limits.entropy
        beyond["entropy"] = bool(limits.entropy) and record.get("entropy", limits.entropy) < limits.entropy
        for name, is_beyond in beyond.items():
            self.passed[name] = self.passed.get(name, 0) + 1 if is_beyond else 0
            if self.passed[name] >= limits.patience:
                field_name = "reward_failures" if name == "reward_failed" else name
                reason = f" (the last: {why})" if name == "reward_failed" and why else ""
                raise ValueError(
                    f"{record[name]:.3g} {_MEANING[name]}{reason}, and limits.{field_name} is {bounds[name]:g}: passed "
                    f"in {self.passed[name]} steps in a row; the checkpoints before are untouched"
                )

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return dict(self.passed)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.passed = dict(state)
