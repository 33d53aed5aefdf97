"""Images from other hosts: only from those that the operator named, over HTTPS, without redirects, up to a size."""

import http.client
from collections.abc import Sequence
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from irg.serving.errors import invalid

_TIMEOUT_S = 20.0


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def fetch(url: str, hosts: Sequence[str], max_bytes: int, param: str) -> bytes:
    """The file at an address.

    Raises:
        ApiError: its host is not allowed, it is no HTTPS address of the usual port, or it can't be had.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise invalid("the image's address is not valid", param, "invalid_image") from None
    if parts.hostname not in hosts:
        text = "this server fetches no images from there: send it inside the request, as a data URL"
        raise invalid(text, param, "host_not_allowed")
    if parts.scheme != "https" or port not in (None, 443) or parts.username is not None:
        raise invalid("images are fetched over HTTPS only", param, "host_not_allowed")
    opener = build_opener(_NoRedirects, ProxyHandler({}))
    try:
        with opener.open(Request(url, headers={"accept": "image/*"}), timeout=_TIMEOUT_S) as reply:
            content: bytes = reply.read(max_bytes + 1)
    except (URLError, OSError, http.client.HTTPException, ValueError):
        raise invalid("the image could not be fetched", param, "invalid_image") from None
    if len(content) > max_bytes:
        raise invalid("the image's file is too large", param, "invalid_image")
    return content
