"""What a whole trajectory is worth: the reward of its last image, and what its later images repaired and damaged.

With the rewards q_0 (of the first image, which siblings share) to q_T, gains max(0, q_t - q_{t-1}) and losses
max(0, q_{t-1} - q_t), a trajectory's return is

    q_T + gain x (sum of gains) + further_gains x (sum of gains - the largest) - damage x (sum of losses)
        - false_stop, if the model said that it was done and q_T is below ``correct``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from irg.learning.rl.recipe import Credit
from irg.learning.rl.rewards import Judged


@dataclass(frozen=True)
class Outcome:
    """What became of one sibling.

    Attributes:
        rewards: of the first image and of every later one; None where a reward failed.
        malformed: of every text.
        done: the model said that nothing was left to improve.
        last: what the rewards said of the last image.
    """

    rewards: tuple[float | None, ...]
    malformed: tuple[bool, ...]
    done: bool
    last: Judged

    def value(self, how: Credit) -> float | None:
        """The return; None where a reward failed."""
        known = [reward for reward in self.rewards if reward is not None]
        return trajectory_return(known, self.done, how) if len(known) == len(self.rewards) else None

    def judged(self, how: Credit) -> Judged:
        """The last image's scores with the return in place of their sum."""
        return Judged(self.value(how), self.last.scores, self.last.failure)


def trajectory_return(rewards: Sequence[float], done: bool, how: Credit) -> float:
    """The return of a trajectory whose images have these rewards, the first image's first (see above)."""
    steps = [after - before for before, after in zip(rewards, rewards[1:], strict=False)]
    gains, losses = [max(0.0, step) for step in steps], [max(0.0, -step) for step in steps]
    value = rewards[-1] + how.gain * sum(gains) - how.damage * sum(losses)
    value += how.further_gains * (sum(gains) - max(gains, default=0.0))
    return value - how.false_stop if done and rewards[-1] < how.correct else value


def outcome_figures(outcomes: Sequence[Outcome], how: Credit) -> dict[str, float]:
    """What a log says of trajectories, those left out whose reward failed.

    ``first`` and ``last``: mean rewards of the first and the last image; ``repair``: share of wrong first images whose
    last one is right; ``damage``: share of right ones whose last one is wrong (left out where there is no such first
    image); ``done``: share that the model ended itself; ``false_stop``: share that it ended on a wrong image.
    """
    scored = [outcome for outcome in outcomes if outcome.value(how) is not None]
    pairs = [(one.rewards[0] or 0.0, one.rewards[-1] or 0.0) for one in scored]
    if not pairs:
        return {}
    wrong = [last >= how.correct for first, last in pairs if first < how.correct]
    right = [last < how.correct for first, last in pairs if first >= how.correct]
    figures: dict[str, list[float] | list[bool]] = {
        "first": [first for first, _ in pairs],
        "last": [last for _, last in pairs],
        "repair": wrong,
        "damage": right,
        "done": [one.done for one in scored],
        "false_stop": [one.done and last < how.correct for one, (_, last) in zip(scored, pairs, strict=True)],
    }
    return {name: sum(values) / len(values) for name, values in figures.items() if values}


def chosen_groups(first: Sequence[Judged], how: Credit) -> list[int]:
    """The numbers of the first images that are gone on from: those with a reward, of which at most ``right_groups``
    are right already, for they teach little but to stop."""
    chosen, right = [], 0
    for number, judged in enumerate(first):
        if judged.total is None:
            continue
        right += judged.total >= how.correct
        if judged.total < how.correct or right <= how.right_groups:
            chosen.append(number)
    return chosen
