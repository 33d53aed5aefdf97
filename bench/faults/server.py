"""``irg serve`` under kills, few file handles and a second server on its port. It writes no files: disks do not count.

A client asks for images, and again for those that it did not get. In the end each must be there, and be the one that an
undisturbed server draws.
"""

import json
import math
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

from campaign import Campaign, Child, Outcome, Work, digests, start
from works import call, model

from irg.files import write_bytes

IMAGES = 12
IDLE = 200  # connections that are opened to use up the server's handles


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(port: int, folder: Path) -> int:
    """Ask for the images that are not in ``folder``, each until it is answered."""
    for seed in range(IMAGES):
        place = folder / f"{seed:03d}.json"
        body = {"prompt": "x", "size": "32x32", "mode": "direct", "num_timesteps": 8, "seed": seed}
        asked = Request(
            f"http://127.0.0.1:{port}/v1/images/generations",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        while not place.exists():
            try:
                with urlopen(asked, timeout=60) as reply:
                    write_bytes(place, json.load(reply)["data"][0]["b64_json"].encode())
            except (OSError, ValueError):  # not there (yet), or gone in the middle of the answer
                time.sleep(0.02)
    return 0


class Serving(Campaign):
    """The faults of ``campaign.py``, where they mean something else for a server."""

    def __init__(self, base: Path, seed: int = 0, limit_s: float = math.inf) -> None:
        import irg.reasoning.pipeline
        import irg.serving.server  # noqa: F401  (what is imported here, forked servers need not import)

        self.port, self.model = free_port(), model(base)
        super().__init__(Work("serving", self._undisturbed, digests), base, seed, limit_s)

    def _serve(self, handles: int = 0, log: str = "server.txt") -> Child:
        words = ("serve", "--model", self.model, "--device", "cpu", "--port", self.port, "--no-page")
        limit = (handles, handles)
        before = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)) if handles else bool
        return start(lambda: call(*words), self.base / log, before)

    def _undisturbed(self, folder: Path) -> int:
        server = self._serve()
        ask(self.port, folder)
        server.kill(0)
        return 0

    def _client(self) -> Child:
        return start(lambda: ask(self.port, self.folder), self.base / "client.txt")

    def kill(self, count: int) -> Outcome:
        """The server is killed and started again until the client has all its images, then anew."""
        with self._measured("kill") as outcome:
            while outcome.faults < count and time.monotonic() < self.end:
                client = self._client()
                while client.alive:
                    server = self._serve()
                    outcome.faults += server.kill(self.rng.uniform(0, self.seconds))
                    if server.code not in (-9, 0):
                        outcome.problems.append(f"does not start: {server.told[-1500:]}")
                        client.kill(0)
                self._compare(outcome)
                outcome.rounds += 1
                self._clear()
        return outcome

    def handles(self, count: int) -> Outcome:
        """More connections than the server has file handles; it must answer once they are closed."""
        with self._measured("handles") as outcome:
            server = self._serve(handles=64)
            ask(self.port, self.folder)
            for _ in self._times(count):
                self._clear()
                idle = list(self._connections())
                time.sleep(0.3)
                for one in idle:
                    one.close()
                outcome.faults += 1
                ask(self.port, self.folder)
                self._compare(outcome)
                outcome.rounds += 1
            outcome.problems += [server.told[-1500:]] if not server.alive else []
            server.kill(0)
            self._clear()
        return outcome

    def _connections(self) -> Iterator[socket.socket]:
        for _ in range(IDLE):
            yield socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def twice(self, count: int) -> Outcome:
        """A second server on the port is refused in a line, and the first one is not disturbed."""
        with self._measured("twice") as outcome:
            server, client = self._serve(), self._client()
            for _ in self._times(count):
                other = self._serve(log="other.txt")
                self._ended_properly(other, outcome)
                outcome.faults += 1
                if other.code == 0:
                    outcome.problems.append("two servers on one port")
            client.wait()
            self._compare(outcome)
            outcome.rounds += 1
            server.kill(0)
            self._clear()
        return outcome
