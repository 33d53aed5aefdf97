"""``irg serve --ray`` in processes of its own: a front, two replicas; one of them ends in the middle of a request."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from irg.cli.main import main
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from serving import pixels

KEY = "irg-the-key-of-the-cluster"
LONG = {"prompt": "x", "size": "64x64", "mode": "direct", "num_timesteps": 200, "stream": True}
HERE = Path(__file__).resolve().parents[2] / "src"
with_ray = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[serve]: the extra scale"),
]


class Cluster:
    """A running ``irg serve --ray``."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def client(self, key: str = KEY) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=120)

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
        reply = connection.getresponse()
        found = reply.status, reply.read().decode()
        connection.close()
        return found

    def stream(self, **fields: Any) -> Any:
        return self.client().images.generate(prompt="x", stream=True, extra_body=LONG | fields)

    def replicas(self) -> list[int]:
        """The processes that hold a model."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                title = path.read_bytes()
                mine = f":{self.port}:" in (path.parent / "environ").read_text(errors="replace")
            except OSError:
                continue
            if title.startswith(b"ray::ServeReplica:irg:replica") and mine:
                found.append(int(path.parent.name))
        return sorted(found)


@pytest.fixture(scope="module")
def cluster(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    write_folder(folder, tiny_loaded.config)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": paths, "IRG_API_KEYS": KEY, "IRG_TEST_CLUSTER": f":{port}:", "OMP_NUM_THREADS": "1"}
    waits = ("SERVE_PROXY_READY_CHECK_TIMEOUT_S", "SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "raylet_start_wait_time_s")
    slow = {f"RAY_{name}": "200" for name in waits} | {"RAY_agent_register_timeout_ms": "200000"}  # on a busy machine
    line = [sys.executable, "-m", "irg", "serve", "--ray", "--model", str(folder), "--device", "cpu"]
    line += ["--port", str(port), "--replicas", "2", "--max-running", "4"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=os.environ | own | slow)
    assert process.stderr is not None
    said: list[str] = []
    for text in process.stderr:
        said.append(text)
        if text.startswith("Ready: "):
            break
    else:
        pytest.fail("".join(said[-50:]))
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield Cluster(process, port)
    process.kill()
    process.wait()


def until(condition: Any) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


class TestCluster:
    pytestmark = with_ray

    def test_the_api_is_the_same(self, cluster: Cluster) -> None:
        answer: Any = cluster.client().images.generate(prompt="x", n=2, extra_body=LONG | {"stream": False})
        assert pixels(answer.data[1].b64_json).shape == (64, 64, 3)
        assert cluster.client().models.list().data[0].capabilities["limits"]["max_images"]  # type: ignore[attr-defined]
        with pytest.raises(openai.AuthenticationError):
            cluster.client("wrong").models.list()
        with pytest.raises(openai.BadRequestError, match="keeps no images") as caught:
            cluster.client().images.generate(prompt="x", response_format="url")
        assert caught.value.request_id and caught.value.param == "response_format"
        assert cluster.get("/health")[0] == cluster.get("/ready")[0] == 200

    def test_images_are_streamed_through_the_proxy(self, cluster: Cluster) -> None:
        kinds = [event.type.removeprefix("image_generation.") for event in cluster.stream(partial_images=2)]
        assert kinds == ["partial_image", "partial_image", "completed"]

    def test_a_client_that_goes_frees_its_place(self, cluster: Cluster) -> None:
        """The first event comes while the rest is still to be done: else nothing could be cancelled."""
        before = cancelled(cluster)
        events = cluster.stream(partial_images=3, num_timesteps=200, size="128x128")
        next(events)
        events.close()
        until(lambda: cancelled(cluster) > before)
        assert running(cluster) == 0

    def test_a_replica_that_dies_takes_its_requests_with_it_and_no_others(self, cluster: Cluster) -> None:
        streams = [cluster.stream(partial_images=3, size="128x128") for _ in range(4)]  # on both replicas
        for events in streams:
            assert next(events).type == "image_generation.partial_image"
        os.kill(cluster.replicas()[0], signal.SIGKILL)
        ended = [_ending(events) for events in streams]
        assert set(ended) == {"replica_died", "image_generation.completed"}
        answers = [cluster.client().images.generate(prompt="x", extra_body=LONG | {"stream": False}) for _ in range(4)]
        assert all(one.data for one in answers)
        until(lambda: len(cluster.replicas()) == 2)

    def test_what_runs_is_finished_when_the_server_is_told_to_end(self, cluster: Cluster) -> None:
        events = cluster.stream(partial_images=3, size="128x128")
        next(events)
        cluster.process.send_signal(signal.SIGTERM)
        assert _ending(events) == "image_generation.completed"
        assert cluster.process.wait(120) == 0


def _ending(events: Any) -> str:
    try:
        return [event.type for event in events][-1]
    except openai.APIError as error:
        return str(error.code)


def _metric(cluster: Cluster, line: str) -> float:
    """The most of a number that a few answers tell; each is one replica's."""
    pages = [cluster.get("/metrics")[1] for _ in range(8)]
    found = [text for page in pages for text in page.splitlines() if text.startswith(f"{line} ")]
    return max((float(text.rpartition(" ")[2]) for text in found), default=0.0)


def running(cluster: Cluster) -> float:
    return _metric(cluster, "irg_running")


def cancelled(cluster: Cluster) -> float:
    return _metric(cluster, 'irg_stops_total{reason="cancelled"}')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "2"], "--replicas is for --ray"),
        (["--ray", "--port", "0"], "--port 0 can't be had with --ray" if not with_ray[1].args[0] else "needs ray"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[serve]: the extra scale")
def test_replicas_scale_by_the_requests_of_each() -> None:
    """Between the least and the most, by what one runs at once; without a most their number is fixed."""
    from irg.serving.cluster.run import ClusterOptions, _scaling

    assert _scaling(ClusterOptions(2), running=8) == {"num_replicas": 2}
    config = _scaling(ClusterOptions(1, 4), running=8)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (1, 4, 8)
