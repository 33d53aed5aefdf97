"""Images from other hosts: only from those that the operator named, within a time and a size.

A host is named as ``example.org`` (HTTPS, the usual port) or with scheme and port: ``http://10.0.0.5:8000``. Each
redirect is held against the list again. A name that leads to a private address is refused unless that address is in the
list, too: else whoever answers for the name could point the server at its own network. The connection goes to the
address that was checked, so the name can't lead elsewhere in between.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from irg.serving.errors import ApiError, invalid

_TIMEOUT_S = 20.0
_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where images may come from."""

    scheme: str
    host: str
    port: int


def origin_of(text: str) -> Origin:
    """The origin that the operator names.

    Raises:
        ValueError: it is neither a host nor ``http(s)://HOST[:PORT]``.
    """
    wrong = f"image_hosts: {text!r} is neither a host such as example.org nor https://HOST:PORT"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        found = _origin(parts)
    except ValueError:
        raise ValueError(wrong) from None
    if found is None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(wrong)
    return found


def fetch(url: str, hosts: Sequence[str], max_bytes: int, param: str) -> bytes:
    """The file at an address.

    Raises:
        ApiError: its origin is not in the list, it leads to a private address that is not, or it can't be had.
    """
    allowed = [origin_of(host) for host in hosts]
    end = time.monotonic() + _TIMEOUT_S
    try:
        for _ in range(_REDIRECTS + 1):
            content, onward = _get(_checked(url, allowed, param), url, allowed, max_bytes, end, param)
            if onward is None:
                return content
            url = urljoin(url, onward)
    except (OSError, http.client.HTTPException, ValueError):
        pass
    raise invalid("the image could not be fetched", param, "invalid_image")


def _origin(parts: SplitResult) -> Origin | None:
    """The origin of an address; None: it has a user's name, or is not of HTTP."""
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        return None
    return Origin(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])


def _checked(url: str, allowed: Sequence[Origin], param: str) -> Origin:
    try:
        found = _origin(urlsplit(url))
    except ValueError:
        raise invalid("the image's address is not valid", param, "invalid_image") from None
    if found is None or found not in allowed:
        text = "this server fetches no images from there: send it inside the request, as a data URL"
        raise _refused(text, param)
    return found


def _refused(text: str, param: str) -> ApiError:
    return invalid(text, param, "host_not_allowed")


def _get(
    origin: Origin, url: str, allowed: Sequence[Origin], max_bytes: int, end: float, param: str
) -> tuple[bytes, str | None]:
    """(what is there, None), or (nothing, where it has moved to)."""
    connection = _Connection(origin, _addresses(origin, allowed, param))
    try:
        parts = urlsplit(url)
        path = parts._replace(scheme="", netloc="", path=parts.path or "/", fragment="").geturl()
        connection.request("GET", path, headers={"accept": "image/*"})
        reply = connection.getresponse()
        if reply.status in (301, 302, 303, 307, 308) and (onward := reply.getheader("location")):
            return b"", onward
        if reply.status != 200:
            raise OSError(f"status {reply.status}")
        return _read(reply, max_bytes, end, param), None
    finally:
        connection.close()


def _read(reply: http.client.HTTPResponse, max_bytes: int, end: float, param: str) -> bytes:
    content = b""
    while piece := reply.read1(2**16):
        content += piece
        if len(content) > max_bytes:
            raise invalid("the image's file is too large", param, "invalid_image")
        if time.monotonic() > end:
            raise TimeoutError
    if reply.length:
        raise http.client.IncompleteRead(content, reply.length)
    return content


def _addresses(origin: Origin, allowed: Sequence[Origin], param: str) -> list[str]:
    """The addresses of a host that may be asked: public ones, and those that are in the list themselves."""
    listed = {one.host for one in allowed}
    found = [str(info[4][0]) for info in socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)]
    usable = [one for one in found if one in listed or ipaddress.ip_address(one.partition("%")[0]).is_global]
    if found and not usable:
        raise _refused("the image's host has a private address, which this server does not fetch from", param)
    return usable


class _Connection(http.client.HTTPConnection):
    """A connection to one of the addresses that were checked, over TLS in the host's name where the scheme says so."""

    def __init__(self, origin: Origin, addresses: Sequence[str]) -> None:
        self.default_port = _PORTS[origin.scheme]  # not told in the header "host"
        super().__init__(origin.host, origin.port, timeout=_TIMEOUT_S)
        self._origin, self._addresses = origin, addresses

    def connect(self) -> None:
        self.sock = self._connected()
        if self._origin.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._origin.host)

    def _connected(self) -> socket.socket:
        for address in self._addresses[:-1]:
            try:
                return socket.create_connection((address, self._origin.port), _TIMEOUT_S)
            except OSError:
                continue
        return socket.create_connection((self._addresses[-1], self._origin.port), _TIMEOUT_S)
