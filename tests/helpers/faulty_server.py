"""A local OpenAI-compatible server that answers by rule, misbehaves on demand, and counts.

Requests are told apart by their Idempotency-Key, so that faults and answers depend on the request alone, never on its
company. ``log`` has one line for each arrival: (key, path, what was done).
"""

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Reply = Callable[[str, dict[str, Any]], Any]
"""(path, body) -> the text of a chat's answer, or an Image for the images endpoints; a dict is the whole response."""
FAULTS = ("429", "500", "truncated", "hang", "drop")


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


class FaultyServer:
    """``with FaultyServer(reply) as server:`` serves at ``server.url``.

    ``faults(key)`` names the faults that the first tries of a request meet, in order; ``wrong(key)`` says whether its
    image is of the wrong kind: "size", "bytes" or "".
    """

    def __init__(
        self,
        reply: Reply,
        faults: Callable[[str], tuple[str, ...]] = lambda key: (),
        wrong: Callable[[str], str] = lambda key: "",
        hang_s: float = 1.0,
        slow_s: float = 0.0,
    ) -> None:
        self.reply, self.faults, self.wrong, self.hang_s, self.slow_s = reply, faults, wrong, hang_s, slow_s
        self.log: list[tuple[str, str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()

    def answered(self) -> Counter[str]:
        """How often each request got its whole answer."""
        return Counter(key for key, _, done in list(self.log) if done == "200")

    def __enter__(self) -> "FaultyServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with server._lock:
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                try:
                    server._serve(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client was killed or lost patience
                finally:
                    with server._lock:
                        server.in_flight -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # a killed client leaves its connections in a bad state
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        path = handler.path.removeprefix("/v1/")
        key = handler.headers.get("Idempotency-Key", "")
        with self._lock:
            planned, done = self.faults(key), self._tries[key]
            self._tries[key] += 1
        fault = planned[done] if done < len(planned) else "200"
        self.log.append((key, path, fault))
        if fault == "429":
            return self._send(handler, 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.02"})
        if fault == "500":
            return self._send(handler, 500, {"error": {"message": "broken"}})
        if fault == "drop":
            handler.close_connection = True
            return None
        if fault == "hang":
            time.sleep(self.hang_s)
            handler.close_connection = True
            return None
        if fault not in ("200", "truncated"):  # "400 content_policy", "401", ...
            status, _, code = fault.partition(" ")
            return self._send(handler, int(status), {"error": {"message": "no", "code": code or None}})
        time.sleep(self.slow_s)
        body = _multipart(handler.headers["Content-Type"], data) if path == "images/edits" else json.loads(data)
        self.bodies.append(body)
        return self._send(handler, 200, self._answer(key, path, body), cut=fault == "truncated")

    def _answer(self, key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        said = self.reply(path, body)
        if isinstance(said, dict):
            return said
        if path == "chat/completions":
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            return {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": usage}
        wrong = self.wrong(key)
        if wrong == "size":
            said = said.resize((7, 7))
        data = b"this is no picture" if wrong == "bytes" else png(said)
        return {"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}]}

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler,
        status: int,
        answer: dict[str, Any],
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        data = json.dumps(answer).encode()
        data = data[: len(data) // 2] if cut else data
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(data)


def _multipart(content_type: str, data: bytes) -> dict[str, Any]:
    """The fields of a form; the image as bytes under "image"."""
    from email.parser import BytesParser

    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + data)
    fields: dict[str, Any] = {}
    for part in message.get_payload():
        value = part.get_payload(decode=True)
        name = part.get_param("name", header="content-disposition")
        fields[name] = value if part.get_filename() else value.decode()
    return fields
