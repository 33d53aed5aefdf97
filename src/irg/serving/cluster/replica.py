"""One replica: a loaded model and its routes, called with requests that the front sends on."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

from irg.serving import logs
from irg.serving.app import make_app
from irg.serving.options import ServerOptions
from irg.serving.service import Service


class Replica:
    """A process with the model. It can be routed to as soon as the constructor has returned."""

    def __init__(self, model: dict[str, Any], options: ServerOptions) -> None:
        """Args:
        model: arguments of ``IRGPipeline.from_pretrained``.

        Raises:
            Exception: the model can't be loaded.
        """
        from irg.reasoning.pipeline import IRGPipeline

        logs.install()
        self.app = make_app(lambda: IRGPipeline.from_pretrained(**model), options)
        self.service: Service = self.app.state.service
        self.service.load_now()
        if self.service.problem is not None:
            raise self.service.problem

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[MutableMapping[str, Any], None]:
        """The ASGI messages of an answer as they come. What runs for it is dropped when the generator is closed."""
        messages: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not waiting:
                await asyncio.Event().wait()  # a client that goes ends this task
            return waiting.pop()

        async def work() -> None:
            try:
                await self.app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def check_health(self) -> None:
        """Called by Ray now and then; a replica that raises is replaced.

        Raises:
            RuntimeError: the engine has ended.
        """
        assert self.service.model is not None
        if not self.service.model.engine.alive:
            raise RuntimeError("the engine's thread has ended")
