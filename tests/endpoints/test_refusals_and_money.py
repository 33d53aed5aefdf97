"""Refusals of one request and of all, fields that a model does not take, keys, and budgets under concurrency."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("tenacity")

from faulty_server import FaultyServer

from irg.critics import CriticOptions
from irg.endpoints import Budget, Client, Endpoint, EndpointError, EndpointOptions
from irg.endpoints.answers import check_error
from irg.endpoints.budget import dearest
from irg.endpoints.client import UNIFORM_REFUSALS
from irg.endpoints.http_errors import refused_field
from irg.evaluation.judges import JudgeOptions


def endpoint(server: FaultyServer, **options: Any) -> Endpoint:
    return Endpoint(server.url, "m", **{"timeout_s": 30.0, "longest_wait_s": 0.05, "attempts": 1, **options})


def asked(server: FaultyServer, questions: int, budget: Budget | None = None, at_once: bool = False, **options: Any):
    """The outcome of each question: an answer or an EndpointError."""

    async def run() -> list[Any]:
        async with Client(endpoint(server, **options), None, budget) as client:
            calls = [client.chat([{"role": "user", "content": f"q{i}"}], max_tokens=10) for i in range(questions)]
            if at_once:
                return await asyncio.gather(*calls, return_exceptions=True)
            return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", [EndpointOptions, JudgeOptions, CriticOptions])
@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://API.openai.com/v1/", "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", None),  # would be sent in the clear
        ("https://api.openai.com.example.net/v1", None),
        ("https://api.openai.com@example.net/v1", None),
        ("https://example.net/api.openai.com/v1", None),
        ("https://api.openai.com:8443/v1", None),
        ("https://api.openai.com:x/v1", None),
        ("http://127.0.0.1:8000/v1", None),
    ],
)
def test_openais_key_goes_to_openai_alone(
    monkeypatch: pytest.MonkeyPatch, kind: type[EndpointOptions], url: str, key: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert kind(url=url).endpoint("m").api_key_env == key
    assert kind(url=url, api_key_env="MINE").endpoint("m").api_key_env == "MINE"


def test_what_all_calls_meet_is_the_endpoints_refusal() -> None:
    with FaultyServer(lambda path, body: "7", faults=lambda key: ("400",)) as server:
        outcomes = asked(server, UNIFORM_REFUSALS + 1)
    assert [one.about_the_request for one in outcomes] == [True] * (UNIFORM_REFUSALS - 1) + [False] * 2
    assert "were all refused like this" in str(outcomes[-1])


def test_refusals_after_an_answer_are_of_their_requests() -> None:
    seen: list[str] = []

    def faults(key: str) -> tuple[str, ...]:
        seen.append(key)
        return () if key == seen[0] else ("400",)

    with FaultyServer(lambda path, body: "7", faults=faults) as server:
        answer, *refused = asked(server, 2 * UNIFORM_REFUSALS)
    assert answer.text == "7" and all(one.about_the_request for one in refused)


@pytest.mark.parametrize(
    ("fault", "about"), [("403 content_policy_violation", True), ("403", False), ("400 moderation_blocked", True)]
)
def test_moderation_is_about_one_request_whatever_its_status(fault: str, about: bool) -> None:
    with FaultyServer(lambda path, body: "7", faults=lambda key: (fault,)) as server:
        outcomes = asked(server, UNIFORM_REFUSALS + 1)
    assert {one.about_the_request for one in outcomes} == {about}


def test_moderation_in_an_answer_of_status_200() -> None:
    with pytest.raises(EndpointError) as caught:
        check_error({"error": {"code": 403, "message": "Input was flagged by moderation"}}, "u")
    assert caught.value.about_the_request
    with pytest.raises(EndpointError) as caught:
        check_error({"error": {"code": 403, "message": "key limit"}}, "u")
    assert not caught.value.about_the_request


@pytest.mark.parametrize(
    ("reason", "param", "field"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model.", "max_tokens", "max_tokens"),
        ("Unsupported value: 'temperature' does not support 0.0 with this model.", None, "temperature"),
        ("body.seed: Extra inputs are not permitted", None, None),
        ("Unrecognized request argument supplied: seed", None, "seed"),
        ("Invalid image in messages: unsupported format", None, None),
        ("max_tokens is too large: 99999", "max_tokens", None),
    ],
)
def test_the_field_that_a_server_does_not_take(reason: str, param: str | None, field: str | None) -> None:
    body = {"model": "m", "messages": [], "temperature": 0.0, "max_tokens": 10, "seed": 1}
    assert refused_field(body, reason, param) == field


def test_a_field_that_is_not_taken_is_told_with_what_leaves_it_out() -> None:
    refusal = {"error": {"message": "Unsupported parameter: 'max_tokens'", "param": "max_tokens", "code": "x"}}

    class Strict(FaultyServer):
        def _answer(self, key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return refusal if "max_tokens" in body else super()._answer(key, path, body)

        @staticmethod
        def _send(handler: Any, status: int, answer: dict[str, Any], *rest: Any, **more: Any) -> None:
            FaultyServer._send(handler, 400 if "error" in answer else status, answer, *rest, **more)

    with Strict(lambda path, body: "7") as server:
        (refused,) = asked(server, 1)
        assert not refused.about_the_request and '{"max_tokens": null}' in str(refused)
        (answer,) = asked(server, 1, extra={"max_tokens": None, "max_completion_tokens": 9})
        assert answer.text == "7" and server.bodies[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize("cap", [0.05, 0.3, 0.42])
def test_a_budget_is_exceeded_by_less_than_one_call(cap: float) -> None:
    """Answers cost 0.11 each, which nobody knows before the first; 64 are asked for at once."""
    budget = Budget(cap)
    prices = {"price_per_million_in": 1000.0, "price_per_million_out": 1000.0, "concurrency": 64}
    with FaultyServer(lambda path, body: "7", slow_s=0.02) as server:
        outcomes = asked(server, 64, budget, at_once=True, **prices)
    paid = 0.11 * sum(not isinstance(one, EndpointError) for one in outcomes)
    assert budget.spent == pytest.approx(paid) and 0 < paid < cap + 0.11
    assert budget.reserved == 0
    assert {one.kind for one in outcomes if isinstance(one, EndpointError)} == {"budget"}
    told = next(str(one) for one in outcomes if isinstance(one, EndpointError))
    assert f"({paid:.4g} spent)" in told


def test_what_costs_nothing_needs_no_budget() -> None:
    with FaultyServer(lambda path, body: "7") as server:
        (answer,) = asked(server, 1, Budget(1.0, spent=2.0))
    assert answer.text == "7"


def test_the_dearest_that_a_call_can_be() -> None:
    model = Endpoint("http://x/v1", "m", price_per_million_in=1e6, price_per_million_out=1e6, price_per_image=5.0)
    body = {"messages": [{"role": "user", "content": "x" * 300}], "max_tokens": 50}
    assert 150 < dearest(model, body) < 180
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    assert 2000 < dearest(model, {"messages": [{"role": "user", "content": [image]}]}) < 2100
    assert dearest(model, {"prompt": ""}, images=1) == pytest.approx(6.0)


def test_an_answer_that_could_not_be_used_was_paid_for(tmp_path: Path) -> None:
    async def run(server: FaultyServer) -> None:
        prices = {"price_per_million_in": 1000.0, "price_per_million_out": 1000.0, "corrections": 1}
        async with Client(endpoint(server, **prices), tmp_path) as client:
            await client.chat([{"role": "user", "content": "q"}], check=lambda text: int(text))

    with FaultyServer(lambda path, body: "no number") as server, pytest.raises(EndpointError) as caught:
        asyncio.run(run(server))
    assert caught.value.kind == "bad_answer" and caught.value.cost == pytest.approx(0.22)
