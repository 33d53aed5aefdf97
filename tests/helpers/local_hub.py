"""As much of the Hugging Face hub as an upload needs, on this machine: it takes files by commit and keeps them."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalHub:
    """``with LocalHub() as hub:`` serves at ``hub.url``; ``hub.files`` is what the one repository holds.

    ``refuse``: the HTTP status that commits get.
    """

    def __init__(self, refuse: int | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[str, Any]] = []
        self.refuse = refuse

    def __enter__(self) -> "LocalHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(*hub.answer(self.path, b""))

            def do_POST(self) -> None:
                self._send(*hub.answer(self.path, self.rfile.read(int(self.headers["Content-Length"] or 0))))

            def _send(self, status: int, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, data: bytes) -> tuple[int, Any]:
        """What the hub says to a request."""
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            body = json.loads(data)
            self.log.append(("create", body))
            return 200, {"url": f"{self.url}/datasets/{body['organization']}/{body['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = [one["path"] for one in json.loads(data)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]
            return 200, {"files": modes}
        if "/commit/" in path and self.refuse is not None:
            return self.refuse, {"error": "you may not do that here"}
        if "/commit/" in path:
            self._commit([json.loads(line) for line in data.splitlines()])
            return 200, {"commitUrl": f"{self.url}/datasets/me/rows/commit/{'0' * 40}", "commitOid": "0" * 40}
        if "/tree/" in path:
            return 200, [
                {"type": "file", "path": name, "size": len(held), "oid": ""} for name, held in self.files.items()
            ]
        siblings = [{"rfilename": name} for name in self.files]
        return 200, {"id": "me/rows", "sha": "0" * 40, "siblings": siblings, "private": True}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            self.log.append((line["key"], line["value"].get("path")))
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "deletedFile":
                del self.files[line["value"]["path"]]
