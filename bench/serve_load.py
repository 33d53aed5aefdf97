"""Load on ``irg serve``: many clients, mixed requests, clients that go away or read slowly, malformed bodies.

    python bench/serve_load.py --requests 300 --clients 8 --out load.json
    python bench/serve_load.py --requests 10000 --clients 32 --tiny
    python bench/serve_load.py --requests 0 --repeats 20

Starts a server of its own (irg-mini, or with ``--tiny`` a random model that draws in milliseconds), sends the requests,
and checks that each one was answered once, with the answer that its kind must have, and that a request's image is its
own (by its seed). Then it compares the server with the bare engine: a request alone, and eight at a time. The report is
JSON; the exit code is 1 if a request was lost, answered wrongly or twice, or memory grew by more than a tenth.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMALL = {"num_timesteps": 4, "improve_num_timesteps": 3, "max_think_tokens": 24}
KINDS = ("draw", "think", "loop", "stream", "chat", "leave", "slow", "malformed", "unknown")
WEIGHTS = (6, 4, 4, 4, 2, 3, 1, 1, 1)


class Client:
    """Plain HTTP over a connection of its own for each request, so that it can misbehave."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def send(self, path: str, body: bytes, ident: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nx-request-id: {ident}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer

    async def whole(self, path: str, body: bytes, ident: str, pause_s: float = 0.0) -> tuple[int, list[str], bytes]:
        """(status, the ids in the answer, body); a slow reader takes small bites with pauses between them."""
        reader, writer = await self.send(path, body, ident)
        try:
            content = b""
            while piece := await reader.read(2000 if pause_s else 2**20):
                content += piece
                if pause_s:
                    await asyncio.sleep(pause_s)
        finally:
            writer.close()
        head, _, rest = content.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        ids = [line.partition(": ")[2] for line in lines if line.lower().startswith("x-request-id")]
        return (
            int(lines[0].split()[1]),
            ids,
            _unchunked(rest) if b"transfer-encoding: chunked" in head.lower() else rest,
        )


def _unchunked(content: bytes) -> bytes:
    parts, at = [], 0
    while at < len(content):
        end = content.index(b"\r\n", at)
        size = int(content[at:end], 16)
        parts.append(content[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


def request_of(kind: str, seed: int, sizes: list[str], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """(path, fields) of a request of a kind."""
    modes = {"draw": "direct", "think": "think", "loop": "irg", "stream": "irg"}
    fields: dict[str, Any] = {"seed": seed, **SMALL, "size": rng.choice(sizes), "mode": modes.get(kind, "direct")}
    if fields["mode"] != "irg":
        del fields["improve_num_timesteps"]
    if kind == "chat":
        return "/v1/chat/completions", fields | {"messages": [{"role": "user", "content": f"a vase, {seed}"}]}
    fields["prompt"] = f"a vase, {seed}"
    if kind in ("stream", "leave", "slow"):
        fields["stream"] = True
    if kind == "unknown":
        fields["sede"] = 1
    return "/v1/images/generations", fields


async def one(client: Client, number: int, sizes: list[str], results: Counter[str], times: list[float]) -> None:
    """Send a request and check its answer; anything wrong counts under a name that begins with ``bad``."""
    rng = random.Random(number)
    kind = rng.choices(KINDS, WEIGHTS)[0]
    path, fields = request_of(kind, number, sizes, rng)
    body = json.dumps(fields).encode()
    ident = f"load-{number}"
    started = time.perf_counter()
    try:
        if kind == "leave":
            _, writer = await client.send(path, body, ident)
            await asyncio.sleep(rng.random() * 0.5)
            writer.close()
            results["left"] += 1
            return
        if kind == "malformed":
            body = body[: len(body) // 2]
        status, ids, content = await client.whole(path, body, ident, 0.002 if kind == "slow" else 0.0)
    except (OSError, ValueError, IndexError) as error:
        results[f"bad {kind}: lost ({type(error).__name__})"] += 1
        return
    if ids != [ident]:
        results[f"bad {kind}: answered with the ids {ids}"] += 1
    elif status in (429, 503):
        results["refused: come again"] += 1
        await asyncio.sleep(0.2)
        await one(client, number, sizes, results, times)
    elif kind in ("malformed", "unknown"):
        results["refused: mistake" if status == 400 else f"bad {kind}: status {status}"] += 1
    elif status != 200:
        results[f"bad {kind}: status {status}"] += 1
    else:
        problem = check(kind, content, number)
        results[f"bad {kind}: {problem}" if problem else "answered"] += 1
        times.append(time.perf_counter() - started)


def check(kind: str, content: bytes, seed: int) -> str:
    """What is wrong with an answer; empty: nothing."""
    if kind in ("stream", "slow"):
        events = [json.loads(line[6:]) for line in content.decode().splitlines() if line.startswith("data: ")]
        completed = [event for event in events if event["type"].endswith(".completed")]
        if len(completed) != 1 or events[-1] is not completed[0]:
            return f"{len(completed)} completed events"
        return "" if completed[0]["irg"]["seed"] == seed else "another request's image"
    data = json.loads(content)
    if kind == "chat":
        told = [choice["message"]["irg"] for choice in data["choices"]]
    else:
        told = [image["irg"] for image in data["data"]]
    if len(told) != 1:
        return f"{len(told)} images"
    return "" if told[0]["seed"] == seed else "another request's image"


class Server:
    """``irg serve`` in a process of its own."""

    def __init__(self, model: str, clients: int, words: Sequence[str] = (), port: int = 0) -> None:
        line = [sys.executable, "-m", "irg", "serve", "--model", model, "--port", str(port), "--device", "cpu"]
        line += ["--max-waiting", str(2 * clients), *words]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.port = 0
        for text in self.process.stderr:
            if text.startswith("Listening on "):
                self.port = int(text.rpartition(":")[2])
            if text.startswith("Ready: "):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=self._drop_log, daemon=True).start()

    def _drop_log(self) -> None:
        assert self.process.stderr is not None
        for _ in self.process.stderr:
            pass

    @property
    def memory_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def metrics(self) -> dict[str, float]:
        from urllib.request import urlopen

        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as reply:
            lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(120)


async def load(server: Server, requests: int, clients: int, sizes: list[str]) -> dict[str, Any]:
    """All requests by so many clients; memory is noted ten times on the way."""
    client, results, times = Client(server.port), Counter[str](), []
    numbers = iter(range(requests))
    memory: list[float] = []

    async def work() -> None:
        for number in numbers:
            await one(client, number, sizes, results, times)
            if number % max(1, requests // 10) == 0:
                memory.append(round(server.memory_mb, 1))

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    seconds = time.perf_counter() - started
    ended = sum(count for name, count in results.items() if name != "refused: come again")
    return {
        "requests": requests,
        "clients": clients,
        "results": dict(results),
        "lost": requests - ended,
        "wrong": sum(count for name, count in results.items() if name.startswith("bad")),
        "seconds": round(seconds, 2),
        "requests_per_second": round(requests / seconds, 2),
        "latency_s": {"median": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1]},
        "memory_mb": memory,
    }


async def against_engine(server: Server, model: str, repeats: int) -> dict[str, Any]:
    """A request alone, and eight at a time, over HTTP and by the pipeline in this process.

    Both ways are timed right after each other, now the one first, now the other, and compared pair by pair: what else
    the machine does then hits both.
    """
    from irg.reasoning.pipeline import IRGPipeline

    pipe = IRGPipeline.from_pretrained(model, "cpu")
    client = Client(server.port)
    options: dict[str, Any] = {"mode": "direct"}

    async def http(seed: int) -> None:
        body = json.dumps({"prompt": "a red vase", "seed": seed} | options).encode()
        status, _, _ = await client.whole("/v1/images/generations", body, f"bare-{seed}")
        assert status == 200

    async def timed(way: str, count: int) -> float:
        started = time.perf_counter()
        if way == "http":
            await asyncio.gather(*(http(seed) for seed in range(count)))
        else:
            pipe(["a red vase"] * count, seed=list(range(count)), **options)
        return time.perf_counter() - started

    report: dict[str, Any] = {"repeats": repeats}
    for count in (1, 8):
        pairs = []
        for turn in range(repeats + 1):
            ways = ("http", "pipe") if turn % 2 else ("pipe", "http")
            pairs.append({way: await timed(way, count) for way in ways})
        del pairs[0]  # it warms up
        for way in ("http", "pipe"):
            report[f"{way}_{count}_s"] = round(statistics.median(pair[way] for pair in pairs), 4)
        report[f"throughput_at_{count}"] = _spread([pair["pipe"] / pair["http"] for pair in pairs])
    return report


def _spread(ratios: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def tiny_folder(place: str) -> str:
    from dataclasses import replace

    from irg.model.network.autoencoder import CompactConfig
    from irg.model.network.config import tiny
    from irg.model.weights.initialize import write_folder

    thin = CompactConfig(12, (8, 16), (1, 1), (4, 8, 16), (1, 1, 1))
    write_folder(Path(place), replace(tiny(vocab_size=260), autoencoder=thin))
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=300, help="of the load; 0 leaves it out")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="a random model that draws in milliseconds")
    parser.add_argument(
        "--repeats", type=int, default=10, help="pairs of the comparison with the bare engine; 0 leaves it out"
    )
    parser.add_argument("--out", help="write the report here, too")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_folder(folder) if options.tiny else "mini"
        sizes = ["32x32", "64x32", "32x64"] if options.tiny else ["64x64", "128x64", "96x128"]
        server = Server(model, options.clients)
        try:
            report: dict[str, Any] = {}
            if options.requests:
                report = asyncio.run(load(server, options.requests, options.clients, sizes))
            if options.repeats:
                report["against_engine"] = asyncio.run(against_engine(server, model, options.repeats))
            left = server.metrics()
            report["left_over"] = {name: left[name] for name in ("irg_running", "irg_waiting", "irg_kv_cache_tokens")}
        finally:
            report_code = server.end()
        report["exit_code"] = report_code
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
    memory = report.get("memory_mb", [])
    half = memory[len(memory) // 2 :]
    flat = max(half, default=0) <= 1.1 * (half[0] if half else 0)
    fine = not any((report.get("lost"), report.get("wrong"), *report["left_over"].values(), report_code))
    return 0 if fine and flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
