"""Any OpenAI-compatible endpoint as a judge; :class:`irg.endpoints.Client` does calls, retries, rate limit, cache."""

import asyncio
import math
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from irg.endpoints import Client, Endpoint, EndpointError, answers_folder, image_part
from irg.endpoints.options import MAX_TOKENS
from irg.evaluation.judges.base import Answer, Failure, Job, JudgeOptions, check_text, require_rest
from irg.promptsets import BenchPrompt
from irg.version import __version__

_TOP_LOGPROBS = 20
_GIVE_UP_AFTER = 5  # failures of the endpoint itself in a row, beyond those already in flight


class OpenAIJudge:
    """Answers ``chat``, ``yes`` (from log-probabilities) and ``ocr`` (by asking for the text)."""

    kinds = frozenset({"chat", "yes", "ocr"})

    def __init__(
        self, endpoint: Endpoint, cache_dir: Path, max_tokens: int = MAX_TOKENS, temperature: float = 0.0
    ) -> None:
        self.endpoint, self.cache_dir = endpoint, cache_dir
        self.max_tokens, self.temperature = max_tokens, temperature
        self.label = endpoint.model
        Client(endpoint, cache_dir)  # raises now if a package or the key is missing

    def identity(self) -> dict[str, Any]:
        return {
            "judge": "openai",
            "model": self.endpoint.model,
            "url": self.endpoint.url,
            "temperature": self.temperature,
            "extra": self.endpoint.extra,
            "irg": __version__,
        } | ({} if self.max_tokens == MAX_TOKENS else {"max_tokens": self.max_tokens})

    def covers(self, prompt: BenchPrompt) -> bool:
        return True

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        """Answers as they come. After too many failures of the endpoint itself in a row the rest is not sent."""
        with asyncio.Runner() as runner:
            client = Client(self.endpoint, self.cache_dir)
            runner.run(client.__aenter__())
            try:
                yield from self._run(runner, client, jobs)
            finally:
                runner.run(client.__aexit__(None, None, None))

    def _run(self, runner: asyncio.Runner, client: Client, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        waiting = list(jobs)[::-1]
        running: dict[asyncio.Task[Answer], Job] = {}
        failures, reason = 0, ""
        try:
            while waiting or running:
                # more than the client lets through at once, so that it is never idle
                while waiting and len(running) < 2 * self.endpoint.concurrency and failures < _GIVE_UP_AFTER:
                    job = waiting.pop()
                    running[runner.run(_start(self._answer(client, job)))] = job
                if not running:
                    break
                for task in runner.run(_first_of(running)):
                    job, answer = running.pop(task), task.result()
                    broken = answer.failure in ("outage", "budget") or answer.message.startswith(_ENDPOINT)
                    failures = failures + 1 if broken else 0
                    reason = answer.message if broken else reason
                    yield job, answer
            for job in reversed(waiting):
                yield (
                    job,
                    Answer(None, "outage", f"not sent: the endpoint failed {failures} times in a row ({reason})"),
                )
        finally:
            for task in running:
                task.cancel()

    async def _answer(self, client: Client, job: Job) -> Answer:
        try:
            image = image_part(job.image.data)
        except (OSError, ValueError) as error:
            return Answer(None, "unreadable", str(error))
        texts: list[str] = []

        def check(text: str) -> None:
            texts.append(text)
            check_text(job, text)

        content = [{"type": "text", "text": job.question.text}, image]
        messages = [{"role": "user", "content": content}]
        try:
            if job.question.kind == "yes":
                answer = await client.chat(messages, max_tokens=1, logprobs=_TOP_LOGPROBS, whole=False)
                raw: Any = yes_probability(answer.raw)
            else:
                answer = await client.chat(
                    messages, temperature=self.temperature, max_tokens=self.max_tokens, check=check
                )
                raw = "" if job.question.kind == "ocr" and answer.text.strip() == "[]" else answer.text
        except EndpointError as error:
            return Answer(texts or None, *_failure(error))
        except ValueError as error:
            return Answer(None, "bad_answer", str(error))
        return Answer(raw, usage=answer.usage, cost=answer.cost, cached=answer.cached)


def make(rest: str, options: JudgeOptions) -> OpenAIJudge:
    """openai:MODEL, any OpenAI-compatible endpoint (--url)."""
    endpoint = options.endpoint(require_rest("openai", rest, "MODEL"))
    return OpenAIJudge(
        endpoint, answers_folder(options.cache_dir, "judge-answers"), options.max_tokens, options.temperature
    )


_ENDPOINT = "endpoint: "


def _failure(error: EndpointError) -> tuple[Failure, str]:
    """A refusal that is about the endpoint (no such model, a wrong key) is no refusal to judge this image."""
    if error.kind == "refused" and not error.about_the_request:
        return "outage", f"{_ENDPOINT}{error}"
    return error.kind, str(error)


def yes_probability(raw: dict[str, Any]) -> float:
    """P("Yes") of the first token, from a chat answer with log-probabilities: the sum over its spellings.

    Raises:
        ValueError: the server gave no log-probabilities.
    """
    try:
        choices = raw["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {choice["token"]: float(choice["logprob"]) for choice in choices}
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError("the endpoint gives no log-probabilities, which VQAScore needs") from None
    return min(1.0, sum(math.exp(value) for token, value in found.items() if token.strip().lower() == "yes"))


async def _start(work: Coroutine[Any, Any, Answer]) -> "asyncio.Task[Answer]":
    return asyncio.ensure_future(work)


async def _first_of(tasks: dict["asyncio.Task[Answer]", Job]) -> "set[asyncio.Task[Answer]]":
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done
