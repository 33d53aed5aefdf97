"""Rewards: what a trajectory is worth, as plain callables, and their weighted sum.

A plug-in of the group ``irg.rewards`` is a callable ``(prompt, trajectory) -> number or Score``, or a frozen dataclass
whose instances are such callables and whose fields are the recipe's ``options`` (``docs/rl.md`` has both).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from irg import recipes, registry
from irg.learning.rl.prompts import Prompt
from irg.results.trajectory import Trajectory


@dataclass(frozen=True)
class Score:
    """What a reward says of one trajectory.

    Attributes:
        value: the more the better; finite.
        parts: what it is made of, for the log.
        reasons: for people.
        malformed: the text is not of the form that it should have.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    reasons: str = ""
    malformed: bool = False


Reward = Callable[[Prompt, Trajectory], float | Score]


@dataclass(frozen=True)
class RewardTerm:
    """A reward of the recipe: its plug-in's name, its weight in the sum, its options."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be a finite number, got {self.weight}")

    def load(self) -> Reward:
        """The callable.

        Raises:
            ValueError: there is no such plug-in, or it has no such options.
        """
        found = registry.load(registry.REWARDS, self.name)
        if isinstance(found, type) and is_dataclass(found):
            made: Reward = recipes.build(found, self.options, f"rewards.{self.name}.options")  # type: ignore[assignment]
            return made
        if self.options:
            raise ValueError(f"rewards.{self.name}: it is a plain function and takes no options")
        plain: Reward = found
        return plain


@dataclass(frozen=True)
class Judged:
    """All rewards of one trajectory. ``total`` is None where one of them failed, ``failure`` then says why."""

    total: float | None
    scores: Mapping[str, Score]
    failure: str = ""

    @property
    def malformed(self) -> bool:
        """Whether a reward found the text malformed."""
        return any(score.malformed for score in self.scores.values())

    def reasons(self) -> dict[str, str]:
        """Why, by name, where a reward says so."""
        return {name: score.reasons for name, score in self.scores.items() if score.reasons}

    def figures(self) -> dict[str, float]:
        """What the log says, by name."""
        found = {f"reward/{name}": score.value for name, score in self.scores.items()}
        for name, score in self.scores.items():
            found |= {f"reward/{name}/{part}": value for part, value in score.parts.items()}
        return found


class Rewards:
    """The rewards of a run, and their weighted sum."""

    def __init__(self, terms: Sequence[RewardTerm]) -> None:
        self.terms = {term.name: (term.weight, term.load()) for term in terms}

    def prepare(self) -> None:
        """Let rewards load what they need, before a run begins.

        Raises:
            ValueError: something is missing.
        """
        for _, reward in self.terms.values():
            if hasattr(reward, "prepare"):
                reward.prepare()

    def judge(self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Judged]:
        """Score trajectories, each with its prompt. A reward that raises, or gives what is no finite number, has failed
        for that trajectory; nothing is raised here."""
        by_name = {name: _scores(reward, prompts, trajectories) for name, (_, reward) in self.terms.items()}
        return [self._sum({name: scores[i] for name, scores in by_name.items()}) for i in range(len(trajectories))]

    def _sum(self, results: Mapping[str, Score | Exception]) -> Judged:
        scores = {name: score for name, score in results.items() if isinstance(score, Score)}
        failed = [f"{name}: {_said(error)}" for name, error in results.items() if isinstance(error, Exception)]
        if failed:
            return Judged(None, scores, "; ".join(failed))
        return Judged(sum(self.terms[name][0] * score.value for name, score in scores.items()), scores)

    def close(self) -> None:
        """Let rewards end what they hold open (connections, threads)."""
        for _, reward in self.terms.values():
            if hasattr(reward, "close"):
                reward.close()


def _scores(reward: Any, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Score | Exception]:
    if hasattr(reward, "scores"):
        try:
            found = list(reward.scores(prompts, trajectories))
        except Exception as error:
            return [error] * len(trajectories)
        if len(found) != len(trajectories):
            wrong = ValueError(f"{len(found)} scores for {len(trajectories)} trajectories")
            return [wrong] * len(trajectories)
        return [_checked(value) for value in found]
    return [_one(reward, prompt, trajectory) for prompt, trajectory in zip(prompts, trajectories, strict=True)]


def _one(reward: Reward, prompt: Prompt, trajectory: Trajectory) -> Score | Exception:
    try:
        return _checked(reward(prompt, trajectory))
    except Exception as error:
        return error


def _checked(value: Any) -> Score | Exception:
    """A reward's result as a score, or why it is none."""
    if isinstance(value, Exception):
        return value
    score = value if isinstance(value, Score) else None
    number = score.value if score else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return ValueError(f"{number!r} is no finite number")
    return score or Score(float(number))


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
