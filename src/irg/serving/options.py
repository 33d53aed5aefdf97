"""What a server allows, and how it is reached. Plain numbers; checked before a model is loaded."""

import ipaddress
import re
from dataclasses import dataclass, field, fields
from typing import Any

from irg.serving.fetching import origin_of


@dataclass(frozen=True)
class Limits:
    """The most that requests may ask for.

    Attributes:
        max_running: images that are drawn at once; 1: results are bit for bit those of each request alone.
        max_waiting: images that wait for a place; beyond that requests are refused (429).
        max_images: images of one request (``n``).
        max_pixels: of an image to draw; default: what the model draws.
        max_steps: updates of an image.
        max_rounds: times that an image is looked at and drawn again.
        max_tokens: of one text that the model writes.
        max_prompt_bytes: of a prompt in UTF-8; of a chat, all its texts together.
        max_input_images: images given with a request.
        max_input_pixels: of an image given with a request.
        max_body_mb: megabytes of a request's body.
        body_timeout_s: seconds in which a request's body must have arrived.
        timeout_s: seconds in which a request must be answered, waiting included.
        send_timeout_s: seconds that a client may take to read one event of a stream.
        shutdown_s: seconds that running requests get when the server is told to end.
        url_ttl_s: seconds that an image's URL works.
        url_store_mb: megabytes of images that URLs may lead to; the oldest go first.
        max_connections: connections at once.

    Raises:
        ValueError: a number is not positive.
    """

    max_running: int = 8
    max_waiting: int = 64
    max_images: int = 10
    max_pixels: int | None = None
    max_steps: int = 200
    max_rounds: int = 8
    max_tokens: int = 8192
    max_prompt_bytes: int = 32_000
    max_input_images: int = 16
    max_input_pixels: int = 25_000_000
    max_body_mb: float = 32.0
    body_timeout_s: float = 60.0
    timeout_s: float = 600.0
    send_timeout_s: float = 60.0
    shutdown_s: float = 600.0
    url_ttl_s: float = 3600.0
    url_store_mb: float = 256.0
    max_connections: int = 256

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and not value > 0:
                raise ValueError(f"{one.name} must be above 0, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """What a client should know: the limits of a request."""
        names = ("max_images", "max_pixels", "max_steps", "max_rounds", "max_tokens", "max_prompt_bytes")
        more = ("max_input_images", "max_input_pixels", "max_body_mb", "timeout_s", "url_ttl_s")
        return {name: getattr(self, name) for name in (*names, *more)}


@dataclass(frozen=True)
class ServerOptions:
    """How a server is reached, and what it answers to.

    Attributes:
        host: the address to listen on.
        port: 0 takes a free one.
        model_names: other names that requests may call the model, such as ``gpt-image-1``.
        any_model_name: answer to whatever name.
        fit_sizes: draw a size that the model can't draw at the model's usual size in the nearest shape.
        critics: critics that requests may name.
        image_hosts: hosts that images may be fetched from (:mod:`irg.serving.fetching`); without any, images come
            inside requests only.
        allow_origins: web pages (``https://example.org``) that may call from a browser.
        allow_hosts: names under which the server may be called, beside its address; ``*``: any.
        public_url: what image URLs begin with; default: as the request called the server.
        store_urls: images may be asked for by URL; not where another process may get the URL's request.
        log_prompts: write prompts into the log.
        page: serve the web page, if it is installed (extra ``ui``) and no API key is needed.
        keepalive_s: seconds of silence after which a stream sends a comment.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_names: tuple[str, ...] = ()
    any_model_name: bool = False
    fit_sizes: bool = False
    critics: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    store_urls: bool = True
    log_prompts: bool = False
    page: bool = True
    keepalive_s: float = 15.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        if not self.keepalive_s > 0:
            raise ValueError(f"keepalive_s must be above 0, got {self.keepalive_s}")
        for host in self.image_hosts:
            origin_of(host)
        for page in self.allow_origins:
            if page not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", page):
                raise ValueError(f"allow_origins: {page!r} is no web page's origin, such as https://example.org, nor *")
        if self.public_url is not None and not self.public_url.startswith(("http://", "https://")):
            raise ValueError(f"public_url must begin with http:// or https://, got {self.public_url!r}")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
