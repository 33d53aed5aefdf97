"""The door: every request passes here before a route sees it.

It gets an id, its Host and Origin are looked at, then its key, and its body is read whole, within limits of size and
time. What goes wrong inside becomes an answer, and a line in the log and the metrics.
"""

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from irg.serving import logs
from irg.serving.errors import ApiError, failed
from irg.serving.service import Service

OPEN = ("/health", "/healthz", "/ready", "/readyz", "/v1/images/files/")
"""Addresses that need no key: whether the server is well, and images under names that nobody can guess."""
PAGE = "/ui"
"""Where the web page is; its many small requests are logged only when they fail."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_READ_ON = 4
"""A body that is too large is read on, and dropped, up to so many times the limit: else a client that is still sending
would see a reset connection instead of the answer."""
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] != "websocket":
                await self.app(scope, receive, send)
            return
        await _Exchange(self.app, self.service, scope, receive, send).run()


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self.app, self.service, self.scope = app, service, scope
        self._receive, self._send = receive, send
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        self.status = 0
        self.key: str | None = None  # the name of the API key
        self.log: dict[str, Any] = {}
        scope.setdefault("state", {}).update(log=self.log, id=self.id)
        self.origin = self.headers.get("origin")

    async def run(self) -> None:
        started = time.monotonic()
        try:
            await self._run()
        except Exception as error:
            logs.LOG.exception("a request failed", extra={"fields": {"id": self.id}})
            if not self.status:
                await self._answer(failed(error))
        finally:
            self._note(time.monotonic() - started)

    async def _run(self) -> None:
        try:
            self._check_host_and_origin()
            if self._is_preflight():
                await self._preflight()
                return
            self._check_key()
            body = await self._body()
        except ApiError as error:
            self.service.metrics.rejections.labels(error.code or "invalid").inc()
            await self._answer(error)
            return
        await self.app(self.scope, self._replayed(body), self.send)

    # ---- checks

    def _check_host_and_origin(self) -> None:
        """A page in the user's browser must not reach a server that trusts its own machine."""
        options = self.service.options
        host = self.headers.get("host", "").lower()
        name = re.sub(r":\d*$", "", host)
        known = (*_LOCAL_NAMES, options.host, *options.allow_hosts)
        if options.local and name not in known and "*" not in options.allow_hosts:
            raise ApiError(403, "this server is not called that; see --allow-hosts", code="unknown_host")
        if self.origin is not None and not self._allowed_origin():
            same = self.origin.partition("://")[2].lower() == host
            if not same:
                raise ApiError(403, "web pages of other origins may not call this server", code="cross_origin")

    def _allowed_origin(self) -> bool:
        allowed = self.service.options.allow_origins
        return self.origin in allowed or "*" in allowed

    def _check_key(self) -> None:
        path: str = self.scope["path"]
        if not self.service.keys or any(path == one or (one[-1] == "/" and path.startswith(one)) for one in OPEN):
            return
        authorization = self.headers.get("authorization")
        self.key = self.service.keys.name_of(authorization)
        if self.key is None:
            problem = "the API key is not known" if authorization else "an API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, problem, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _body(self) -> bytes:
        limits = self.service.options.limits
        most = int(limits.max_body_mb * 1e6)
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while more and size <= _READ_ON * most:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the client closed the connection", code="client_closed_request")
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    size += len(chunk)
                    if size <= most:
                        chunks.append(chunk)
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="body_timeout") from None
        if size > most:
            raise ApiError(413, f"the body has more than {limits.max_body_mb:g} MB", code="body_too_large")
        return b"".join(chunks)

    def _replayed(self, body: bytes) -> Receive:
        """A receive that gives the body once, then what the connection gives."""
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return waiting.pop() if waiting else await self._receive()

        return receive

    # ---- CORS, for allowed origins alone

    def _is_preflight(self) -> bool:
        asks = "access-control-request-method" in self.headers
        return self.scope["method"] == "OPTIONS" and asks and self.origin is not None and self._allowed_origin()

    async def _preflight(self) -> None:
        allowed = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
            (b"access-control-max-age", b"600"),
        ]
        await self.send({"type": "http.response.start", "status": 204, "headers": allowed})
        await self.send({"type": "http.response.body", "body": b""})

    # ---- answers

    async def send(self, message: Message) -> None:
        """Send on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            headers["x-content-type-options"] = "nosniff"
            if self.origin is not None and self._allowed_origin():
                headers["access-control-allow-origin"] = self.origin
                headers["access-control-expose-headers"] = "x-request-id, retry-after"
                headers.add_vary_header("origin")
        await self._send(message)

    async def _answer(self, error: ApiError) -> None:
        await error.response()(self.scope, self._receive, self.send)

    def _note(self, seconds: float) -> None:
        of_page = self.scope["path"].startswith(f"{PAGE}/")
        route = PAGE if of_page else getattr(self.scope.get("route"), "path", "other")
        self.service.metrics.requests.labels(route, str(self.status)).inc()
        self.service.metrics.request_seconds.labels(route).observe(seconds)
        if not self.service.options.log_prompts:
            self.log.pop("prompt", None)
        if (route in OPEN or route == PAGE) and self.status < 400:
            return
        own = {"id": self.id, "method": self.scope["method"], "route": route, "status": self.status}
        logs.event("request", **own, seconds=round(seconds, 3), key=self.key, **self.log)
