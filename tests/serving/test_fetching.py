"""Images from other hosts: what the list lets in, redirects, names of private addresses."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

from irg.reasoning.pipeline import IRGPipeline
from irg.serving import fetching
from irg.serving.errors import ApiError
from irg.serving.fetching import Origin, fetch, origin_of
from irg.serving.options import ServerOptions
from serving import picture, serving

PICTURE = picture()


class Handler(BaseHTTPRequestHandler):
    """A picture at /a.png, and addresses that lead elsewhere."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        seen: list[tuple[str, str]] = self.server.seen  # type: ignore[attr-defined]
        seen.append((self.headers["host"], self.path))
        kind, _, query = self.path.partition("?")
        moved = kind == "/moved"
        content = PICTURE if kind == "/a.png" else b""
        self.send_response(302 if moved else 200 if content else 404)
        if moved:
            self.send_header("location", query.removeprefix("to="))
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hosting() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refused(url: str, *hosts: str) -> str:
    with pytest.raises(ApiError) as caught:
        fetch(url, hosts, 10_000, "image")
    assert caught.value.status == 400 and caught.value.param == "image"
    return str(caught.value.code)


def test_a_listed_host_is_fetched_from(hosting: Any, tiny_pipe: IRGPipeline, options: ServerOptions) -> None:
    """A chat about an image by its address, end to end."""
    base = f"http://127.0.0.1:{hosting.server_port}"

    def ask(url: str) -> str:
        image = {"type": "image_url", "image_url": {"url": url}}
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}]
        own = {"seed": 7}
        answer = running.client().chat.completions.create(model="tiny", messages=messages, max_tokens=6, extra_body=own)
        return answer.choices[0].message.content or ""

    with serving(tiny_pipe, replace(options, image_hosts=(base,))) as running:
        assert ask(f"{base}/a.png?x=1#y") == running.model.pipe.ask(PICTURE, "what is it?", seed=7, max_tokens=6)
        assert hosting.seen == [(f"127.0.0.1:{hosting.server_port}", "/a.png?x=1")]
        with pytest.raises(openai.BadRequestError, match="fetches no images from there"):
            ask(f"http://127.0.0.1:{running.url.rpartition(':')[2]}/metrics")
        with pytest.raises(openai.BadRequestError, match="could not be fetched"):
            ask(f"{base}/nothing")


def test_redirects_are_held_against_the_list(hosting: Any) -> None:
    base = f"http://127.0.0.1:{hosting.server_port}"
    assert fetch(f"{base}/moved?to=/a.png", [base], 10_000, "image") == PICTURE
    for target in ("http://127.0.0.1:1/x", "http://169.254.169.254/x", "file:///etc/passwd", "https://a.example/"):
        assert refused(f"{base}/moved?to={target}", base) == "host_not_allowed"
    assert refused(f"{base}/moved?to=/moved?to=/moved?to=/moved?to=/a.png", base) == "invalid_image"  # a fourth one
    assert [path for _, path in hosting.seen].count("/a.png") == 1


def test_a_name_of_a_private_address_is_refused(hosting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the address is in the list; the name is asked for once, so that it can't lead elsewhere afterwards."""
    asked = []

    def resolved(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (lookup[host], hosting.server_port))]

    lookup = {"pictures.example": "127.0.0.1"}
    monkeypatch.setattr(fetching.socket, "getaddrinfo", resolved)
    port = hosting.server_port
    named, url = f"http://pictures.example:{port}", f"http://pictures.example:{port}/a.png"
    for address in ("127.0.0.1", "10.0.0.5", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.0"):
        lookup["pictures.example"] = address
        assert refused(url, named) == "host_not_allowed"
    for address in ("::1", "fe80::1%eth0", "::ffff:127.0.0.1", "fd00::1"):
        lookup["pictures.example"] = address
        assert refused(url, named) == "host_not_allowed"
    assert hosting.seen == []
    monkeypatch.undo()
    monkeypatch.setattr(fetching, "_addresses", lambda *_: ["127.0.0.1"])  # as if the address were in the list
    assert fetch(url, [named], 10_000, "image") == PICTURE
    assert hosting.seen == [(f"pictures.example:{port}", "/a.png")]


def test_an_address_in_the_list_lets_its_names_in(monkeypatch: pytest.MonkeyPatch) -> None:
    info = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 443)) for one in ("10.0.0.5", "10.0.0.6", "8.8.8.8")]
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: info)
    allowed = [origin_of("a.example"), origin_of("10.0.0.5")]
    assert fetching._addresses(allowed[0], allowed, "image") == ["10.0.0.5", "8.8.8.8"]


def test_a_file_that_is_too_large(hosting: Any) -> None:
    base = f"http://127.0.0.1:{hosting.server_port}"
    with pytest.raises(ApiError, match="too large"):
        fetch(f"{base}/a.png", [base], len(PICTURE) - 1, "image")


@pytest.mark.parametrize(
    "url", ["http://a.example/x", "https://b.example/", "https://a.example:8/", "https://u@a.example/"]
)
def test_only_listed_origins_are_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_Connection", lambda *_: pytest.fail("something is fetched"))
    assert refused(url, "a.example") == "host_not_allowed"


def test_how_hosts_are_named() -> None:
    assert origin_of("a.example") == Origin("https", "a.example", 443)
    assert origin_of("http://10.0.0.5:8000") == Origin("http", "10.0.0.5", 8000)
    for text in ("", "ftp://a.example", "a.example/path", "https://u@a.example", "a.example:99999"):
        with pytest.raises(ValueError, match="image_hosts"):
            ServerOptions(image_hosts=(text,))
