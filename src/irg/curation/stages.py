"""What a stage is: a function over rows with a typed configuration; and the workbench that stages share.

A stage gets rows (the prompt's columns and those of the stages it reads) and returns, for each, the columns it adds
(:func:`made`), a rejection (:func:`rejected`), or the exception that keeps it from being made now.
"""

import asyncio
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from irg.curation.recipe import content
from irg.curation.store import Row, digest
from irg.endpoints import AnswerCache, Budget, Client, Endpoint, EndpointError, OfflineClient, Unanswered

Outcome = Row | Exception
PROMPT_COLUMNS: dict[str, type] = {
    "prompt": str,
    "request": str,  # what the prompt asks for, as JSON in GenEval's form; null if not known
    "turns": int,
    "seed": int,
    "source": str,
    "license": str,
}


def made(row: Row, by: dict[str, Any], *, cost: float = 0.0, seconds: float = 0.0, **columns: Any) -> Row:
    """A row's new columns. ``by`` tells how they were made, in plain JSON that is the same in every build."""
    how = json.dumps(by, sort_keys=True, ensure_ascii=False)
    return {"id": row["id"], "rejected": None, "cost": cost, "seconds": seconds, "made": how, **columns}


def rejected(row: Row, reason: str) -> Row:
    """The row goes no further."""
    return {"id": row["id"], "rejected": reason, "cost": 0.0, "seconds": 0.0, "made": None}


class Stage:
    """One step of the way. Subclasses say what they add and how.

    Attributes:
        name: also the name of its folder.
        config: its dataclass of the recipe.
        columns: what it adds.
        reads: stages whose columns :meth:`make` gets.
        turns: which rows it is for, by their number of turns.
        chunk: rows given to :meth:`make` at once (and written together); 0: all that wait in a block.
        version: raise it when the code makes something else of the same settings.
    """

    name = ""
    columns: dict[str, type]
    reads: tuple[str, ...] = ()
    turns: tuple[int, ...] = (1, 2)
    chunk = 0
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

    async def open(self, bench: "Workbench") -> None:
        """Get ready; called once before :meth:`make`."""

    async def make(self, rows: list[Row]) -> list[Outcome]:
        """The outcome of each row, in order."""
        raise NotImplementedError


@dataclass
class Workbench:
    """What stages share: clients, models, workers. Use it as ``async with``."""

    answers: Path
    cap: float | None = None
    processes: int = 1
    refused: dict[str, str] = field(default_factory=dict)  # by models that are asked offline: question -> why
    _keep: dict[str, Any] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        self.budget = Budget(self.cap, AnswerCache(self.answers).spent())
        self._stack = AsyncExitStack()
        self._open: list[tuple[Endpoint, Client]] = []
        self._pool: Executor | None = None
        self._one = ThreadPoolExecutor(1)  # models and detectors: one call at a time
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._one.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    async def client(self, endpoint: Endpoint) -> Client:
        """The one client of an endpoint, so that its limits hold for all stages together."""
        for known, client in self._open:
            if known == endpoint:
                return client
        client = await self._stack.enter_async_context(Client(endpoint, self.answers, self.budget))
        self._open.append((endpoint, client))
        return client

    def offline(self, endpoint: Endpoint) -> OfflineClient:
        """A client that finds what others have asked for it."""
        return OfflineClient(endpoint, self.answers, self.refused)

    @property
    def open_clients(self) -> list[Client]:
        return [client for _, client in self._open]

    def kept(self, name: str, load: Callable[[], Any]) -> Any:
        """Something heavy, loaded once."""
        if name not in self._keep:
            self._keep[name] = load()
        return self._keep[name]

    async def alone(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run in the one thread for models, so that the loop stays awake."""
        return await asyncio.get_running_loop().run_in_executor(self._one, work, *arguments)

    async def apart(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a worker process (with ``processes`` 1: in a thread)."""
        if self.processes <= 1:
            return await self.alone(work, *arguments)
        if self._pool is None:
            context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, initializer=_die_with_parent)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


async def each(rows: Sequence[Row], together: int, one: Callable[[Row], Awaitable[Row]]) -> list[Outcome]:
    """``one`` for every row, at most ``together`` at a time. What an endpoint cannot do for a row rejects the row; any
    other failure is the row's outcome, and no further row is begun."""
    slots = asyncio.Semaphore(together)
    stop: list[Exception] = []

    async def guarded(row: Row) -> Outcome:
        async with slots:
            if stop:
                return stop[0]
            begun = time.monotonic()
            try:
                outcome = await one(row)
            except EndpointError as error:
                if error.about_the_request:
                    return rejected(row, f"{error.kind}: {error}")
                if not (
                    error.kind == "budget" or isinstance(error, Unanswered)
                ):  # what is in the cache may still be had for nothing
                    stop.append(error)
                return error
            except (OSError, ValueError) as error:
                stop.append(error)
                return error
            return outcome | {"seconds": round(time.monotonic() - begun, 3)}

    return list(await asyncio.gather(*map(guarded, rows)))
