"""The endpoint client against a local server that misbehaves."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("openai")
pytest.importorskip("tenacity")

from faulty_server import FaultyServer, png

from irg.endpoints import (
    AnswerCache,
    Budget,
    Client,
    Endpoint,
    EndpointError,
    OfflineClient,
    Unanswered,
    image_part,
    keep_answer,
    refuses,
)

ASK = [{"role": "user", "content": "how many?"}]


def endpoint(server: FaultyServer, **options: Any) -> Endpoint:
    return Endpoint(server.url, "m", **{"timeout_s": 30.0, "longest_wait_s": 0.05, **options})


def chat(server: FaultyServer, cache: Path | None, messages: Any = ASK, budget: Budget | None = None, **options: Any):
    """One question, and the client's totals."""
    settings = {name: options.pop(name) for name in list(options) if name in Endpoint.__dataclass_fields__}

    async def run():
        async with Client(endpoint(server, **settings), cache, budget) as client:
            return await client.chat(messages, **options), client.totals

    return asyncio.run(run())


def number(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{text!r} is no number")
    return int(text)


def test_an_answer_is_paid_for_once(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: "7") as server:
        prices = {"price_per_million_in": 1000.0, "price_per_million_out": 2000.0}
        answer, totals = chat(server, tmp_path, check=number, **prices)
        assert (answer.text, answer.value, answer.cached) == ("7", 7, False)
        assert answer.usage["prompt_tokens"] == 100 and answer.cost == pytest.approx(0.12)
        assert totals.calls == 1 and totals.cost == pytest.approx(0.12)
        again, totals = chat(server, tmp_path, check=number, **prices)
        assert again.cached and again.value == 7 and again.cost == pytest.approx(0.12)
        assert totals.calls == 0 and totals.cost == 0
        other, _ = chat(server, tmp_path, temperature=0.5, **prices)
        assert not other.cached and len(server.log) == 2
        assert json.loads((tmp_path / "spent.jsonl").read_text().splitlines()[0])["cost"] == pytest.approx(0.12)


def test_identical_requests_at_once_share_one_call(tmp_path: Path) -> None:
    async def run(server: FaultyServer, cache: Path | None) -> list[bool]:
        async with Client(endpoint(server), cache) as client:
            answers = await asyncio.gather(*(client.chat(ASK) for _ in range(10)))
            return sorted(answer.cached for answer in answers)

    with FaultyServer(lambda path, body: "7", slow_s=0.05) as server:
        assert asyncio.run(run(server, tmp_path)) == [False] + [True] * 9
        assert len(server.log) == 1
        assert asyncio.run(run(server, None)) == [False] + [True] * 9  # without a folder, for the client's life


def test_overload_breakage_and_silence_are_waited_out(tmp_path: Path) -> None:
    faults = ("429", "500", "truncated", "hang", "drop")
    with FaultyServer(lambda path, body: "7", faults=lambda key: faults) as server:
        answer, totals = chat(server, tmp_path, timeout_s=0.8)
        assert answer.text == "7" and totals.retries == 5 and totals.calls == 1
        assert [done for _, _, done in server.log] == [*faults, "200"]
    with FaultyServer(lambda path, body: "7", faults=lambda key: ("500",) * 9) as server:
        with pytest.raises(EndpointError, match=r"HTTP 500: .*broken.* \(3 attempts\)") as caught:
            chat(server, None, attempts=3)
        assert caught.value.kind == "outage" and caught.value.status == 500 and len(server.log) == 3


@pytest.mark.parametrize(
    ("fault", "about"), [("400 policy", True), ("401", False), ("404", False), ("429 insufficient_quota", False)]
)
def test_a_refusal_is_not_repeated(fault: str, about: bool) -> None:
    with FaultyServer(lambda path, body: "7", faults=lambda key: (fault,) * 3) as server:
        with pytest.raises(EndpointError, match=f"refuses: HTTP {fault[:3]}") as caught:
            chat(server, None)
        assert caught.value.kind == "refused" and caught.value.about_the_request is about
        assert len(server.log) == 1


def test_nobody_there_is_an_outage() -> None:
    async def run() -> None:
        lonely = Endpoint("http://127.0.0.1:9/v1", "m", attempts=2, longest_wait_s=0.01)
        async with Client(lonely, None) as client:
            await client.chat(ASK)

    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9.*2 attempts") as caught:
        asyncio.run(run())
    assert caught.value.kind == "outage"


def test_the_complaint_is_fed_back_and_survives_in_the_cache(tmp_path: Path) -> None:
    def reply(path: str, body: dict[str, Any]) -> str:
        return ("many", "a lot", "7")[len(body["messages"]) // 2]

    with FaultyServer(reply) as server:
        answer, totals = chat(server, tmp_path, check=number)
        assert answer.value == 7 and answer.complaints == ("'many' is no number", "'a lot' is no number")
        assert totals.rejected_answers == 2 and answer.usage["prompt_tokens"] == 300
        said = server.bodies[-1]["messages"]
        assert said[1] == {"role": "assistant", "content": "many"} and "'many' is no number" in said[2]["content"]
        assert chat(server, tmp_path, check=number)[0].cached and len(server.log) == 3
        with pytest.raises(EndpointError, match="2 unusable answers: 'many' is no number; then: 'a lot'") as caught:
            chat(server, tmp_path, check=number, corrections=1)
        assert caught.value.kind == "bad_answer" and len(server.log) == 3


def test_offline_requests_have_the_keys_that_a_client_gives_them(tmp_path: Path) -> None:
    """What was paid for by calls is found offline, and what was answered offline is not paid for."""
    lost = Endpoint("http://nowhere/v1", "m", api_key_env="IRG_NO_SUCH_KEY", identity="m")

    async def offline(failures: dict[str, str] | None = None) -> OfflineClient:
        async with OfflineClient(lost, tmp_path, failures) as client:
            await client.chat(ASK, check=number)
        return client

    async def asked() -> dict[str, dict[str, Any]]:
        client = OfflineClient(lost, tmp_path)
        with pytest.raises(Unanswered):
            await client.chat(ASK, check=number)
        return client.requests

    (first,) = asyncio.run(asked()).items()
    assert first[1] == {"model": "m", "messages": ASK, "temperature": 0.0, "max_tokens": 1024}
    with pytest.raises(EndpointError, match="m refuses: too long") as caught:
        asyncio.run(offline({first[0]: "too long"}))
    assert caught.value.about_the_request
    keep_answer(AnswerCache(tmp_path), first[0], "m", "many", 5, 1)
    (second,) = asyncio.run(asked()).items()  # the complaint and all
    assert "'many' is no number" in second[1]["messages"][-1]["content"] and second[0] != first[0]
    keep_answer(AnswerCache(tmp_path), second[0], "m", "7", 9, 1)
    assert not asyncio.run(offline()).requests
    with FaultyServer(lambda path, body: "8") as server:
        answer, totals = chat(server, tmp_path, check=number, identity="m", price_per_million_in=1e6)
        assert answer.value == 7 and answer.cost == 0 and answer.usage["prompt_tokens"] == 14
        assert not server.log and totals.cached == 2


def test_an_empty_answer_is_asked_for_again() -> None:
    said = iter(["", "7"])
    with FaultyServer(lambda path, body: next(said)) as server:
        assert chat(server, None)[0].text == "7" and len(server.log) == 2


def answer(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A whole chat response."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 5}}


def test_an_answer_that_was_cut_off_is_no_answer(tmp_path: Path) -> None:
    """A judge's 2 of "2.5": it passes the check, and is wrong."""
    with FaultyServer(lambda path, body: answer("2", "length" if len(body["messages"]) == 1 else "stop")) as server:
        got, totals = chat(server, tmp_path, check=number)
        assert got.value == 2 and len(got.complaints) == 1 and "cut off at its limit of tokens" in got.complaints[0]
        assert totals.rejected_answers == 1 and server.bodies[1]["messages"][1]["content"] == "2"
        assert chat(server, tmp_path, check=number, whole=False)[0].complaints == ()
    with FaultyServer(lambda path, body: answer("", "length")) as server:  # all tokens went into hidden thinking
        with pytest.raises(EndpointError, match="3 unusable answers: it was cut off") as caught:
            chat(server, None)
        assert caught.value.kind == "bad_answer"


@pytest.mark.parametrize("content", ["<think>12? no</think>\n\n7", "12? no\n</think> 7", "<think></think>7"])
def test_the_answer_is_what_follows_the_monologue(content: str) -> None:
    with FaultyServer(lambda path, body: content) as server:
        assert chat(server, None, check=number)[0].text == "7"
        assert chat(server, None, check=number, answer_in_think=True)[0].text == "7"


@pytest.mark.parametrize("content", ["<think>score 7", "<think>score 7</think>", "score 7 </think>  "])
def test_a_monologue_alone_is_no_answer(content: str) -> None:
    with FaultyServer(lambda path, body: content) as server:
        with pytest.raises(EndpointError, match="the answer itself is missing"):
            chat(server, None)
        assert chat(server, None, answer_in_think=True)[0].text == content  # the form of a reflection


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}],
        [{"type": "thinking", "thinking": "41?", "text": "41"}, {"type": "output_text", "text": "42"}],
        ["42"],
    ],
)
def test_an_answer_may_be_a_list_of_parts(parts: list[Any]) -> None:
    with FaultyServer(lambda path, body: answer(parts)) as server:
        assert chat(server, None, check=number)[0].value == 42


@pytest.mark.parametrize("response", [answer(None, "content_filter"), answer(None, refusal="I can't help with that")])
def test_a_refusal_in_an_answer_is_not_repeated(tmp_path: Path, response: dict[str, Any]) -> None:
    with FaultyServer(lambda path, body: response) as server:
        with pytest.raises(EndpointError, match=r"refuses|filter") as caught:
            chat(server, tmp_path)
        assert caught.value.kind == "refused" and caught.value.about_the_request and len(server.log) == 1


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but as an AI I cannot assist with this request.", True),
        ("I cannot view images.", True),
        ("I am unable to provide a description.", True),
        ("A sorry-looking dog that can't stand.", False),
        ("I see a dog. I can't see a cat.", False),
        ("I can see what is wrong.", False),
    ],
)
def test_a_refusal_is_known_by_its_words(text: str, refusal: bool) -> None:
    assert refuses(text) is refusal


def test_an_error_with_status_200_is_neither_kept_nor_paid(tmp_path: Path) -> None:
    broken = [{"error": {"code": 502, "message": "upstream"}, "usage": {"prompt_tokens": 9}}, {"error": "overloaded"}]
    broken.append({"choices": [{"error": {"code": 503, "message": "x"}, "finish_reason": "error"}]})
    replies = iter([*broken, "7"])
    with FaultyServer(lambda path, body: next(replies)) as server:
        got, totals = chat(server, tmp_path, price_per_million_in=1000.0)
        assert got.text == "7" and totals.retries == 3 and got.cost == pytest.approx(0.1) == totals.cost
        assert len(list(tmp_path.glob("??/*.json"))) == 1
    for code in (401, "invalid_api_key", "insufficient_quota"):
        with FaultyServer(lambda path, body, code=code: {"error": {"code": code, "message": "no"}}) as server:
            with pytest.raises(EndpointError, match=rf"refuses: HTTP 200 with an error {code}: no") as caught:
                chat(server, None)
            assert caught.value.kind == "refused" and len(server.log) == 1


def test_an_error_kept_by_an_earlier_version_is_asked_anew(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: "7") as server:
        chat(server, tmp_path)
        (file,) = tmp_path.glob("??/*.json")
        entry = json.loads(file.read_text())
        file.write_text(json.dumps(entry | {"response": {"error": {"code": 502, "message": "upstream"}}}))
        assert chat(server, tmp_path)[0].text == "7" and len(server.log) == 2


def test_images_are_drawn_and_edited(tmp_path: Path) -> None:
    def reply(path: str, body: dict[str, Any]) -> Image.Image:
        width, height = map(int, body["size"].split("x"))
        return Image.new("RGB", (width, height), "red" if path == "images/generations" else "blue")

    async def run(server: FaultyServer) -> tuple[Any, Any, Any]:
        async with Client(endpoint(server, price_per_image=0.5), tmp_path) as client:
            drawn = await client.draw("a red thing", size=(16, 8))
            edited = await client.edit("make it blue", drawn.image, size=(8, 8), seed=3)
            return drawn, edited, client.totals

    with FaultyServer(reply) as server:
        drawn, edited, totals = asyncio.run(run(server))
        assert drawn.image == png(Image.new("RGB", (16, 8), "red")) == drawn.value
        assert edited.image == png(Image.new("RGB", (8, 8), "blue")) and totals.cost == 1.0
        assert server.bodies[1]["image"] == drawn.image and server.bodies[1]["prompt"] == "make it blue"
        assert server.bodies[0]["response_format"] == "b64_json" and server.bodies[1]["seed"] == "3"


@pytest.mark.parametrize(("wrong", "told"), [("size", "is 7x7 instead of 8x8"), ("bytes", "is no image")])
def test_a_wrong_image_is_a_bad_answer(tmp_path: Path, wrong: str, told: str) -> None:
    async def run(server: FaultyServer) -> Any:
        async with Client(endpoint(server), tmp_path) as client:
            return await client.draw("x", size=(8, 8))

    first: list[str] = []
    with FaultyServer(lambda path, body: Image.new("RGB", (8, 8)), wrong=lambda key: wrong) as server:
        with pytest.raises(EndpointError, match=told) as caught:
            asyncio.run(run(server))
        assert caught.value.kind == "bad_answer" and len(server.log) == 3
        first.append(server.log[0][0])
        server.wrong = lambda key: ""
        with pytest.raises(EndpointError, match=told):  # it is known to be bad; it is not paid for again
            asyncio.run(run(server))
        assert len(server.log) == 3


def test_the_budget_is_kept_and_shared(tmp_path: Path) -> None:
    async def run(server: FaultyServer, budget: Budget) -> int:
        async with Client(endpoint(server, price_per_image=1.0), tmp_path, budget) as client:
            calls = [client.draw(f"p{i}", size=(8, 8)) for i in range(9)]
            done = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {error.kind for error in done if isinstance(error, EndpointError)}
        assert kinds <= {"budget"}
        return sum(not isinstance(error, EndpointError) for error in done)

    with FaultyServer(lambda path, body: Image.new("RGB", (8, 8)), slow_s=0.02) as server:
        assert asyncio.run(run(server, Budget(4.0))) == 4 and len(server.log) == 4
        assert asyncio.run(run(server, Budget(6.0, spent=4.0))) == 6  # four from the cache, two new
        assert len(server.log) == 6


def test_no_more_calls_at_once_than_allowed_and_a_pace() -> None:
    async def run(server: FaultyServer) -> None:
        async with Client(endpoint(server, concurrency=3), None) as client:
            await asyncio.gather(*(client.chat([{"role": "user", "content": str(i)}]) for i in range(12)))

    with FaultyServer(lambda path, body: "7", slow_s=0.02) as server:
        asyncio.run(run(server))
        assert server.most_in_flight == 3


def test_calls_keep_their_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def run(server: FaultyServer) -> None:
        async with Client(endpoint(server, requests_per_minute=60), None) as client:
            clock = [100.0]

            async def sleep(seconds: float) -> None:
                waits.append(round(seconds, 6))
                clock[0] += seconds

            monkeypatch.setattr("irg.endpoints.client.time.monotonic", lambda: clock[0])
            monkeypatch.setattr("irg.endpoints.client.asyncio.sleep", sleep)
            for _ in range(3):
                await client._wait_for_pace()

    with FaultyServer(lambda path, body: "7") as server:
        asyncio.run(run(server))
    assert waits == [1.0, 1.0]


def test_a_damaged_answer_is_set_aside_and_asked_for_again(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: "7") as server:
        chat(server, tmp_path)
        (file,) = tmp_path.glob("??/*.json")
        file.write_bytes(file.read_bytes()[:20])
        assert chat(server, tmp_path)[0].text == "7" and len(server.log) == 2
        file.write_bytes(file.read_bytes().replace(b'"7"', b'"6"'))  # a flipped bit
        assert chat(server, tmp_path)[0].text == "7" and len(server.log) == 3
        assert file.with_suffix(".damaged").exists()


def test_the_cache_knows_what_is_asked_and_not_how(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: "7") as server:
        chat(server, tmp_path, identity="our 7b")
        moved = endpoint(server, identity="our 7b", concurrency=1, price_per_million_in=3.0, attempts=1)
        moved = type(moved)(**{**vars(moved), "url": "http://127.0.0.1:9/v1"})

        async def run() -> Any:
            async with Client(moved, tmp_path) as client:
                return await client.chat(ASK)

        assert asyncio.run(run()).cached


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"url": "localhost"}, "url must begin with http"),
        ({"model": ""}, "model must name"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
        ({"price_per_image": -1.0}, "price_per_image must not be negative"),
    ],
)
def test_mistakes_in_an_endpoint(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Endpoint(**{"url": "http://x/v1", "model": "m", **fields})


def test_a_key_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with a kept answer, nor in what is logged or raised where calls fail."""
    monkeypatch.setenv("A_KEY", "sk-secret-123")
    with FaultyServer(lambda path, body: "7", faults=lambda key: ("500",)) as server, caplog.at_level("DEBUG"):
        chat(server, tmp_path, api_key_env="A_KEY")
        with pytest.raises(EndpointError) as raised:
            chat(server, None, api_key_env="A_KEY", attempts=1, messages=[{"role": "user", "content": "else"}])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    told = caplog.text + str(raised.value) + repr(raised.value.__cause__)
    assert files and not any(b"secret" in file.read_bytes() for file in files) and "secret" not in told


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable SOME_KEY"):
        Client(Endpoint("http://x/v1", "m", api_key_env="SOME_KEY"), None)


def test_images_in_messages_say_what_they_are() -> None:
    assert image_part(png(Image.new("RGB", (2, 2))))["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert image_part(b"\xff\xd8..")["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_an_interrupted_client_keeps_what_is_in_flight_and_begins_nothing(tmp_path: Path) -> None:
    async def run(server: FaultyServer) -> None:
        async with Client(endpoint(server, concurrency=2, timeout_s=5.0), tmp_path) as client:
            questions = [client.chat([{"role": "user", "content": str(i)}]) for i in range(6)]
            work = asyncio.gather(*questions)
            while server.in_flight < 2:
                await asyncio.sleep(0.01)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    with FaultyServer(lambda path, body: "7", slow_s=0.2) as server:
        asyncio.run(run(server))
        assert len(list(tmp_path.glob("??/*.json"))) == len(server.log) == 2


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, irg.endpoints; sys.exit('openai' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
