"""Server-sent events: JSON data, comments while nothing happens, errors as events once the headers are out."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus

from irg.serving.errors import ApiError, failed
from irg.serving.options import ServerOptions

# Streams end when their requests do, also while the server shuts down (`irg.serving.server`).
AppStatus.disable_automatic_graceful_drain()

Events = AsyncGenerator[dict[str, Any], None]


def stream(events: Events, options: ServerOptions, done_marker: bool = False) -> EventSourceResponse:
    """An answer that sends ``events`` as they come and closes them when the client goes or stops reading.

    Args:
        done_marker: end with ``data: [DONE]``, as clients of chats expect it.
    """

    async def encoded() -> AsyncGenerator[ServerSentEvent, None]:
        async with aclosing(events):
            try:
                async for data in events:
                    yield _event(data)
            except ApiError as error:
                yield _event({"type": "error"} | error.body())
            except Exception as error:
                yield _event({"type": "error"} | failed(error).body())
                raise
        if done_marker:
            yield ServerSentEvent(data="[DONE]", sep="\n")

    return EventSourceResponse(
        encoded(),
        ping=options.keepalive_s,
        ping_message_factory=lambda: ServerSentEvent(comment="keepalive", sep="\n"),
        send_timeout=options.limits.send_timeout_s,
        sep="\n",
    )


def _event(data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(data, allow_nan=False), event=data.get("type"), sep="\n")
