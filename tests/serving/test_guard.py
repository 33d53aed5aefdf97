"""The door: ids, keys, hosts, origins, bodies; and everything that is no request for an image."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

from irg.reasoning.pipeline import IRGPipeline
from irg.serving.auth import ApiKeys
from irg.serving.options import ServerOptions
from serving import Running, serving, until

KEYS = ("irg-first-key-of-the-tests", "irg-second-key-of-the-tests")
GENERATE = "/v1/images/generations"


@pytest.fixture(scope="module")
def keyed(tiny_pipe: IRGPipeline, options: ServerOptions) -> Iterator[Running]:
    keys = ApiKeys()
    keys.add_plain(KEYS)
    with serving(tiny_pipe, replace(options, allow_origins=("https://page.example",)), keys) as running:
        yield running


def test_every_key_lets_in_and_nothing_else(keyed: Running) -> None:
    for key in KEYS:
        assert keyed.client(key).models.list().data[0].id == "tiny"
    for authorization in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEYS[0]}"}):
        for path, body in ((GENERATE, {"prompt": "x"}), ("/v1/models", None), ("/metrics", None), ("/docs", None)):
            reply = keyed.call(path, body, authorization)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        keyed.client("wrong").images.generate(prompt="x")
    assert keyed.call("/health").status == keyed.call("/ready").status == 200


def test_neither_keys_nor_prompts_are_logged(keyed: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "irg.serve")
    keyed.call(GENERATE, {"prompt": "a secret wish", "n": 0}, {"authorization": "Bearer irg-not-a-key-at-all"})
    keyed.client(KEYS[1]).images.generate(prompt="a secret wish", extra_body={"mode": "direct"})
    until(lambda: len(caplog.records) >= 2)
    lines = [str(vars(record)) for record in caplog.records]
    assert any("'key': 'key-2'" in line and "'images': 1" in line for line in lines)
    assert not any("secret" in line or KEYS[1] in line or "not-a-key" in line for line in lines)


def test_prompts_are_logged_when_asked_for(
    tiny_pipe: IRGPipeline, options: ServerOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "irg.serve")
    with serving(tiny_pipe, replace(options, log_prompts=True)) as running:
        running.call(GENERATE, {"prompt": "no secret", "mode": "direct"})
    assert any("no secret" in str(vars(record)) for record in caplog.records)


def test_requests_keep_their_id_or_get_one(served: Running) -> None:
    assert served.call("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = served.call("/health", headers={"x-request-id": "not an id\t"}).headers["x-request-id"]
    assert made.startswith("req_") and made != served.call("/health").headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/v1/nothing", None, {}, 404, None),
        (GENERATE, None, {}, 405, None),
        (GENERATE, b"{", {}, 400, "invalid_json"),
        (GENERATE, b"[" * 100_000, {}, 400, None),
        (GENERATE, b"\xff\xfe", {}, 400, None),
        (GENERATE, [], {}, 400, "invalid_value"),
        (GENERATE, {}, {}, 400, "missing_parameter"),
        (GENERATE, b'{"prompt": "x"}', {"content-type": "text/plain"}, 400, None),
        (GENERATE, b'{"prompt": "x", "\\ud800": 1}', {}, 400, None),
        (GENERATE, b'{"prompt": "x", "temperature": NaN}', {}, 400, None),
        (GENERATE, b" " * 600_000, {}, 413, "body_too_large"),
        ("/v1/models/other", None, {}, 404, "model_not_found"),
        ("/v1/models", None, {"host": "evil.example"}, 403, "unknown_host"),
        ("/v1/models", None, {"origin": "https://evil.example"}, 403, "cross_origin"),
        (GENERATE, {"prompt": "x"}, {"origin": "null"}, 403, "cross_origin"),
    ],
)
def test_everything_that_goes_wrong_has_openais_shape(
    served: Running, path: str, body: object, headers: dict[str, str], status: int, code: str | None
) -> None:
    reply = served.call(path, body, headers)
    assert reply.status == status, reply.body
    assert reply.error["message"] and (code is None or reply.error["code"] == code)
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-request-id"]
    assert "access-control-allow-origin" not in reply.headers


def test_a_body_without_a_length_is_limited_too(served: Running) -> None:
    import http.client

    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    chunks = (b" " * 100_000 for _ in range(20))
    try:
        connection.request("POST", GENERATE, chunks, {"content-type": "application/json"}, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):  # it does not even listen to the end
        return
    assert connection.getresponse().status == 413


def test_only_pages_that_are_allowed_may_call_from_a_browser(keyed: Running) -> None:
    origin = {"origin": "https://page.example", "access-control-request-method": "POST"}
    reply = keyed.call(GENERATE, headers=origin, method="OPTIONS")
    assert reply.status == 204 and reply.headers["access-control-allow-origin"] == "https://page.example"
    reply = keyed.call("/v1/models", headers={"origin": origin["origin"], "authorization": f"Bearer {KEYS[0]}"})
    assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "https://page.example"
    reply = keyed.call(GENERATE, headers=origin | {"origin": "https://other.example"}, method="OPTIONS")
    assert reply.status == 403 and "access-control-allow-origin" not in reply.headers


def test_the_models_say_what_they_can(served: Running) -> None:
    first, second = served.client().models.list().data
    assert (first.id, second.id, first.object) == ("tiny", "gpt-image-1", "model")
    can = first.capabilities  # type: ignore[attr-defined]
    assert can["size"] == "32x32" and can["limits"]["max_rounds"] == 8 and can["critics"] == ["self", "gate"]
    assert served.client().models.retrieve("tiny").id == "tiny"


def test_numbers_count_what_was_made(served: Running) -> None:
    names = ("irg_images_total", "irg_tokens_total", 'irg_stops_total{reason="rounds"}', "irg_rounds_sum")
    before = [served.metric(name) for name in names]
    served.call(GENERATE, {"prompt": "x", "rounds": 2, "n": 2, "stop_when_done": False})
    after = [served.metric(name) - was for name, was in zip(names, before, strict=True)]
    assert after[0] == 6 and 6 <= after[1] <= 24 and after[2:] == [2, 4]
    assert served.metric("irg_running") == served.metric("irg_kv_cache_tokens") == 0
    assert served.metric("process_resident_memory_bytes") > 0


def test_a_server_answers_while_its_model_is_loaded(tiny_pipe: IRGPipeline, options: ServerOptions) -> None:
    import threading

    go = threading.Event()

    def load() -> IRGPipeline:
        assert go.wait(60)
        return tiny_pipe

    with serving(load, options, wait=False) as running:
        assert running.call("/health").status == 200 and running.call("/ready").status == 503
        reply = running.call(GENERATE, {"prompt": "x"})
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "loading", "5")
        go.set()
        while running.call("/ready").status == 503:
            pass
        assert running.call(GENERATE, {"prompt": "x", "mode": "direct"}).status == 200
