"""A model behind an OpenAI-compatible address as a reward: asked about each text or image, it answers with a number.

:class:`irg.endpoints.Client` does cache, budget, pace, tries and corrections. An answer that has been paid for is kept,
so a run that is resumed asks nothing twice and gets the same rewards.
"""

import asyncio
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from irg.endpoints import Budget, Client, Endpoint, image_part
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Score
from irg.promptsets.fetch import default_cache
from irg.results.trajectory import Trajectory

THINKING = """A text-to-image model is asked for: {prompt}

Before it draws, it writes this plan:
{text}

How well would an image that follows the plan exactly show what is asked for, all of it and nothing that contradicts it?
Say in one sentence what is wrong or missing, then write on a line of its own a whole number from 0 (not at all) to 10
(perfectly)."""
REFLECTION = """A text-to-image model was asked for: {prompt}

It drew the image above, looked at it, and wrote:
{text}

How right is it about what the image lacks, and how well would an image that follows its last plan exactly show what was
asked for? Say in one sentence what is wrong or missing, then write on a line of its own a whole number from 0 (not at
all) to 10 (perfectly)."""

IMAGE = """A text-to-image model was asked for: {prompt}

It drew the image above. How well does the image show what was asked for, all of it and nothing that contradicts it? Say
in one sentence what is wrong or missing, then write on a line of its own a whole number from 0 (not at all) to 10
(perfectly)."""


@dataclass(frozen=True)
class EndpointReward:
    """What a vision-language model says of a text or an image, from 0 to 1.

    Attributes:
        url, model, api_key_env, concurrency, requests_per_minute, timeout_s, attempts, extra: see
            :class:`irg.endpoints.Endpoint`; so the prices.
        question: what is asked, with ``{prompt}`` and ``{text}``, after the last image, if there is one; default: about
            the image where the last turn has one, else about the reflection on it, or about a plan.
        scale: the number that is worth 1.
        budget: what the run may spend in all, in the currency of the prices.
        cache_dir: where answers are kept; default: ``$IRG_CACHE/reward-answers``.
    """

    url: str
    model: str
    api_key_env: str | None = None
    question: str | None = None
    scale: float = 10.0
    max_tokens: int = 1024
    temperature: float = 0.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 300.0
    attempts: int = 6
    price_per_million_in: float = 0.0
    price_per_million_out: float = 0.0
    budget: float | None = None
    cache_dir: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")
        if self.question is not None:
            try:
                self.question.format(prompt="", text="")
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"question: only {{prompt}} and {{text}} stand in braces ({error})") from None
        _ = self._endpoint  # a wrong address or price is told now

    @cached_property
    def _endpoint(self) -> Endpoint:
        return Endpoint(
            url=self.url,
            model=self.model,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            timeout_s=self.timeout_s,
            attempts=self.attempts,
            price_per_million_in=self.price_per_million_in,
            price_per_million_out=self.price_per_million_out,
            extra=self.extra,
        )

    @cached_property
    def _budget(self) -> Budget:
        return Budget(self.budget)

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        (score,) = self.scores([prompt], [trajectory])
        if isinstance(score, BaseException):
            raise score
        return score

    def scores(self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Score | BaseException]:
        """All scores of a step, many calls at a time; the error of a call that gave nothing usable in its place."""
        return asyncio.run(self._scores(prompts, trajectories))

    async def _scores(
        self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]
    ) -> list[Score | BaseException]:
        folder = Path(self.cache_dir).expanduser() if self.cache_dir else default_cache() / "reward-answers"
        async with Client(self._endpoint, folder, self._budget) as client:
            calls = [self._score(client, *pair) for pair in zip(prompts, trajectories, strict=True)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    async def _score(self, client: Client, prompt: Prompt, trajectory: Trajectory) -> Score:
        image, text = trajectory.image, trajectory.turns[-1].thinking or ""
        usual = THINKING if image is None else REFLECTION if trajectory.turns[-1].image is None else IMAGE
        question = self.question or usual
        content: list[dict[str, Any]] = [] if image is None else [image_part(_png(image))]
        content.append({"type": "text", "text": question.format(prompt=prompt.text, text=text)})
        answer = await client.chat(
            [{"role": "user", "content": content}],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            check=self._number,
        )
        parts = {"cost": answer.cost} if self.price_per_million_in or self.price_per_million_out else {}
        return Score(answer.value, parts, answer.text[:500])

    def _number(self, text: str) -> float:
        """The number at the end of an answer, from 0 to 1.

        Raises:
            ValueError: there is none, or it is not from 0 to ``scale``.
        """
        found = re.search(r"(-?\d+(?:\.\d+)?)\s*(?:/\s*\d+)?\W*$", text)
        if found is None or not 0 <= float(found[1]) <= self.scale:
            raise ValueError(f"The last line must be a number from 0 to {self.scale:g}.")
        return float(found[1]) / self.scale


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
