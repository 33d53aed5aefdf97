"""The front: the guard of every request, which is then sent on to a replica; the answer is passed back as it comes.

It has no model. So it outlives a replica that ends in the middle of a request, and can say so in the API's own shape.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from irg.reasoning.pipeline import IRGPipeline
from irg.serving import logs
from irg.serving.auth import ApiKeys
from irg.serving.errors import NO_RETRY, ApiError, failed, timed_out
from irg.serving.guard import Guard
from irg.serving.options import ServerOptions
from irg.serving.service import Service

_READY = ("/ready", "/readyz")
_READY_S = 5.0
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
_PLACE = ("client", "server")


def make_front(replicas: Callable[[], Any], options: ServerOptions, keys: ApiKeys) -> Starlette:
    """The ASGI app of the front.

    Args:
        replicas: the handle of the replicas' deployment; called once, with the first request.
    """
    logs.install()
    service = Service(_no_model, options, keys)
    forward = Forward(replicas, options)
    routes = [Route("/health", _health), Route("/healthz", _health), Mount("/", forward)]
    return Starlette(routes=routes, middleware=[Middleware(Guard, service=service)])


def _no_model() -> IRGPipeline:
    raise NotImplementedError("the front loads no model")


async def _health(request: Request) -> Response:
    """The front works; whether a replica does, /ready says."""
    return Response()


class Forward:
    """An ASGI app that has its requests answered by replicas."""

    def __init__(self, replicas: Callable[[], Any], options: ServerOptions) -> None:
        self._replicas, self._options = replicas, options
        self._handle: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        try:
            await self._relay(scope, receive, answer)
        except ApiError as error:
            await answer.end(error, scope, receive)

    async def _relay(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if self._handle is None:
            self._handle = self._replicas().options(stream=True)
        body = (await receive())["body"]  # whole: the guard has read it
        asks = scope["path"] in _READY
        limits = self._options.limits
        seconds = _READY_S if asks else limits.timeout_s + limits.send_timeout_s
        coming = self._handle.answer.remote(_plain(scope), body)
        try:
            async with asyncio.timeout(seconds):
                async for message in coming:
                    await answer.send(message)
        except TimeoutError:
            raise _not_ready() if asks else timed_out(seconds, answer.started) from None
        except BackPressureError:
            text, headers = "too many requests are waiting", {"retry-after": "5"}
            raise ApiError(429, text, code="queue_full", headers=headers) from None
        except RayActorError:
            text = "the replica that ran this request has ended; the others go on"
            raise ApiError(500, text, code="replica_died", headers=NO_RETRY) from None
        except RayServeException:
            raise _not_ready() from None
        except Exception as error:
            logs.LOG.exception("a request failed in its replica")
            raise failed(error) from None
        finally:
            coming.cancel()


def _not_ready() -> ApiError:
    return ApiError(503, "no replica is ready", code="not_ready", headers={"retry-after": "5"})


def _plain(scope: Scope) -> dict[str, Any]:
    """What a replica needs to know of a request; its id is that of the guard."""
    headers = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
    headers.append((b"x-request-id", scope["state"]["id"].encode("ascii")))
    kept = {name: scope[name] for name in _SCOPE if name in scope}
    places = {name: tuple(scope[name]) for name in _PLACE if scope.get(name)}
    return kept | places | {"headers": [(bytes(name), bytes(value)) for name, value in headers]}


class _Answer:
    """What of an answer has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = self._streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
        await self._send(message)

    async def end(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """End with an error: as an answer, as the last event of a stream, or, inside a body, by breaking it off."""
        if not self.started:
            await error.response()(scope, receive, self._send)
        elif self._streams:
            data = json.dumps({"type": "error"} | error.body())
            event = f"event: error\ndata: {data}\n\n".encode()
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            raise error
