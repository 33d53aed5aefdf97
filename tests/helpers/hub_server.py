"""A model hub with one repository, ``someone/tiny``, over HTTP: as much of the protocol as the library needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
REPOSITORY = "someone/tiny"


@contextmanager
def hub_server(folder: Path, cut: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve a folder's files; yields (address, [(method and path, range)]). ``cut`` breaks off once, in the middle."""
    seen: list[tuple[str, str | None]] = []
    left = [cut]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            seen.append((f"{self.command} {path}", self.headers.get("Range")))
            file = folder / path.rpartition("/")[2]
            if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                self._json([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in _sizes(folder)])
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                files = [{"rfilename": name, "size": size, "blobId": "0" * 40} for name, size in _sizes(folder)]
                self._json({"_id": "1", "id": REPOSITORY, "sha": COMMIT, "siblings": files, "tags": []})
            elif path.startswith(f"/{REPOSITORY}/resolve/") and file.is_file():
                self._file(file)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, file: Path) -> None:
            content = file.read_bytes()
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            headers |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            broken = self.command == "GET" and file.name in left
            if broken:
                left.remove(file.name)
            self._send(206 if start else 200, content[start:], headers, len(content) // 2 if broken else None)

        def _send(self, status: int, body: bytes, headers: dict[str, str], only: int | None = None) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:only])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def _sizes(folder: Path) -> list[tuple[str, int]]:
    return [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
