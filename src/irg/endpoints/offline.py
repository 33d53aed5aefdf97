"""A client that makes no calls, for models that have no address: its requests are answered elsewhere."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from irg.endpoints.cache import AnswerCache
from irg.endpoints.client import Client
from irg.endpoints.endpoint import Endpoint, EndpointError, Unanswered


class OfflineClient(Client):
    """Takes answers from the cache, under the keys that a :class:`Client` of the same endpoint would use.

    Args:
        failures: why requests can't be answered, by their keys.

    Attributes:
        requests: those that have no answer yet: key -> body.
    """

    def __init__(self, endpoint: Endpoint, cache_dir: Path | str, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(endpoint, cache_dir)
        self.failures = failures or {}
        self.requests: dict[str, dict[str, Any]] = {}

    def _get_ready(self) -> None:
        """No calls: no key, no packages."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _call(
        self, path: str, body: dict[str, Any], png: bytes | None = None, attempt: int = 0, images: int = 0
    ) -> dict[str, Any]:
        assert self._cache is not None
        body, key = self._request(path, body, png, attempt)
        entry = await asyncio.to_thread(self._cache.get, key)
        if entry is not None:
            self.totals.cached += 1
            return entry | {"cached": True}
        if key in self.failures:
            raise EndpointError("refused", f"{self.endpoint.model} refuses: {self.failures[key]}", 400)
        self.requests[key] = body
        raise Unanswered("outage", f"{self.endpoint.model} has not answered this yet")


def keep_answer(
    cache: AnswerCache, key: str, model: str, text: str, tokens_in: int, tokens_out: int, by: str = "offline"
) -> None:
    """Put the answer to a chat request where a client finds it. It costs nothing.

    Raises:
        OSError: it cannot be written.
    """
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    response = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    entry = {
        "request": {"url": by, "path": "chat/completions", "model": model},
        "response": response,
        "usage": usage,
        "cost": 0.0,
        "seconds": 0.0,
        "created": time.time(),
    }
    cache.put(key, entry)
