"""What the stages of a build share: clients of endpoints, loaded models, a thread for models, worker processes."""

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from irg.endpoints import AnswerCache, Budget, Client, Endpoint, OfflineClient


@dataclass
class Resources:
    """Clients, models and workers. Use it as ``async with``."""

    answers: Path
    cap: float | None = None
    processes: int = 1
    failures: dict[str, str] = field(default_factory=dict)  # requests that an offline model could not answer -> why
    _loaded: dict[str, Any] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        self.budget = Budget(self.cap, AnswerCache(self.answers).spent())
        self._stack = AsyncExitStack()
        self._open: list[tuple[Endpoint, Client]] = []
        self._pool: Executor | None = None
        self._model_thread = ThreadPoolExecutor(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._model_thread.shutdown(cancel_futures=True)
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
        """A client that takes answers from the cache alone."""
        return OfflineClient(endpoint, self.answers, self.failures)

    def get_or_load(self, name: str, load: Callable[[], Any]) -> Any:
        """A model or the like, loaded once for all stages."""
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]

    async def run_in_model_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run in the one thread for models, so that the event loop is not blocked."""
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work, *arguments)

    async def run_in_process(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a worker process (with ``processes`` 1: in a thread)."""
        if self.processes <= 1:
            return await self.run_in_model_thread(work, *arguments)
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
