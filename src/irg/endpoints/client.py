"""The client: every call goes cache -> budget -> pace -> server -> cache -> check."""

import asyncio
import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from irg.endpoints.answers import check_error, counts, is_error, quoted, text_of
from irg.endpoints.budget import Budget, dearest
from irg.endpoints.cache import AnswerCache
from irg.endpoints.endpoint import Endpoint, EndpointError, Retry
from irg.endpoints.http_errors import http_error
from irg.endpoints.images import decoded
from irg.text_files import parse_json

Messages = Sequence[dict[str, Any]]
UNIFORM_REFUSALS = 5
"""Calls refused in the same words, before any was answered, after which the endpoint as a whole is said to refuse."""


@dataclass(frozen=True)
class Answer:
    """An answer that passed its check.

    Attributes:
        text: of a chat's answer; empty for images.
        value: what ``check`` returned (without one: the text, or the image).
        usage: token counts as the server gave them, summed over corrections.
        cost: of all calls behind this answer, whenever they were paid for.
        cached: no call was made for it now.
        raw: the server's JSON, of the last call.
        image: the image as it came (PNG, JPEG or WebP bytes), else None.
        complaints: why earlier answers to the same question were not taken.
    """

    text: str
    value: Any
    usage: dict[str, int]
    cost: float
    cached: bool
    raw: dict[str, Any]
    image: bytes | None = None
    complaints: tuple[str, ...] = ()


@dataclass
class Totals:
    """What a client has done."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    rejected_answers: int = 0
    cost: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)


class Client:
    """Talks to one endpoint; use it as ``async with Client(...) as client``.

    Args:
        cache_dir: where answers are kept, for ever; None keeps them only until the client closes.
        budget: a cap shared with other clients.

    Raises:
        ValueError: the packages needed are not installed, or the key is not in the environment.
    """

    def __init__(self, endpoint: Endpoint, cache_dir: Path | str | None, budget: Budget | None = None) -> None:
        self.endpoint, self.budget, self.totals = endpoint, budget or Budget(), Totals()
        self._get_ready()
        self._cache = None if cache_dir is None else AnswerCache(cache_dir)
        self._shared: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._in_flight: set[asyncio.Task[dict[str, Any]]] = set()
        self._closing = False
        self._next_call_at = 0.0  # when the next call may begin
        self._highest_price = endpoint.price_per_image
        self._refusals: tuple[str, ...] = ()  # in the same words, while no call has been answered
        self._openai: Any = None

    def _get_ready(self) -> None:
        for package in ("openai", "tenacity"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"endpoints need the package {package}: pip install 'irg[data]' (or 'irg[eval]')")
        self._key = self.endpoint.api_key()

    async def __aenter__(self) -> Self:
        import openai

        self._slots, self._first = asyncio.Semaphore(self.endpoint.concurrency), asyncio.Lock()
        self._openai = openai.AsyncOpenAI(
            base_url=self.endpoint.url, api_key=self._key, max_retries=0, timeout=self.endpoint.timeout_s
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Calls in flight are paid for: they are waited for and kept. Those that have not begun do not begin."""
        self._closing = True
        pending = {task for task in self._shared.values() if not task.done()}
        for task in pending - self._in_flight:
            task.cancel()
        if pending & self._in_flight:
            await asyncio.wait(pending & self._in_flight, timeout=self.endpoint.timeout_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._openai.close()

    # ---- requests

    async def chat(
        self,
        messages: Messages,
        *,
        temperature: float = 0.0,
        max_tokens: int = 1024,
        seed: int | None = None,
        logprobs: int | None = None,
        check: Callable[[str], Any] | None = None,
        extra: dict[str, Any] | None = None,
        answer_in_think: bool = False,
        whole: bool = True,
    ) -> Answer:
        """Call a chat model.

        Args:
            messages: as the API takes them; an image is :func:`image_part`.
            logprobs: how many likeliest tokens to report at each place (in ``raw``); None: no logprobs.
            check: turns the text into a value, or raises ValueError with a complaint, which the model then gets
                together with its answer, ``endpoint.corrections`` times at most.
            extra: further fields of the body.
            answer_in_think: the form asked for stands in ``<think>`` tags itself. Otherwise they hold a reasoning
                model's monologue, and the answer is what follows.
            whole: an answer that was cut off at ``max_tokens`` is not taken.

        Raises:
            EndpointError: no usable answer; ``kind`` says why.
        """
        talk = list(messages)

        async def call(attempt: int) -> dict[str, Any]:
            body = {"messages": talk, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
            if logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": logprobs}
            return await self._call("chat/completions", body | (extra or {}), attempt=attempt)

        def take(raw: dict[str, Any]) -> tuple[str, Any, None]:
            text = ""
            try:
                text = text_of(raw, answer_in_think, whole)
                return text, check(text) if check else text, None
            except ValueError as error:
                if said := text or quoted(raw):
                    complaint = (
                        f"This answer cannot be used: {error}. Answer again, in full, and in the form asked for."
                    )
                    talk.extend(({"role": "assistant", "content": said}, {"role": "user", "content": complaint}))
                raise

        return await self._until_valid(call, take)

    async def draw(
        self,
        prompt: str,
        *,
        size: tuple[int, int],
        seed: int | None = None,
        check: Callable[[bytes], Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Answer:
        """Let an images endpoint draw an image of (width, height) ``size``; ``answer.image`` holds its bytes.

        Raises:
            EndpointError: no usable image; ``kind`` says why.
        """
        body = {"prompt": prompt, "size": f"{size[0]}x{size[1]}", "n": 1, "seed": seed, **self._image_form()}
        return await self._image("images/generations", body | (extra or {}), size, None, check)

    async def edit(
        self,
        prompt: str,
        png: bytes,
        *,
        size: tuple[int, int],
        seed: int | None = None,
        check: Callable[[bytes], Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Answer:
        """Let an images endpoint change an image; as :meth:`draw`."""
        body = {"prompt": prompt, "size": f"{size[0]}x{size[1]}", "n": 1, "seed": seed, **self._image_form()}
        return await self._image("images/edits", body | (extra or {}), size, png, check)

    def _image_form(self) -> dict[str, str]:
        # OpenAI's own image models always answer in base64 and refuse the field
        return {} if self.endpoint.model.startswith("gpt-image") else {"response_format": "b64_json"}

    async def _image(
        self,
        path: str,
        body: dict[str, Any],
        size: tuple[int, int],
        png: bytes | None,
        check: Callable[[bytes], Any] | None,
    ) -> Answer:
        async def call(attempt: int) -> dict[str, Any]:
            seeded = body if body.get("seed") is None else body | {"seed": body["seed"] + attempt}
            return await self._call(path, seeded, png, attempt, images=1)

        def take(raw: dict[str, Any]) -> tuple[str, Any, bytes]:
            data = raw.get("data")
            first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
            image = decoded(first.get("b64_json"), size)
            return "", check(image) if check else image, image

        return await self._until_valid(call, take)

    async def _until_valid(self, call: Callable[[int], Any], take: Callable[[dict[str, Any]], Any]) -> Answer:
        """Call, and call again while ``take`` complains."""
        complaints: list[str] = []
        usage: dict[str, int] = {}
        cost, cached = 0.0, True
        for attempt in range(self.endpoint.corrections + 1):
            try:
                entry = await call(attempt)
            except EndpointError as error:
                error.cost += cost
                raise
            cost += entry["cost"]
            cached &= entry["cached"]
            usage = {name: usage.get(name, 0) + entry["usage"].get(name, 0) for name in {**usage, **entry["usage"]}}
            try:
                text, value, image = take(entry["response"])
            except ValueError as error:
                complaints.append(str(error))
                self.totals.rejected_answers += 1
                continue
            except EndpointError as error:
                error.cost += cost
                raise
            return Answer(text, value, usage, cost, cached, entry["response"], image, tuple(complaints))
        reasons = "; then: ".join(dict.fromkeys(complaints))
        told = f"{self.endpoint.model}: {len(complaints)} unusable answers: {reasons}"
        raise EndpointError("bad_answer", told, cost=cost)

    # ---- one call

    async def _call(
        self, path: str, body: dict[str, Any], png: bytes | None = None, attempt: int = 0, images: int = 0
    ) -> dict[str, Any]:
        """The cache's entry for a request, plus ``cached``; equal requests share one call."""
        body, key = self._request(path, body, png, attempt)
        if (running := self._shared.get(key)) is not None:
            return await asyncio.shield(running) | {"cached": True}
        entry = await asyncio.to_thread(self._cache.get, key) if self._cache else None
        if entry is not None and not is_error(entry["response"]):
            self.totals.cached += 1
            return entry | {"cached": True}
        if (running := self._shared.get(key)) is None:  # another task may have begun meanwhile
            running = self._shared[key] = asyncio.create_task(self._fetch(key, path, body, png, images))
            running.add_done_callback(lambda task: self._forget(key, task))
            return await asyncio.shield(running) | {"cached": False}
        return await asyncio.shield(running) | {"cached": True}

    def _forget(self, key: str, task: "asyncio.Task[dict[str, Any]]") -> None:
        """With a cache on disk the task is not needed any more; a failed one may be tried again."""
        failed = task.cancelled() or task.exception() is not None
        if self._cache is not None or failed:
            self._shared.pop(key, None)

    def _request(self, path: str, body: dict[str, Any], png: bytes | None, attempt: int) -> tuple[dict[str, Any], str]:
        """The whole body of a request, and its content hash: the request and its endpoint, not pace or price."""
        body = {"model": self.endpoint.model} | body | self.endpoint.extra
        body = {name: value for name, value in body.items() if value is not None}
        parts = [self.endpoint.identity or self.endpoint.url, path, body, attempt]
        if png is not None:
            parts.append(hashlib.sha256(png).hexdigest())
        return body, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    async def _fetch(self, key: str, path: str, body: dict[str, Any], png: bytes | None, images: int) -> dict[str, Any]:
        async with self._slots:
            if self.budget.cap is not None and not self.totals.calls:
                async with self._first:  # what a call costs shows with the first; until then they go one by one
                    if not self.totals.calls:
                        return await self._pay(key, path, body, png, images)
            return await self._pay(key, path, body, png, images)

    async def _pay(self, key: str, path: str, body: dict[str, Any], png: bytes | None, images: int) -> dict[str, Any]:
        """Make a call within the budget, and keep its answer."""
        guess = dearest(self.endpoint, body, images)
        reserved = await self.budget.reserve(guess, lambda: self._highest_price)
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)  # from here on it may be paid for
        task.add_done_callback(self._in_flight.discard)
        paid = 0.0
        try:
            begun = time.monotonic()
            response = await self._with_retries(key, path, body, png)
            usage = counts(response.get("usage"))
            paid = self.endpoint.cost(usage, images)
            entry = {
                "request": {"url": self.endpoint.url, "path": path, "model": self.endpoint.model},
                "response": response,
                "usage": usage,
                "cost": paid,
                "seconds": round(time.monotonic() - begun, 3),
                "created": time.time(),
            }
            if self._cache:
                self._cache.put(key, entry)  # before any other task can run
        finally:
            self._highest_price = max(self._highest_price, paid)
            self.budget.settle(reserved, paid)
        self.totals.calls += 1
        self.totals.cost += paid
        for name, count in usage.items():
            self.totals.usage[name] = self.totals.usage.get(name, 0) + count
        return entry

    async def _with_retries(self, key: str, path: str, body: dict[str, Any], png: bytes | None) -> dict[str, Any]:
        """Make a call, and again after a pause, while that may help."""
        import tenacity

        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=self.endpoint.longest_wait_s)

        def pause(state: Any) -> float:
            self.totals.retries += 1
            failure = state.outcome.exception()
            if failure.wait_s is None:
                return float(backoff(state))
            wait = min(failure.wait_s, 10 * self.endpoint.longest_wait_s)
            self._next_call_at = max(self._next_call_at, time.monotonic() + wait)  # the server means everybody
            return wait

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self.endpoint.attempts), lambda _: self._closing),
            wait=pause,
            retry=tenacity.retry_if_exception_type(Retry),
            reraise=True,
        )
        try:
            return dict(await retrying(self._send, key, path, body, png))
        except Retry as error:
            reason = f"{self.endpoint.url}: {error} ({self.endpoint.attempts} attempts)"
            raise EndpointError("outage", reason, error.status) from None

    async def _wait_for_pace(self) -> None:
        """Wait until a call may begin."""
        while (wait := self._next_call_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.endpoint.requests_per_minute is not None:
            self._next_call_at = time.monotonic() + 60 / self.endpoint.requests_per_minute

    async def _send(self, key: str, path: str, body: dict[str, Any], png: bytes | None) -> dict[str, Any]:
        import openai

        await self._wait_for_pace()
        options = {"extra_headers": {"Idempotency-Key": key}, "extra_body": body}
        files = None if png is None else {"image": ("image.png", png, "image/png")}
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                reply = await self._post(path, body, options, files)
                data = parse_json(reply.content)
        except openai.APIStatusError as error:
            raise self._refused_by_all(http_error(error, self.endpoint.url, body)) from None
        except (openai.APIError, TimeoutError) as error:
            late = isinstance(error, TimeoutError | openai.APITimeoutError)
            why = f"no answer within {self.endpoint.timeout_s:g} s" if late else str(error.__cause__ or error)
            raise Retry(why) from None
        except ValueError:
            raise Retry("the answer broke off or is no JSON") from None
        if not isinstance(data, dict):
            raise Retry("the answer is no JSON object")
        check_error(data, self.endpoint.url)
        return data

    def _refused_by_all(self, error: Exception) -> Exception:
        """A refusal that every call so far has met in the same words is no refusal of one request."""
        if not isinstance(error, EndpointError) or error.scope is not None or not error.about_the_request:
            return error
        words = re.sub(r"\d+", "", str(error))
        self._refusals = (*self._refusals, words) if words in self._refusals or not self._refusals else (words,)
        if len(self._refusals) < UNIFORM_REFUSALS or self.totals.calls or self.totals.cached:
            return error
        told = f"{error} (the first {len(self._refusals)} calls were all refused like this)"
        return EndpointError("refused", told, error.status, "endpoint")

    async def _post(self, path: str, body: dict[str, Any], options: dict[str, Any], files: Any) -> Any:
        if path == "chat/completions":
            create = self._openai.chat.completions.with_raw_response.create
            return await create(model=body["model"], messages=body["messages"], **options)
        images = self._openai.images.with_raw_response
        if files is None:
            return await images.generate(model=body["model"], prompt=body["prompt"], **options)
        return await images.edit(model=body["model"], prompt=body["prompt"], image=files["image"], **options)
