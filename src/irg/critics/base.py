"""What a critic sees and what it answers; a base class for critics that work in a thread of their own."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from irg.endpoints.endpoint import Kind


@dataclass(frozen=True)
class Review:
    """What a critic sees.

    Attributes:
        prompt: what was asked for.
        image: the newest image.
        thinking: what the model wrote before the first image; None where it wrote nothing.
        turn: the number of the reflection, from 1.
        reflection: what the model wrote about the image; only a :class:`TextCritic` gets it.
    """

    prompt: str
    image: Image.Image
    thinking: str | None = None
    turn: int = 1
    reflection: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a critic answers.

    Attributes:
        wrong: what is wrong with the image.
        change: what to change, as an instruction for an edit; empty where it is done.
        done: whether the image is good as it is.
        score: from 0 (nothing of the prompt) to 1 (perfect).
        text: a whole reflection in the model's own form, where the critic can write one.
        cost: of the calls behind it, whenever they were paid for.
        cached: whether no call was made for it now.

    Raises:
        ValueError: the score is out of range, or there is nothing to change and it is not done.
    """

    wrong: str
    change: str
    done: bool
    score: float
    text: str | None = None
    cost: float = 0.0
    cached: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"a verdict's score must be from 0 to 1, got {self.score}")
        if not (self.done or self.change.strip()):
            raise ValueError("a verdict that is not done must say what to change")

    @property
    def found(self) -> str:
        """What is wrong, in a few words."""
        return "nothing is wrong" if self.done else self.wrong or self.change


class CriticError(RuntimeError):
    """A critic that gave no verdict.

    Attributes:
        kind: as of :class:`irg.endpoints.EndpointError`: ``refused``, ``outage``, ``bad_answer`` or ``budget``.
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))


class Critic(Protocol):
    """A critic.

    Attributes:
        name: how results and messages name it.
    """

    name: str

    def review(self, review: Review) -> Future[Verdict]:
        """Begin to look at an image; returns at once. The future fails with :class:`CriticError`."""
        ...

    def close(self) -> None:
        """Stop; what has not begun is dropped."""
        ...


class WorkerCritic:
    """A critic that looks at one image after the other in a thread of its own: a subclass writes :meth:`judge`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"critic {name}")

    def judge(self, review: Review) -> Verdict:
        """The verdict on one image.

        Raises:
            CriticError: there is none.
        """
        raise NotImplementedError

    def review(self, review: Review) -> Future[Verdict]:
        """See :meth:`Critic.review`."""
        return self._worker.submit(self._judged, review)

    def close(self) -> None:
        """See :meth:`Critic.close`; waits for the image that is being looked at."""
        self._worker.shutdown(cancel_futures=True)

    def _judged(self, review: Review) -> Verdict:
        try:
            return self.judge(review)
        except CriticError:
            raise
        except Exception as error:
            raise CriticError("outage", f"{self.name}: {type(error).__name__}: {error}") from error


class TextCritic(WorkerCritic):
    """A critic that reads: the model looks at its image and reflects as ever, and the critic checks what it wrote
    (``review.reflection``). It may also check the model's thinking, before anything is drawn from it.

    Attributes:
        asks: the model is asked whether its thinking, or what it says that it sees, is right, and the critic reads its
            answer in their place.
    """

    asks = False

    def accepts(self, prompt: str, thinking: str) -> bool:
        """Whether an image may be drawn from a thinking; called in the engine's thread, so it has to be quick."""
        return True
