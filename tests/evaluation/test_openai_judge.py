"""The judge behind an endpoint, against a real HTTP server on this machine that misbehaves."""

import base64
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from irg import promptsets
from irg.cli.main import main
from irg.evaluation.image_folders import LAYOUTS
from irg.evaluation.results import Result
from irg.evaluation.scoring import ScoreRequest, score

pytest.importorskip("openai", reason="needs the extra eval")
pytest.importorskip("tenacity", reason="needs the extra eval")

from irg.evaluation.judges import JudgeOptions, make_judges
from irg.evaluation.judges.openai import yes_probability

QUIET = Console(file=io.StringIO())
GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"
Reply = tuple[int, bytes]


def said(text: str, **more: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, json.dumps(body | {"usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}}).encode()


class Server:
    """Counts calls an image (by its gray) and lets ``act(gray, call)`` reply; None hangs longer than anybody waits."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.act: Callable[[int, int], Reply | None] = lambda grey, call: said(GOOD)
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = server.answer(body)
                if reply is None:
                    time.sleep(1.0)
                    return
                self.send_response(reply[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply[1])))
                if reply[0] == 429:
                    self.send_header("Retry-After", "0.01")
                self.end_headers()
                self.wfile.write(reply[1])

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, body: dict[str, Any]) -> Reply | None:
        image = body["messages"][0]["content"][1]["image_url"]["url"]
        grey = Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).convert("L").getpixel((0, 0))
        with self._lock:
            self.calls[grey] += 1
            self.bodies.append(body)
            return self.act(grey, self.calls[grey])

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def request_(tmp_path: Path) -> ScoreRequest:
    """Twelve WISE images, the grays 10 to 21."""
    entries = [{"Prompt": f"p{n}", "Explanation": "e", "Category": "c", "prompt_id": n} for n in range(1, 13)]
    (tmp_path / "wise.json").write_text(json.dumps(entries))
    for index, prompt in enumerate(promptsets.load("wise", tmp_path / "wise.json").prompts):
        grey = 10 + index
        LAYOUTS["wise"].write(tmp_path / "pictures", prompt, 0, "m", Image.new("RGB", (8, 8), (grey, grey, grey)))
    return ScoreRequest("wise", tmp_path / "pictures", out=tmp_path / "scores", prompts=str(tmp_path / "wise.json"))


def judge(server: Server, request: ScoreRequest, cache: str = "cache", **more: Any) -> tuple[Path, Result]:
    options = {"url": server.url, "longest_wait_s": 0.05, "timeout_s": 30.0, "concurrency": 4, "attempts": 4}
    made = make_judges(["openai:m"], JudgeOptions(**options | more, cache_dir=str(request.images.parent / cache)))
    return score(request, made, QUIET)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "judgements.jsonl").read_text().splitlines()]


def test_trouble_that_passes_costs_nothing_but_time(server: Server, request_: ScoreRequest) -> None:
    trouble: dict[int, Reply | None] = {
        10: (429, b'{"error": {"message": "slow down"}}'),
        11: (500, b"oops"),
        12: None,
        13: (200, b'{"choices": [{"mess'),
        14: (503, b"<html>"),
        15: (200, b"[]"),
        16: said("I would rather not say."),
        17: said(""),
        18: (200, b'{"choices": []}'),
    }
    server.act = lambda grey, call: trouble.get(grey, said(GOOD)) if call == 1 else said(GOOD)
    folder, result = judge(server, request_, timeout_s=0.4)
    assert result.turns[0].states == {"graded": 12} and result.complete
    assert result.turns[0].scores["culture"] == pytest.approx(0.8)
    assert {grey: count for grey, count in server.calls.items() if count > 1} == dict.fromkeys(trouble, 2)
    assert len(lines(folder)) == 12 and {line["raw"] for line in lines(folder)} == {GOOD}
    # again: nothing is sent
    before = server.calls.total()
    assert judge(server, request_)[1].turns == result.turns and server.calls.total() == before
    # even when the judgements are lost, the endpoint's own cache has the answers
    (folder / "judgements.jsonl").unlink()
    assert judge(server, request_)[1].turns == result.turns and server.calls.total() == before


def test_trouble_that_stays_is_counted_and_mended_later(server: Server, request_: ScoreRequest) -> None:
    trouble = {
        10: (400, b'{"error": {"message": "content policy"}}'),
        11: (500, b"oops"),
        12: said("Consistency: 2\nRealism: 1"),
        13: said("I'm sorry, but I can't help with that."),
    }
    server.act = lambda grey, call: trouble.get(grey, said(GOOD))
    folder, result = judge(server, request_, attempts=2, corrections=1)
    assert result.turns[0].states == {"graded": 8, "refused": 1, "outage": 1, "bad_answer": 2}
    assert result.turns[0].scores["culture"] == pytest.approx(0.8)  # of the eight
    failed = {line["prompt"]: line for line in lines(folder) if line.get("failure")}
    assert "content policy" in failed["1"]["message"] and "HTTP 500" in failed["2"]["message"]
    assert failed["3"]["raw"] == ["Consistency: 2\nRealism: 1"] * 2  # what was said is kept
    assert "2 unusable answers: it is a refusal" in failed["4"]["message"]
    assert (server.calls[10], server.calls[11], server.calls[12]) == (1, 2, 2)
    # the outage passes: it alone is sent again
    before = Counter(server.calls)
    server.act = lambda grey, call: said(GOOD)
    _, result = judge(server, request_, attempts=2, corrections=1)
    assert server.calls - before == Counter({11: 1})
    assert result.gaps == {"refused": 1, "bad_answer": 2}


def test_a_dead_endpoint_is_given_up(server: Server, request_: ScoreRequest) -> None:
    server.act = lambda grey, call: (401, b'{"error": {"message": "wrong key"}}')
    folder, result = judge(server, request_, concurrency=1)
    assert result.turns[0].states == {"outage": 12}
    assert server.calls.total() <= 8
    assert any(
        "not sent: the endpoint failed" in line["message"] and "wrong key" in line["message"] for line in lines(folder)
    )
    server.act = lambda grey, call: said(GOOD)
    assert judge(server, request_)[1].complete


def test_the_question_and_the_image_go_out_as_they_should(server: Server, request_: ScoreRequest) -> None:
    judge(server, request_)
    body = next(body for body in server.bodies if '"p3"' in body["messages"][0]["content"][0]["text"])
    assert body["temperature"] == 0 and body["model"] == "m"
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    sent = base64.b64decode(re.fullmatch(r"data:image/png;base64,(.*)", url)[1])
    assert sent == (request_.images / "3.png").read_bytes()


def test_options_of_the_command_are_in_the_body(server: Server, request_: ScoreRequest, tmp_path: Path) -> None:
    """--max-tokens, --temperature, and --extra, which adds fields and leaves out those that a model refuses."""
    words = ["bench", "score", "wise", "--images", str(request_.images), "--prompts", str(request_.prompts)]
    words += ["--judge", "openai:m", "--url", server.url, "--cache-dir", str(tmp_path / "c"), "--turns", "last"]
    own = ["--max-tokens", "77", "--temperature", "0.25", "--extra", '{"reasoning_effort": "low"}']
    assert main([*words, *own, "--out", str(tmp_path / "one")]) == 0
    sent = [{name: value for name, value in body.items() if name != "messages"} for body in server.bodies]
    assert sent == [{"model": "m", "max_tokens": 77, "temperature": 0.25, "reasoning_effort": "low"}] * 12
    without = ["--extra", '{"max_tokens": null, "temperature": null, "max_completion_tokens": 99}']
    assert main([*words, *without, "--out", str(tmp_path / "two")]) == 0
    assert all(body.keys() == {"model", "messages", "max_completion_tokens"} for body in server.bodies[12:])
    assert len(server.bodies) == 24 and server.bodies[-1]["max_completion_tokens"] == 99


def test_usage_and_cost_are_summed(server: Server, request_: ScoreRequest) -> None:
    out = io.StringIO()
    options = JudgeOptions(url=server.url, price_in=1e6, price_out=2e6, cache_dir=str(request_.images.parent / "c"))
    _, result = score(request_, make_judges(["openai:m"], options), Console(file=out, width=200))
    assert "prompt_tokens 120" in out.getvalue() and "cost 192" in out.getvalue()
    assert (result.usage["completion_tokens"], result.cost) == (36, pytest.approx(192))
    _, again = score(request_, make_judges(["openai:m"], options), QUIET)
    assert again.cost == result.cost  # what it has cost, not what this call did


def test_another_model_has_a_folder_and_answers_of_its_own(server: Server, request_: ScoreRequest) -> None:
    first, _ = judge(server, request_)
    made = make_judges(["openai:other"], JudgeOptions(url=server.url, cache_dir=str(request_.images.parent / "cache")))
    second, result = score(request_, made, QUIET)
    assert first != second and result.judge == "other" and server.calls.total() == 24


def test_vqascore_from_log_probabilities(server: Server, tmp_path: Path) -> None:
    (tmp_path / "genai_image.json").write_text(json.dumps({"00001": {"prompt": "a"}, "00002": {"prompt": "b"}}))
    for grey, prompt in enumerate(promptsets.load("genai_bench", tmp_path / "genai_image.json").prompts, start=10):
        LAYOUTS["genai_bench"].write(tmp_path / "p", prompt, 0, "m", Image.new("RGB", (8, 8), (grey, grey, grey)))
    top = [{"token": "Yes", "logprob": -0.5}, {"token": " yes", "logprob": -1.5}, {"token": "No", "logprob": -2.0}]
    given = {"logprobs": {"content": [{"token": "Yes", "logprob": -0.5, "top_logprobs": top}]}}
    server.act = lambda grey, call: said("Yes", **given) if grey == 10 else said("Yes")
    request = ScoreRequest(
        "genai_bench", tmp_path / "p", out=tmp_path / "s", prompts=str(tmp_path / "genai_image.json")
    )
    folder, result = judge(server, request)
    assert result.turns[0].scores["every"] == pytest.approx(0.6065307 + 0.2231302)
    assert result.gaps == {"bad_answer": 1}
    assert "no log-probabilities" in next(line["message"] for line in lines(folder) if line.get("failure"))
    assert server.bodies[0]["top_logprobs"] == 20
    with pytest.raises(ValueError, match="no log-probabilities"):
        yes_probability({"choices": []})


def test_a_missing_key_is_an_error_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="IRG_NO_SUCH_KEY"):
        make_judges(["openai:m"], JudgeOptions(api_key_env="IRG_NO_SUCH_KEY"))
