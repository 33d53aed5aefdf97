"""uvicorn around the app: signals, exit codes, the socket."""

import asyncio
import contextlib
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from irg.serving import logs
from irg.serving.app import make_app
from irg.serving.auth import ApiKeys
from irg.serving.options import ServerOptions
from irg.serving.service import Load, Service

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """A server that ends by itself: SIGTERM or Ctrl-C once lets it finish what runs, twice ends it at once.

    Attributes:
        service: what it serves.
    """

    def __init__(
        self, load: Load, options: ServerOptions, keys: ApiKeys, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.options, self._say = options, say
        self.should_exit = False
        app = make_app(load, options, keys, self._loaded)
        self.service: Service = app.state.service
        limits = options.limits
        super().__init__(
            uvicorn.Config(
                app,
                options.host,
                options.port,
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=limits.max_connections,
                timeout_graceful_shutdown=max(1, round(limits.shutdown_s)),
                h11_max_incomplete_event_size=64 * 1024,
                lifespan="on",
            )
        )

    def run_until_told(self) -> None:
        """Serve until a signal.

        Raises:
            OSError: the address can't be listened on.
            Exception: what went wrong when the model was loaded.
        """
        with self.bind() as listening:
            asyncio.run(self._listen(listening))
        if self.service.problem is not None:
            raise self.service.problem

    def bind(self) -> socket.socket:
        """Take the address.

        Raises:
            OSError: it can't be had; the error names it.
        """
        host, port = self.options.host, self.options.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), f"{host}:{port}") from None

    async def _listen(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(LoopFailures())
        for number in _SIGNALS:
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, self.stop)
        host, port = listening.getsockname()[:2]
        self._say(f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        await self.serve([listening])

    def stop(self) -> None:
        """Refuse what has not begun, finish what runs, end; the second time: end at once."""
        if self.should_exit:
            self.force_exit = True
            return
        logs.event("shutdown")
        self.service.drain()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn's handlers would end the process by the signal instead of with code 0."""
        yield

    def _loaded(self, service: Service) -> None:
        if service.problem is not None:
            self.should_exit = True  # run_until_told raises it
        else:
            assert service.model is not None
            self._say(f"Ready: {service.model.pipe.name}{self._page()}")
            logs.event("ready", model=service.model.pipe.name)

    def _page(self) -> str:
        """Where the web page is, or how to get it."""
        if self.service.page:
            return "; the page is at / of this address"
        if not self.options.page:
            return ""
        if self.service.keys:
            return "; no page, since API keys are set"
        return "; a page in the browser needs pip install 'irg[ui]'"


class LoopFailures:
    """Logs what nobody else catches, the same at most once a second: without file handles asyncio tells the same
    thousands of times a second."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, now = str(context["message"]), time.monotonic()
        if now - self._told.get(message, -math.inf) >= 1:
            self._told[message] = now
            logs.LOG.error(message, exc_info=context.get("exception"))
