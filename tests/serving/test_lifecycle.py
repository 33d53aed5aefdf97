"""Clients that go away, and servers that are told to end, or are killed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.pipeline import IRGPipeline
from irg.serving.options import ServerOptions
from irg.serving.server import LoopFailures
from serving import Running, serving, until

GENERATE = "/v1/images/generations"
STUCK = {"prompt": "x", "critic": "gate", "mode": "irg"}


def sent(running: Running, body: dict[str, object]) -> socket.socket:
    """A connection on which a request has been sent."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    content = json.dumps(body).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_request_along(served: Running, stream: bool) -> None:
    before = len(served.gate.asked)
    connection = sent(served, STUCK | {"stream": stream})
    until(lambda: len(served.gate.asked) == before + 1)
    assert served.metric("irg_kv_cache_tokens") > 0
    connection.close()
    until(lambda: served.metric("irg_kv_cache_tokens") == served.metric("irg_running") == 0)
    assert served.call(GENERATE, {"prompt": "x", "mode": "direct"}).status == 200


def test_silence_is_filled_with_comments(tiny_pipe: IRGPipeline, options: ServerOptions) -> None:
    with serving(tiny_pipe, replace(options, keepalive_s=0.05)) as running:
        connection = sent(running, STUCK | {"stream": True})
        received = b""
        while received.count(b": keepalive\n\n") < 2:
            received += connection.recv(4096)
        running.gate.open()
        while b"image_generation.completed" not in received:
            received += connection.recv(65536)
        assert b"content-type: text/event-stream" in received.lower()
        connection.close()


def test_a_client_that_does_not_read_is_dropped(tiny_pipe: IRGPipeline, options: ServerOptions) -> None:
    """Both buffers are tiny (the server's grows to megabytes by default): it can't send, and gives up."""
    limits = replace(options.limits, send_timeout_s=0.3, max_running=8, max_images=8)
    with serving(tiny_pipe, replace(options, limits=limits)) as running:
        (listening,) = running.server.servers[0].sockets
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of the connections that it accepts, too
        host, _, port = running.url.removeprefix("http://").partition(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        noise = {"prompt": "x", "size": "128x128", "mode": "irg", "rounds": 8, "n": 8, "stream": True}
        content = json.dumps(noise | {"num_timesteps": 2, "improve_num_timesteps": 2, "stop_when_done": False}).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: running.metric('irg_stops_total{reason="cancelled"}') > 0)
        until(lambda: running.metric("irg_kv_cache_tokens") == running.metric("irg_running") == 0)
        connection.close()


def test_errors_after_the_headers_come_as_an_event(served: Running) -> None:
    import openai

    before = len(served.gate.asked)
    stream = served.client().images.generate(prompt="x", stream=True, extra_body={"critic": "gate", "mode": "irg"})
    assert next(stream).type == "image_generation.partial_image"
    until(lambda: len(served.gate.asked) == before + 1)
    served.gate.asked[-1].set_exception(RuntimeError("the critic broke"))
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "generation_failed"


def test_work_that_has_begun_is_not_to_be_repeated(tiny_pipe: IRGPipeline, options: ServerOptions) -> None:
    with serving(tiny_pipe, replace(options, limits=replace(options.limits, timeout_s=0.3))) as running:
        reply = running.call(GENERATE, STUCK)
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert reply.headers["x-should-retry"] == "false"


def test_a_full_queue_says_when_to_come_again(tiny_pipe: IRGPipeline, options: ServerOptions) -> None:
    limits = replace(options.limits, max_running=1, max_waiting=1)
    with serving(tiny_pipe, replace(options, limits=limits)) as running:
        first = sent(running, STUCK)
        until(lambda: len(running.gate.asked) == 1)
        second = sent(running, STUCK)
        until(lambda: running.model.engine.sizes == (1, 1))
        reply = running.call(GENERATE, STUCK)
        assert (reply.status, reply.error["type"], reply.error["code"]) == (429, "rate_limit_error", "queue_full")
        assert int(reply.headers["retry-after"]) >= 1 and "x-should-retry" not in reply.headers
        assert running.metric('irg_rejections_total{reason="queue_full"}') == 1
        first.close()
        second.close()


def test_the_same_failure_of_the_loop_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """As when there are no file handles left for new connections: asyncio tells it for each place in the backlog."""
    loop, failures = asyncio.new_event_loop(), LoopFailures()
    loop.set_exception_handler(failures)
    context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with caplog.at_level("ERROR", "irg.serve"):
        for _ in range(1000):
            loop.call_exception_handler(context)
        loop.call_exception_handler({"message": "something else"})
    loop.close()
    messages = [record.getMessage() for record in caplog.records]
    assert set(messages) == {context["message"], "something else"} and len(messages) < 20


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    write_folder(place, tiny_loaded.config)
    return place


@contextmanager
def command(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``irg serve`` in a process of its own, ready; and its address."""
    line = [sys.executable, "-m", "irg", "serve", "--model", str(folder), "--device", "cpu", "--no-page", *words]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert process.stderr is not None
    try:
        url = ""
        for text in process.stderr:
            url = url or (text.split()[-1] if text.startswith("Listening on ") else "")
            if text.startswith("Ready: "):
                break
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


LONG = {"prompt": "x", "size": "64x64", "mode": "direct", "num_timesteps": 200, "stream": True}


def test_a_server_that_is_killed_and_one_that_is_told_to_end(folder: Path) -> None:
    """Killed while it works, it leaves nothing that hinders the next; that one finishes what runs and ends with 0."""
    files = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    request = {"data": json.dumps(LONG).encode(), "headers": {"content-type": "application/json"}}
    with command(folder, "--port", "0") as (process, url), urlopen(Request(url + GENERATE, **request), timeout=60):
        process.kill()
        process.wait(60)
    with command(folder, "--port", url.rpartition(":")[2]) as (process, again):
        assert again == url
        with urlopen(Request(url + GENERATE, **request), timeout=60) as reply:  # the headers are there: it has begun
            process.send_signal(signal.SIGTERM)
            assert b"image_generation.completed" in reply.read()
        assert process.wait(60) == 0
        with pytest.raises(OSError):
            urlopen(Request(url + GENERATE, **request), timeout=60)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == files
