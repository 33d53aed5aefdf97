"""A vision-language model behind an OpenAI-compatible address as a critic.

:class:`irg.endpoints.Client` does cache, budget, pace, tries and corrections; its event loop runs in one thread of the
critic's own, so that reviews wait there and nowhere else.
"""

import asyncio
import io
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from PIL import Image

from irg.critics import form
from irg.critics.base import CriticError, Review, Verdict
from irg.critics.options import CriticOptions, require_rest
from irg.endpoints import Budget, Client, Endpoint, EndpointError, answers_folder, image_part


class EndpointCritic:
    """Asks one endpoint, many reviews at a time.

    Raises:
        ValueError: the packages needed are not installed, or the key is not in the environment.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache_dir: Path | str | None,
        max_tokens: int = 2048,
        temperature: float = 0.0,
        budget: float | None = None,
    ) -> None:
        self.name = f"endpoint:{endpoint.model}"
        self._client = Client(endpoint, cache_dir, Budget(budget))
        self._max_tokens, self._temperature = max_tokens, temperature
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"critic {self.name}", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.__aenter__(), self._loop).result()

    def review(self, review: Review) -> Future[Verdict]:
        """See :meth:`irg.critics.Critic.review`."""
        if self._loop.is_closed():
            raise RuntimeError(f"the critic {self.name} is closed")
        return asyncio.run_coroutine_threadsafe(self._judge(review), self._loop)

    def close(self) -> None:
        """Wait for calls in flight, which are paid for, and end; those that have not begun do not begin."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._client.__aexit__(None, None, None), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _judge(self, review: Review) -> Verdict:
        image = image_part(await asyncio.to_thread(_png, review.image))
        messages = [{"role": "user", "content": [image, {"type": "text", "text": form.question(review)}]}]
        try:
            answer = await self._client.chat(
                messages, temperature=self._temperature, max_tokens=self._max_tokens, check=form.read
            )
        except EndpointError as error:
            raise CriticError(error.kind, str(error)) from error
        verdict: Verdict = answer.value
        return replace(verdict, cost=answer.cost, cached=answer.cached)


def make(rest: str, options: CriticOptions) -> EndpointCritic:
    """endpoint:MODEL, a vision-language model behind an OpenAI-compatible address (--critic-url)."""
    endpoint = options.endpoint(require_rest("endpoint", rest, "MODEL"))
    folder = answers_folder(options.cache_dir, "critic-answers")
    return EndpointCritic(endpoint, folder, options.max_tokens, options.temperature, options.budget)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
