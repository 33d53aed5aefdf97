"""Critics by name; the endpoint critic against a local server that misbehaves; local ones over tiny networks."""

import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer
from PIL import Image
from tiny_vlm import make_tiny_vlm

from irg import registry
from irg.critics import Critic, CriticError, CriticOptions, Review, Verdict, WorkerCritic, make_critic
from irg.critics.form import question

BUILT_IN = {"endpoint": "irg.critics.endpoint:make", "hf": "irg.critics.hf:make"}
RED = Review("a red cup", Image.new("RGB", (8, 8), "red"), "I plan a cup.")
SAID = {"wrong": "the cup is blue", "change": "make the cup red", "done": False, "score": 4}
MEANT = Verdict("the cup is blue", "make the cup red", False, 0.4)


@pytest.fixture(autouse=True)
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {name: EntryPoint(name, value, registry.CRITICS) for name, value in BUILT_IN.items()}
    monkeypatch.setattr(registry, "_found", lambda group: points)


# ------------------------------------------------------------------------------------------------ by name


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("self", "the model itself"),
        ("endpont:m", r"no critic 'endpont' \(did you mean 'endpoint'\?\); there are self, endpoint, hf"),
        ("endpoint", "needs more: endpoint:MODEL"),
        ("hf:", "needs more: hf:MODEL"),
        ("hf:missing", "missing: neither a folder that is here nor a hub id"),
    ],
)
def test_mistakes_in_a_name(spec: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(ValueError, match=told):
        make_critic(spec)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"budget": 1.0}, "needs prices"),
        ({"budget": 0.0, "price_in": 1.0}, "above 0"),
        ({"max_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "not be negative"),
        ({"corrections": -1}, "not be negative"),
    ],
)
def test_mistakes_in_options(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CriticOptions(**fields)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, irg.critics; sys.exit('openai' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_keeps_its_kind_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CriticError("budget", "used up")))
    assert (error.kind, str(error)) == ("budget", "used up")


# ------------------------------------------------------------------------------------------------ a worker of its own


class Blocked(WorkerCritic):
    """Waits until it may go on; fails where the prompt says so."""

    def __init__(self) -> None:
        super().__init__("blocked")
        self.go = threading.Event()

    def judge(self, review: Review) -> Verdict:
        self.go.wait(30)
        if review.prompt == "refuse":
            raise CriticError("refused", "no")
        if review.prompt == "break":
            raise ZeroDivisionError("by nothing")
        return MEANT


def test_a_worker_returns_at_once_and_its_failures_are_critic_errors() -> None:
    critic = Blocked()
    futures = [critic.review(Review(prompt, RED.image)) for prompt in ("a cup", "refuse", "break")]
    assert not futures[0].done()
    critic.go.set()
    assert futures[0].result() == MEANT
    errors = [future.exception() for future in futures[1:]]
    assert all(isinstance(error, CriticError) for error in errors)
    assert [(error.kind, str(error)) for error in errors] == [
        ("refused", "no"),
        ("outage", "blocked: ZeroDivisionError: by nothing"),
    ]
    critic.close()


def test_closing_a_worker_drops_what_has_not_begun() -> None:
    critic = Blocked()
    running, waiting = critic.review(RED), critic.review(RED)
    threading.Timer(0.05, critic.go.set).start()
    critic.close()
    assert running.result() == MEANT
    with pytest.raises(CancelledError):
        waiting.result()


# ------------------------------------------------------------------------------------------------ an endpoint


def critic_at(server: FaultyServer, folder: Path, **options: Any) -> Critic:
    pytest.importorskip("openai")
    pytest.importorskip("tenacity")
    settings = {"timeout_s": 30.0, "longest_wait_s": 0.05, "cache_dir": str(folder), **options}
    return make_critic("endpoint:m", CriticOptions(url=server.url, **settings))


def test_it_is_asked_about_prompt_thinking_and_image_and_paid_once(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: json.dumps(SAID)) as server:
        critic = critic_at(
            server, tmp_path, price_in=1000.0, price_out=2000.0, extra={"top_p": 0.5, "temperature": None}
        )
        verdict = critic.review(RED).result()
        assert verdict == Verdict("the cup is blue", "make the cup red", False, 0.4, None, pytest.approx(0.12), False)
        body = server.bodies[0]
        image, text = body["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,") and text["text"] == question(RED)
        assert body["max_tokens"] == 2048 and body["top_p"] == 0.5 and "temperature" not in body
        again = critic.review(RED).result()
        assert again.cached and again.cost == pytest.approx(0.12) and len(server.log) == 1
        critic.review(Review("a red cup", Image.new("RGB", (8, 8), "blue"), "I plan a cup.")).result()
        assert len(server.log) == 2  # another image is another question
        critic.close()
        critic.close()
        with pytest.raises(RuntimeError, match="closed"):
            critic.review(RED)


def test_the_complaint_goes_back_a_bounded_number_of_times(tmp_path: Path) -> None:
    def reply(path: str, body: dict[str, Any]) -> str:
        return json.dumps(SAID | ({"score": 40} if len(body["messages"]) < 3 else {}))

    with FaultyServer(reply) as server:
        critic = critic_at(server, tmp_path)
        assert critic.review(RED).result().score == 0.4
        assert "score must be a number from 0 to 10, got 40" in server.bodies[1]["messages"][2]["content"]
        critic.close()
        strict = critic_at(server, tmp_path / "strict", corrections=0)
        with pytest.raises(CriticError, match="1 unusable answers: score must be") as caught:
            strict.review(RED).result()
        assert caught.value.kind == "bad_answer" and len(server.log) == 3
        strict.close()


@pytest.mark.parametrize(
    "content",
    [
        '<think>It is blue. {"done": true}</think>\n' + json.dumps(SAID),
        [{"type": "thinking", "thinking": "blue"}, {"type": "text", "text": json.dumps(SAID)}],
        f"```json\n{json.dumps(SAID)}\n```",
    ],
)
def test_forms_that_answers_come_in(content: Any, tmp_path: Path) -> None:
    response = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}
    with FaultyServer(lambda path, body: response) as server:
        critic = critic_at(server, tmp_path, corrections=0)
        assert critic.review(RED).result() == MEANT
        critic.close()


def test_a_verdict_that_was_cut_off_is_none(tmp_path: Path) -> None:
    """It reads well, and is not what the model was about to say."""
    message = {"role": "assistant", "content": json.dumps(SAID)}
    response = {"choices": [{"message": message, "finish_reason": "length"}]}
    with FaultyServer(lambda path, body: response) as server:
        critic = critic_at(server, tmp_path, corrections=0)
        with pytest.raises(CriticError, match="cut off") as caught:
            critic.review(RED).result()
        assert caught.value.kind == "bad_answer"
        critic.close()


@pytest.mark.parametrize(
    ("faults", "kind"),
    [(("500", "429", "drop"), None), (("500",) * 9, "outage"), (("401",), "refused"), (("400 policy",), "refused")],
)
def test_trouble_of_the_server(faults: tuple[str, ...], kind: str | None, tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: json.dumps(SAID), faults=lambda key: faults) as server:
        critic = critic_at(server, tmp_path)
        error = critic.review(RED).exception()
        assert getattr(error, "kind", None) == kind and len(server.log) == (1 if kind == "refused" else 4)
        critic.close()


def test_the_budget_ends_a_run(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: json.dumps(SAID)) as server:
        critic = critic_at(server, tmp_path, price_in=1000.0, budget=0.25)
        outcomes = []
        for shade in range(4):
            error = critic.review(Review("a cup", Image.new("L", (8, 8), shade))).exception()
            outcomes.append(getattr(error, "kind", None))
        assert outcomes == [None, None, "budget", "budget"] and len(server.log) == 2
        critic.close()


def test_reviews_run_side_by_side(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: json.dumps(SAID), slow_s=0.1) as server:
        critic = critic_at(server, tmp_path, concurrency=3)
        futures = [critic.review(Review("a cup", Image.new("L", (8, 8), shade))) for shade in range(6)]
        assert all(future.result() == MEANT for future in futures) and server.most_in_flight == 3
        critic.close()


def test_a_key_is_sent_to_its_own_address_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultyServer(lambda path, body: json.dumps(SAID)) as server:
        critic_at(server, tmp_path).close()  # another address needs none
    with pytest.raises(ValueError, match="environment variable OPENAI_API_KEY"):
        make_critic("endpoint:m", CriticOptions(cache_dir=str(tmp_path)))


# ------------------------------------------------------------------------------------------------ a local model


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vlm(tmp_path_factory.mktemp("vlm"))


def test_a_local_model_that_never_ends_is_a_bad_answer(tiny_vlm: Path) -> None:
    critic = make_critic(f"hf:{tiny_vlm}", CriticOptions(max_tokens=4, corrections=1, device="cpu"))
    with pytest.raises(CriticError, match=r"hf:.*cut off") as caught:
        critic.review(RED).result()
    assert caught.value.kind == "bad_answer"
    critic.close()


def test_a_local_model_is_read_strictly(tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    critic = make_critic(f"hf:{tiny_vlm}", CriticOptions(device="cpu"))
    answers = iter(["nice", f"<think>hm</think>{json.dumps(SAID)}"])
    asked: list[list[str]] = []

    def chat(image: Any, messages: list[dict[str, Any]], *limits: Any) -> tuple[str, bool]:
        asked.append([one["text"] for one in messages])
        return next(answers), True

    monkeypatch.setattr(critic._model, "chat", chat)
    assert critic.review(RED).result() == MEANT
    assert asked[0] == [question(RED)] and asked[1][1] == "nice" and "not one JSON object" in asked[1][2]
    critic.close()


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="can't be loaded as a vision-language model"):
        make_critic(f"hf:{tmp_path}", CriticOptions())
