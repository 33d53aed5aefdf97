"""Options of an endpoint as critics, judges and their commands take them, and the one way to an :class:`Endpoint`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from irg.downloads import default_cache
from irg.endpoints.endpoint import Endpoint

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
MAX_TOKENS = 1024


@dataclass(frozen=True)
class EndpointOptions:
    """How an OpenAI-compatible address is called.

    Raises:
        ValueError: a number is out of range.
    """

    url: str = OPENAI_URL
    """For endpoints: the address of the API."""
    api_key_env: str | None = None
    """For endpoints: the environment variable with the key (default: OPENAI_API_KEY for OpenAI's own address, none for
    others)."""
    concurrency: int = 8
    """For endpoints: calls at once."""
    requests_per_minute: float | None = None
    """For endpoints: at most so many calls."""
    timeout_s: float = 300.0
    """For endpoints: of one call."""
    attempts: int = 6
    """For endpoints: tries of a call while the server is overloaded or broken."""
    longest_wait_s: float = 60.0
    """For endpoints: of the growing pauses between tries."""
    corrections: int = 2
    """How many times an unusable answer is sent back to the model with the complaint."""
    max_tokens: int = MAX_TOKENS
    """The most tokens of an answer; a reasoning model's thinking counts."""
    temperature: float = 0.0
    """Of the answers."""
    price_in: float = 0.0
    """For endpoints: price of a million prompt tokens."""
    price_out: float = 0.0
    """For endpoints: price of a million answer tokens."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """For endpoints: further fields of a request's body; null leaves out one that is sent otherwise."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.corrections < 0:
            raise ValueError(f"corrections must not be negative, got {self.corrections}")

    def endpoint(self, model: str) -> Endpoint:
        """The endpoint of a model.

        Raises:
            ValueError: the address or a number is not acceptable.
        """
        return Endpoint(
            url=self.url,
            model=model,
            api_key_env=self.api_key_env or default_key(self.url),
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            timeout_s=self.timeout_s,
            attempts=self.attempts,
            longest_wait_s=self.longest_wait_s,
            corrections=self.corrections,
            price_per_million_in=self.price_in,
            price_per_million_out=self.price_out,
            extra=dict(self.extra),
        )


def default_key(url: str) -> str | None:
    """The environment variable whose key an address gets unasked: OpenAI's own over HTTPS, and nobody else."""
    try:
        parts = urlsplit(url)
        official = parts.scheme == "https" and parts.hostname == urlsplit(OPENAI_URL).hostname and parts.port is None
    except ValueError:  # a port that is no number
        return None
    return OPENAI_KEY if official else None


def answers_folder(given: str | None, name: str) -> Path:
    """Where answers are kept: the folder that was given, else one of this name in irg's cache."""
    return Path(given).expanduser() if given else default_cache() / name


def json_object(flag: str, text: str) -> dict[str, Any]:
    """An option that is a JSON object, such as the further fields of a request.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{flag} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{flag} must be a JSON object, such as '{{\"top_p\": 0.9}}'")
    return value
