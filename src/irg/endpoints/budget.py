"""A cap on spending, and what a call may cost before it is made."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from irg.endpoints.endpoint import Endpoint, EndpointError

_BYTES_A_TOKEN = 3
_TOKENS_AN_IMAGE = 2000
_SLACK = 1e-9


class Budget:
    """A cap on spending that several clients share; it is exceeded by less than what one call costs.

    A call in flight counts with the most that it may cost (:func:`dearest`). One for which there is no room waits for
    those in flight, which may turn out cheaper; with none in flight it is made if there is room for the dearest call
    of its endpoint so far.
    """

    def __init__(self, cap: float | None = None, spent: float = 0.0) -> None:
        self.cap, self.spent, self.reserved = cap, spent, 0.0
        self._in_flight = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, guess: float, seen: Callable[[], float]) -> float:
        """Set aside what a call may cost, and return it: the guess, or the dearest call of its endpoint so far.

        Args:
            seen: the dearest so far, which may rise while the call waits.

        Raises:
            EndpointError: of kind ``budget``: it would go beyond the cap.
        """
        while (most := max(guess, seen())) > 0 and not self._has_room(most):
            if not self._in_flight:
                assert self.cap is not None
                if self.spent < self.cap and self._has_room(seen()):
                    break
                told = f"the budget of {self.cap:g} is used up ({self.spent:.4g} spent); raise it to go on"
                raise EndpointError("budget", told)
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(settled)
            await settled
        self.reserved += most
        self._in_flight += 1
        return most

    def _has_room(self, amount: float) -> bool:
        return self.cap is None or self.spent + self.reserved + amount <= self.cap + _SLACK

    def settle(self, reserved: float, paid: float) -> None:
        """A call for which ``reserved`` was set aside has cost ``paid``."""
        self._in_flight -= 1
        self.reserved = self.reserved - reserved if self._in_flight else 0.0  # no rounding is carried on
        self.spent += paid
        waiting, self._waiting = self._waiting, []
        for settled in waiting:
            if not settled.done():
                settled.set_result(None)


def dearest(endpoint: Endpoint, body: dict[str, Any], images: int = 0) -> float:
    """The most that a call will cost, guessed high: three bytes of text a token, 2000 tokens an image that is shown,
    and all the tokens that the answer may have."""
    text = _tokens(body.get("messages", body.get("prompt", "")))
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    answer = max((limit for limit in limits if isinstance(limit, int)), default=0)
    return endpoint.cost({"prompt_tokens": text, "completion_tokens": answer}, images)


def _tokens(value: Any) -> int:
    """Tokens of a message or its parts, guessed high."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace")) // _BYTES_A_TOKEN + 1
    if isinstance(value, list):
        return sum(map(_tokens, value)) + 4 * len(value)
    if isinstance(value, dict):
        if "image_url" in value:
            return _TOKENS_AN_IMAGE
        return sum(map(_tokens, value.values()))
    return len(json.dumps(value))
