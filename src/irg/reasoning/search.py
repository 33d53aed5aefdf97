"""Search at test time: several candidates of a request, scores of their images, and which image is kept.

Candidates are ordinary requests; the first has the request's own seed, so that one candidate is the plain run.
``docs/search.md`` has the rules.
"""

import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from irg.critics import Review
from irg.engine.ops import Program
from irg.randomness import numpy_generator
from irg.reasoning.protocols.base import Job
from irg.reasoning.selectors import Selector
from irg.reasoning.settings import Settings
from irg.results.search import Candidate, Search, best_image
from irg.results.trajectory import Trajectory, Turn

_STREAM = 17_04  # of the candidates' seeds


def candidate_seed(seed: int, index: int) -> int:
    """The seed of a request's candidate; the first has the request's own."""
    return seed if index == 0 else int(numpy_generator(seed, _STREAM, index).integers(2**32))


def is_search(settings: Settings) -> bool:
    """Whether a request is more than one plain run."""
    limited = settings.budget_seconds is not None or settings.budget_images is not None
    return settings.candidates > 1 or settings.keep_best or limited


@dataclass
class Attempt:
    """A candidate while it runs. It may draw ``most_images``."""

    job: Job
    most_images: float = math.inf
    ended: bool = False
    trajectory: Trajectory | None = None
    error: Exception | None = None
    scores: list["Future[float] | None"] = field(default_factory=list)


class Searching:
    """The search of one request, while it runs. A request without a search is one with a single candidate."""

    def __init__(self, job: Job, selector: Selector | None) -> None:
        self.settings, self.selector = job.settings, selector
        self.attempts = []
        for k, most in enumerate(_shares(job.settings)):
            own = replace(job, seed=candidate_seed(job.seed, k), may_begin=partial(self.may_begin, k))
            self.attempts.append(Attempt(own, most))
        self.notes: list[str] = []
        # the turns of given images come first
        self._first = len(job.images) if job.task in ("improve", "edit") else 0
        self._started: float | None = None

    # ---- while it runs

    def may_begin(self, candidate: int, turn: int) -> bool:
        """Whether the budget lets a candidate draw the image of a turn. The first candidate always draws one."""
        now, drawn = time.monotonic(), turn - self._first
        if self._started is None:
            self._started = now
        if candidate == 0 and drawn <= 0:
            return True
        limit = self.settings.budget_seconds
        if limit is not None and now - self._started >= limit:
            self._note(f"no candidate and no round was begun after {limit:g} seconds")
            return False
        if drawn >= self.attempts[candidate].most_images:
            self._note(f"no round was begun after {self.settings.budget_images} images")
            return False
        return True

    def limited(self, candidate: int, program: Program) -> Program:
        """A candidate's program, which returns None where it may not begin any more."""
        if not self.may_begin(candidate, self._first):
            return None
        return (yield from program)

    def end(self, candidate: int, trajectory: Trajectory | None) -> None:
        """A candidate is finished, or (None) was not begun: have its images scored."""
        attempt = self.attempts[candidate]
        attempt.ended, attempt.trajectory = True, trajectory
        if trajectory is None or self.selector is None:
            return
        turns = [turn for turn in trajectory.turns if turn.image is not None]
        for number, turn in enumerate(turns, start=1):
            judged = number == len(turns) or (self.settings.keep_best and self._is_result(turn))
            assert turn.image is not None
            review = Review(attempt.job.prompt, turn.image, trajectory.thinking, number)
            attempt.scores.append(self._scored(review) if judged else None)

    def _is_result(self, turn: Turn) -> bool:
        """Whether an image can be what is kept: it was drawn, or is the one to be improved."""
        return not turn.given or self.attempts[0].job.task == "improve"

    def fail(self, candidate: int, error: Exception) -> None:
        """A candidate failed."""
        self.attempts[candidate].ended, self.attempts[candidate].error = True, error
        self._note(f"candidate {candidate + 1} failed: {error}")

    @property
    def ready(self) -> bool:
        """Whether all candidates have ended and all scores are there."""
        return all(
            attempt.ended and all(score is None or score.done() for score in attempt.scores)
            for attempt in self.attempts
        )

    def result(self) -> Trajectory:
        """The trajectory of the chosen candidate; waits for scores.

        Raises:
            Exception: that of the first candidate, if none was finished.
        """
        begun = [attempt for attempt in self.attempts if attempt.trajectory is not None]
        if not begun:
            raise next(attempt.error for attempt in self.attempts if attempt.error is not None)
        assert begun[0].trajectory is not None
        drawn = [attempt for attempt in begun if attempt.trajectory and attempt.trajectory.images]
        if not is_search(self.settings) or not drawn:
            return begun[0].trajectory
        return self._chosen(drawn)

    # ---- choosing

    def _chosen(self, begun: list[Attempt]) -> Trajectory:
        scores = [self._values(attempt) for attempt in begun]
        known = [[score for score in values if score is not None] for values in scores]
        chosen = max(range(len(begun)), key=lambda k: (max(known[k], default=-1.0), -k))
        best = self.settings.keep_best and bool(known[chosen])
        kept = best_image(scores[chosen]) if best else len(scores[chosen]) - 1
        candidates = []
        for k, (attempt, values) in enumerate(zip(begun, scores, strict=True)):
            images = attempt.trajectory.images if attempt.trajectory else []
            image = images[best_image(values)] if k != chosen and images else None
            candidates.append(Candidate(attempt.job.seed, values, image))
        judged = sum(map(len, known))
        why = f"image {kept + 1} of candidate {chosen + 1}"
        if judged:
            why += f" has the highest score of {judged} judged images: {scores[chosen][kept]:.3f}"
        else:
            why += ": nothing was judged" if self.selector is None else ": no image could be judged"
        name = self.selector.name if self.selector else ""
        trajectory = begun[chosen].trajectory
        assert trajectory is not None
        turns = [index for index, turn in enumerate(trajectory.turns) if turn.image is not None]
        search = Search(name, candidates, chosen, why, self.notes)
        return replace(trajectory, best=turns[kept] if best else None, search=search)

    def _values(self, attempt: Attempt) -> list[float | None]:
        """The scores of a candidate's images; a failed one is None, and noted."""
        assert attempt.trajectory is not None
        values: list[float | None] = []
        for number, future in enumerate(attempt.scores, start=1):
            values.append(None if future is None else self._value(future, self.attempts.index(attempt) + 1, number))
        return values or [None] * len(attempt.trajectory.images)

    def _value(self, future: "Future[float]", candidate: int, number: int) -> float | None:
        try:
            value = future.result()
            if not 0 <= value <= 1:
                raise ValueError(f"a score must be from 0 to 1, got {value}")
            return value
        except Exception as error:
            self._note(f"image {number} of candidate {candidate} has no score: {str(error) or type(error).__name__}")
            return None

    def _scored(self, review: Review) -> "Future[float]":
        assert self.selector is not None
        try:
            return self.selector.score(review)
        except Exception as error:
            failed: Future[float] = Future()
            failed.set_exception(error)
            return failed

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _shares(settings: Settings) -> list[float]:
    """For each candidate the most images that it may draw; those that may draw none are left out.

    A budget is given out beforehand, one image to each candidate in turn, so that results do not depend on which
    candidate is faster.
    """
    if settings.budget_images is None:
        return [math.inf] * settings.candidates
    each, more = divmod(settings.budget_images, settings.candidates)
    return [each + (k < more) for k in range(settings.candidates) if each or k < more]
