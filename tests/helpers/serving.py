"""A server in this process, on a free port, and what tests need around it."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from openai import OpenAI
from PIL import Image

from irg.critics import Review, Verdict
from irg.reasoning.pipeline import IRGPipeline
from irg.serving.auth import ApiKeys
from irg.serving.image_data import encode
from irg.serving.options import ServerOptions
from irg.serving.server import Server
from irg.serving.service import Model

DONE = Verdict("nothing", "", done=True, score=1.0)


class Gate:
    """A critic that answers when it is told to: a request stands still at a known place."""

    name = "gate"
    source = "gate"

    def __init__(self) -> None:
        self.asked: list[Future[Verdict]] = []
        self.opened = False

    def review(self, review: Review) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        future.set_running_or_notify_cancel()
        if self.opened:
            future.set_result(DONE)
        self.asked.append(future)
        return future

    def open(self) -> None:
        """Let all that wait, or will come, go on and end."""
        self.opened = True
        for future in self.asked:
            if not future.done():
                future.set_result(DONE)

    def close(self) -> None:
        self.open()


@dataclass
class Reply:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


@dataclass
class Running:
    """A server that answers at ``url``."""

    server: Server
    url: str
    gate: Gate = field(default_factory=Gate)

    @property
    def model(self) -> Model:
        assert self.server.service.model is not None
        return self.server.service.model

    def client(self, key: str = "unused", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def call(self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = "") -> Reply:
        """Plain HTTP: bytes go as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        own = {"content-type": "application/json"} | (headers or {})
        request = Request(self.url + path, data, own, method=method or ("GET" if data is None else "POST"))
        try:
            with urlopen(request, timeout=60) as reply:
                return Reply(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())
        except HTTPError as error:
            return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def metric(self, line: str) -> float:
        """The value of a line of /metrics; 0 where there is none."""
        for found in self.call("/metrics").body.decode().splitlines():
            if found.startswith(f"{line} "):
                return float(found.rpartition(" ")[2])
        return 0.0


def pixels(b64: str | None) -> np.ndarray:
    """The pixels of an image in base64."""
    assert b64 is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"))


def picture(size: tuple[int, int] = (64, 32), seed: int = 0) -> bytes:
    """A PNG file of colored squares."""
    levels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return encode(Image.fromarray(levels).resize(size, Image.Resampling.NEAREST))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(
    pipe: IRGPipeline | Callable[[], IRGPipeline],
    options: ServerOptions,
    keys: ApiKeys | None = None,
    wait: bool = True,
) -> Iterator[Running]:
    """Serve ``pipe``, or what it loads, on a free port of 127.0.0.1."""
    load = pipe if callable(pipe) and not isinstance(pipe, IRGPipeline) else lambda: pipe
    server = Server(load, options, keys or ApiKeys())  # type: ignore[arg-type]
    socket = server.bind()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([socket])), daemon=True)
    thread.start()
    running = Running(server, f"http://127.0.0.1:{socket.getsockname()[1]}")
    before = None
    try:
        until(lambda: server.started)
        if wait:
            until(lambda: server.service.model is not None)
            critics = running.model.pipe.critics
            before = critics._critics.get("gate")
            critics.add("gate", running.gate)
        yield running
    finally:
        if before is not None:
            critics.add("gate", before)
        running.gate.open()
        server.should_exit = True
        thread.join(60)
        socket.close()
    assert not thread.is_alive()
