"""A pipeline's critics, and asking one from inside a program: the request waits, others go on."""

import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from irg.critics import Critic, CriticError, CriticOptions, Review, Verdict, make_critic
from irg.critics.options import SELF
from irg.engine.ops import Operation, Wait
from irg.reasoning.settings import Fallback, named_critics
from irg.results.trajectory import Trajectory


class Critics:
    """The critics of a pipeline by their names in the settings; each is made when it is first needed, and then kept.

    Attributes:
        options: how those work that are made.
    """

    def __init__(self, options: CriticOptions | None = None) -> None:
        self.options = options or CriticOptions()
        self._critics: dict[str, Critic] = {}
        self._lock = threading.Lock()

    def add(self, name: str, critic: Critic) -> None:
        """Let the setting ``critic`` name a critic that is there already."""
        with self._lock:
            self._critics[name] = critic

    def get(self, name: str) -> Critic | None:
        """The critic of a name; None for ``self``.

        Raises:
            ValueError: there is no such critic, or something that it needs is missing.
        """
        if name == SELF:
            return None
        with self._lock:
            if name not in self._critics:
                self._critics[name] = make_critic(name, self.options)
            return self._critics[name]

    def prepare(self, options: Mapping[str, Any]) -> None:
        """Make those that settings name.

        Raises:
            ValueError: as :meth:`get`.
        """
        for name in named_critics(options):
            self.get(name)

    def close(self) -> None:
        """Close all of them; they are made again when they are needed."""
        with self._lock:
            critics, self._critics = self._critics, {}
        for critic in critics.values():
            critic.close()


@dataclass(frozen=True)
class Critique:
    """What a critic said of an image, or why it said nothing. Without a critic the model reflects itself.

    Attributes:
        critic: its name; empty where there is none.
        verdict: None where the model is to reflect itself, or the image stays.
        error: why the critic failed.
        fallback: what is done instead.
        seconds: from question to answer.
        out_of_budget: nobody was asked, since no turn may begin any more.
    """

    critic: str = ""
    verdict: Verdict | None = None
    error: CriticError | None = None
    fallback: Fallback | None = None
    seconds: float = 0.0
    out_of_budget: bool = False

    @property
    def stop(self) -> str:
        """Why the request ends here: ``done``, ``budget``, or ``critic failed``; empty where it goes on."""
        if self.out_of_budget:
            return "budget"
        if self.verdict is not None and self.verdict.done:
            return "done"
        return "critic failed" if self.fallback == "keep" else ""

    def to_dict(self) -> dict[str, Any] | None:
        """As :attr:`irg.results.trajectory.Turn.critic` holds it."""
        if not self.critic:
            return None
        if self.verdict is None:
            kind, why = (self.error.kind, str(self.error)) if self.error else ("outage", "")
            return {"name": self.critic, "failed": kind, "error": why, "fallback": self.fallback}
        found = self.verdict
        said = {"wrong": found.wrong, "change": found.change, "done": found.done, "score": found.score}
        return {"name": self.critic, **said, "cost": found.cost, "cached": found.cached}


NO_CRITIQUE = Critique()
"""Nobody was asked."""
OUT_OF_BUDGET = Critique(out_of_budget=True)


def ask_critic(critic: Critic | None, review: Review, fallback: Fallback) -> Generator[Operation, Any, Critique]:
    """A part of a program: ask a critic, if there is one, and wait for its verdict."""
    if critic is None:
        return NO_CRITIQUE
    begun = time.perf_counter()
    try:
        verdict: Verdict = yield Wait(critic.review(review))
    except CriticError as error:
        return Critique(critic.name, None, error, fallback, time.perf_counter() - begun)
    return Critique(critic.name, verdict, seconds=time.perf_counter() - begun)


def failures(trajectory: Trajectory) -> list[str]:
    """A line for each critic that failed in a trajectory: which, why, and what was done instead."""
    done = {"self": "the model reflected itself", "keep": "the image stays as it is"}
    return [
        f"the critic {by['name']} failed ({by['failed']}: {by['error']}); {done[by['fallback']]}"
        for turn in trajectory.turns
        if (by := turn.critic) is not None and "failed" in by
    ]


def verdicts(trajectory: Trajectory) -> list[str]:
    """A line for each verdict in a trajectory: whose, on which image, and what is wrong there."""
    lines, images = [], 0
    for turn in trajectory.turns:
        if turn.critic is not None and "failed" not in turn.critic:
            found = "nothing is wrong" if turn.critic["done"] else turn.critic["wrong"] or turn.critic["change"]
            lines.append(f"The critic {turn.critic['name']} on image {images}: {found}")
        images += turn.image is not None
    return lines
