"""One replica of ``irg serve --ray``, without Ray: it answers what is sent on, and drops what nobody waits for."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.serving.cluster.replica import Replica
from irg.serving.options import ServerOptions
from serving import pixels, until


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("replica")
    write_folder(place, tiny_loaded.config)
    return place


@pytest.fixture(scope="module")
def replica(folder: Path) -> Iterator[Replica]:
    made = Replica({"model": str(folder), "device": "cpu"}, ServerOptions(store_urls=False))
    yield made
    asyncio.run(made.service.close())


def asked(replica: Replica, **fields: Any) -> Any:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"x-request-id", b"its-own")]
    path = "/v1/images/generations"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http", "root_path": "", "headers": headers, "asgi": {"version": "3.0"}}
    return replica.answer(scope, json.dumps({"prompt": "x", "size": "32x32", "mode": "direct"} | fields).encode())


async def whole(answer: Any) -> tuple[int, dict[str, str], Any]:
    messages = [message async for message in answer]
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], headers, json.loads(b"".join(one.get("body", b"") for one in messages[1:]))


def test_an_answer_comes_as_messages(replica: Replica) -> None:
    status, headers, answer = asyncio.run(whole(asked(replica, seed=7)))
    assert (status, headers["x-request-id"]) == (200, "its-own")
    assert pixels(answer["data"][0]["b64_json"]).shape == (32, 32, 3)


def test_a_replica_keeps_no_images(replica: Replica) -> None:
    """The request for the URL would reach any of them."""
    status, _, answer = asyncio.run(whole(asked(replica, response_format="url")))
    assert status == 400 and answer["error"]["param"] == "response_format"


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_waits_for_is_dropped(replica: Replica, stream: bool) -> None:
    model = replica.service.model
    assert model is not None
    engine = model.engine

    async def leave() -> None:
        answer = asked(replica, num_timesteps=200, stream=stream)
        first = asyncio.ensure_future(anext(answer))
        while engine.sizes != (1, 0):
            await asyncio.sleep(0.005)
        if stream:
            assert (await first)["type"] == "http.response.start"
        else:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await answer.aclose()

    asyncio.run(leave())
    until(lambda: engine.sizes == (0, 0) and model.pipe.engine.runner.cache.tokens == 0)
    assert "cancelled" in replica.service.scrape().decode()


def test_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="unknown model"):
        Replica({"model": "/nowhere/model"}, ServerOptions())


def test_a_replica_whose_engine_has_ended_is_ill(folder: Path) -> None:
    made = Replica({"model": str(folder), "device": "cpu"}, ServerOptions())
    made.check_health()
    asyncio.run(made.service.close())
    with pytest.raises(RuntimeError, match="thread has ended"):
        made.check_health()
