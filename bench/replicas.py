"""One server against ``irg serve --ray``: seconds of a burst of requests, in turns, so that other load hits both.

    python bench/replicas.py --replicas 2 --repeats 8

Also says how long the cluster needs to start, and memory of all its processes. Needs the extra ``scale``.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

from serve_load import Client, Server, tiny_folder


async def burst(server: Server, count: int) -> float:
    """Seconds of so many requests at once."""
    client = Client(server.port)

    async def one(seed: int) -> None:
        fields = {"prompt": "a red vase", "seed": seed, "mode": "direct"}
        status, _, content = await client.whole("/v1/images/generations", json.dumps(fields).encode(), f"burst-{seed}")
        assert status == 200, content[:300]

    started = time.perf_counter()
    await asyncio.gather(*(one(seed) for seed in range(count)))
    return time.perf_counter() - started


def cluster_memory_mb() -> dict[str, float]:
    """Resident memory of Ray's processes on this machine, by kind."""
    found: dict[str, float] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace")
            lines = (path / "status").read_text().splitlines()
        except OSError:
            continue
        if "raylet" in words or "gcs_server" in words or words.startswith("ray::"):
            kind = "replicas" if ":irg:replica" in words else "the rest"
            held = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
            found[kind] = round(found.get(kind, 0.0) + held, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--requests", type=int, default=8, help="of a burst")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="a random model that draws in milliseconds")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_folder(folder) if options.tiny else "mini"
        started = time.perf_counter()
        many = Server(model, 8, ["--ray", "--replicas", str(options.replicas)], port)
        report = {"seconds_to_start": round(time.perf_counter() - started, 1)}
        single = Server(model, 8)
        try:
            pairs = []
            for turn in range(options.repeats + 1):
                servers = (single, many) if turn % 2 else (many, single)
                seconds = {server: asyncio.run(burst(server, options.requests)) for server in servers}
                pairs.append((seconds[single], seconds[many]))
            del pairs[0]  # it warms up
            report["memory_mb"] = cluster_memory_mb()
        finally:
            report["exit_codes"] = [single.end(), many.end()]
    low, middle, high = statistics.quantiles([one / two for one, two in pairs], n=4)
    report |= {"single_s": [round(one, 2) for one, _ in pairs], "ray_s": [round(two, 2) for _, two in pairs]}
    report["throughput_ratio"] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
