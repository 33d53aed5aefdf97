"""What an endpoint is and costs, and how it can fail."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["refused", "outage", "bad_answer", "budget"]
Scope = Literal["request", "endpoint"]


class EndpointError(Exception):
    """A call that gave nothing usable.

    Attributes:
        kind: ``refused``: the server said no, and saying it again would not help; ``outage``: it could not be reached,
            was overloaded or broken, however often we tried; ``bad_answer``: it answered, and no answer passed the
            check; ``budget``: the call would go beyond the budget.
        status: the HTTP status of a refusal or an outage, if there was one. A refusal without one is the model's own.
        scope: whether it is this request that failed (so that others are worth trying), or the endpoint as a whole;
            None: as the kind and the status say.
        cost: of the calls behind it, which gave nothing.
    """

    def __init__(
        self, kind: Kind, message: str, status: int | None = None, scope: Scope | None = None, cost: float = 0.0
    ) -> None:
        super().__init__(message)
        self.kind, self.status, self.scope, self.cost = kind, status, scope, cost

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self), self.status, self.scope, self.cost)

    @property
    def about_the_request(self) -> bool:
        """Whether it is this request that failed, not the endpoint as a whole."""
        if self.scope is not None:
            return self.scope == "request"
        return self.kind == "bad_answer" or (self.kind == "refused" and self.status in (400, 413, 422, None))


class Retry(Exception):
    """The server could not answer now. ``wait_s`` is its Retry-After."""

    def __init__(self, message: str, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.wait_s = status, wait_s


class Unanswered(EndpointError):
    """An outage of one request: no call was made, and no answer to it is on disk. Others may have theirs."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible address.

    Attributes:
        url: of the API, such as ``http://localhost:8000/v1``.
        api_key_env: the environment variable with the key; None where no key is needed. Keys never stand in recipes.
        concurrency: most calls in flight at once.
        requests_per_minute: calls begin at least this far apart; None: as fast as they come.
        timeout_s: of a single call, in seconds, from its beginning to the last byte.
        attempts: how often a call is made while the server is unreachable, overloaded (429) or broken (5xx).
        longest_wait_s: of the growing pauses between them. A server's Retry-After is honored up to ten times this.
        corrections: how often the model is called again after an answer that fails its check.
        price_per_million_in, price_per_million_out: of tokens, in any one currency (all prices of a build in the same).
        price_per_image: of an image drawn or edited, in the same currency.
        extra: further fields of the request's body; null leaves out one that we would send.
        identity: what the cache calls this endpoint, by default its url. Name it to let a model move between addresses
            without paying for its answers again.
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 300.0
    attempts: int = 6
    longest_wait_s: float = 60.0
    corrections: int = 2
    price_per_million_in: float = 0.0
    price_per_million_out: float = 0.0
    price_per_image: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        if not self.model:
            raise ValueError("model must name the model that the endpoint serves")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("timeout_s", "longest_wait_s", "requests_per_minute"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        prices = ("price_per_million_in", "price_per_million_out", "price_per_image")
        for name in ("corrections", *prices):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def api_key(self) -> str:
        """The key.

        Raises:
            ValueError: the environment variable is not set.
        """
        if self.api_key_env is None:
            return "none"  # the openai package insists on one
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise ValueError(f"{self.url}: its key is looked for in the environment variable {self.api_key_env}")
        return key

    def cost(self, usage: dict[str, int], images: int = 0) -> float:
        """Price of a call with this usage (``prompt_tokens``, ``completion_tokens``) and this many images."""
        tokens_in = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        tokens_out = usage.get("completion_tokens", usage.get("output_tokens", 0))
        tokens = tokens_in * self.price_per_million_in + tokens_out * self.price_per_million_out
        return tokens / 1e6 + images * self.price_per_image
