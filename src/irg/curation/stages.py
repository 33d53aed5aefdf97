"""What a stage is: a function over rows with a typed configuration.

A stage gets rows (the prompt's columns and those of the stages it reads) and returns, for each, the columns it adds
(:func:`accepted`), a rejection (:func:`rejected`), or the exception that keeps it from being made now.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from irg.curation.content import content
from irg.curation.resources import Resources
from irg.curation.store import Row, digest
from irg.endpoints import Endpoint, EndpointError, Unanswered

Outcome = Row | Exception
PROMPT_COLUMNS: dict[str, type] = {
    "prompt": str,
    "request": str,  # the prompt's objects, counts, colors and relations, as JSON in GenEval's form; null if not known
    "turns": int,
    "seed": int,
    "source": str,
    "license": str,
}
SCORES = (
    "draft_following",
    "draft_quality",
    "target_following",
    "target_quality",
    "preservation",
    "gain_1",  # target's following + quality less the draft's, as seen with the draft first
    "gain_2",  # and with the target first
)


def score_columns(name: str) -> dict[str, type]:
    """The columns that every judge fills, ``name`` before each; one-turn rows have only the target's."""
    return {f"{name}_{score}": float for score in SCORES}


def accepted(row: Row, by: dict[str, Any], *, cost: float = 0.0, seconds: float = 0.0, **columns: Any) -> Row:
    """A row's new columns. ``by`` says how they were made, in plain JSON that is the same in every build."""
    how = json.dumps(by, sort_keys=True, ensure_ascii=False)
    return {"id": row["id"], "rejected": None, "cost": cost, "seconds": seconds, "made": how, **columns}


def rejected(row: Row, reason: str, cost: float = 0.0) -> Row:
    """The row goes no further; ``cost`` is what was paid for it."""
    return {"id": row["id"], "rejected": reason, "cost": cost, "seconds": 0.0, "made": None}


def failed(row: Row, error: EndpointError) -> Outcome:
    """What an endpoint's failure means for a row: a rejection, or the failure itself where it is not about the row."""
    return rejected(row, f"{error.kind}: {error}", error.cost) if error.about_the_request else error


class Stage:
    """One step of a build. Subclasses say what they add and how.

    Attributes:
        name: also the name of its folder. The plan sets it, like ``turns``.
        config: its dataclass of the recipe.
        columns: what it adds, name -> Python type (bytes: an image).
        reads: stages whose columns :meth:`make` gets. Empty: what the plan says for the role.
        turns: which rows it is for, by their number of turns.
        batch_size: rows given to :meth:`make` at once (and written together); 0: all of a block that are pending.
        version: raise it when the code makes something else of the same settings.
    """

    name = ""
    columns: dict[str, type]
    reads: tuple[str, ...] = ()
    turns: tuple[int, ...] = (1, 2)
    batch_size = 0
    version = 1

    def __init__(self, config: Any) -> None:
        self.config = config

    def key(self, keys: dict[str, str]) -> str:
        """Eight digits of what decides the content; ``keys`` are those of the stages before."""
        reads = [keys[name] for name in self.reads if name in keys]
        return digest(self.name, self.version, self.texts(), content(self.config), reads)[:8]

    def texts(self) -> list[str]:
        """Instructions for teachers and judges, which decide the content as settings do."""
        return []

    def calls(self) -> list[tuple[Endpoint, float]]:
        """Endpoints and how many calls of each a row takes, for the estimate."""
        return []

    def find(self) -> None:
        """Check that the stage's model can be had; called before the prompts of a new build are made.

        Raises:
            ValueError: there is no such model, or it can't be had.
        """

    async def open(self, resources: Resources) -> None:
        """Get ready; called once before :meth:`make`."""

    async def make(self, rows: list[Row]) -> list[Outcome]:
        """The outcome of each row, in order."""
        raise NotImplementedError


class Grader:
    """Grades single images for a prompt, so that the best of several can be chosen."""

    def texts(self) -> list[str]:
        """Instructions that decide the grades."""
        return []

    def calls(self) -> list[tuple[Endpoint, float]]:
        """Endpoints and how many calls of each an image takes."""
        return []

    async def open(self, resources: Resources) -> None:
        """Get ready; called once before :meth:`grades`."""

    async def grades(self, row: Row, images: list[bytes]) -> list[tuple[float, float]]:
        """(prompt following, quality) of each image, 0 to 10."""
        raise NotImplementedError


async def each(rows: Sequence[Row], concurrency: int, one: Callable[[Row], Awaitable[Row]]) -> list[Outcome]:
    """``one`` for every row, at most ``concurrency`` at a time. What an endpoint can't do for a row rejects the row;
    any other failure is the row's outcome, and no further row is begun; where it turns out that the endpoint refuses
    everything, no row is rejected for that."""
    slots = asyncio.Semaphore(concurrency)
    stop: list[Exception] = []
    refused: list[str] = []

    async def guarded(row: Row) -> Outcome:
        async with slots:
            if stop:
                return stop[0]
            begun = time.monotonic()
            try:
                outcome = await one(row)
            except EndpointError as error:
                if error.about_the_request:
                    if error.status is not None:
                        refused.append(row["id"])
                    return failed(row, error)
                # Without a budget or an answer of an offline model, other rows may still find theirs in the cache.
                if not (error.kind == "budget" or isinstance(error, Unanswered)):
                    stop.append(error)
                return error
            except (OSError, ValueError) as error:
                stop.append(error)
                return error
            return outcome | {"seconds": round(time.monotonic() - begun, 3)}

    outcomes = list(await asyncio.gather(*map(guarded, rows)))
    if (whole := next((error for error in stop if _refuses_all(error)), None)) is not None:
        # Rows refused before that was known are not to blame.
        return [whole if row["id"] in refused else one for row, one in zip(rows, outcomes, strict=True)]
    return outcomes


def _refuses_all(error: Exception) -> bool:
    return isinstance(error, EndpointError) and error.scope == "endpoint"
