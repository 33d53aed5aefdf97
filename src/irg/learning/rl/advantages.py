"""From the rewards of a group of texts (all of one prompt) to their advantages.

RLOO (Ahmadian et al. 2024): reward minus the mean of the others. GRPO (Shao et al. 2024): reward minus the mean of all.
A reward of None is masked: it counts nowhere.
"""

from collections.abc import Sequence

import numpy as np

from irg.learning.rl.recipe import Advantage

Rewards = Sequence[float | None]


def advantages(
    groups: Sequence[Rewards], malformed: Sequence[Sequence[bool]], how: Advantage
) -> list[list[float | None]]:
    """Advantages of groups of texts; None where the reward is, and in a group with fewer than two rewards.

    A malformed text ends with min(advantage, 0) - ``how.malformed_penalty``, after scaling, so that the others'
    advantages do not depend on the penalty.
    """
    centered = [_centered(rewards, how.kind) for rewards in groups]
    known = np.array([value for group in centered for value in group if value is not None])
    step_std = float(known.std()) if len(known) else 0.0
    found = []
    for group, wrong in zip(centered, malformed, strict=True):
        scale = 1.0
        if how.scale != "none":
            own = np.array([value for value in group if value is not None])
            std = step_std if how.scale == "step" else float(own.std()) if len(own) else 0.0
            scale = 1.0 / max(std, how.least_std)
        found.append([_final(value, scale, bad, how) for value, bad in zip(group, wrong, strict=True)])
    return found


def _centered(rewards: Rewards, kind: str) -> list[float | None]:
    known = np.array([reward for reward in rewards if reward is not None], np.float64)
    n = len(known)
    if n < 2:
        return [None] * len(rewards)
    factor = n / (n - 1) if kind == "rloo" else 1.0  # r - mean of the others = (r - mean of all) n / (n - 1)
    mean = known.mean() if known.min() != known.max() else known[0]  # equal rewards: zero to the bit
    return [None if reward is None else factor * float(reward - mean) for reward in rewards]


def _final(value: float | None, scale: float, malformed: bool, how: Advantage) -> float | None:
    if value is None:
        return None
    value *= scale
    if how.clip:
        value = max(-how.clip, min(how.clip, value))
    return min(value, 0.0) - how.malformed_penalty if malformed else value
