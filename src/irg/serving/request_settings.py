"""From a request's fields to checked settings and jobs: names, presets, sizes and the server's limits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from PIL.Image import Image

from irg.critics.options import SELF
from irg.engine.settings import DrawSettings
from irg.reasoning.effort import OF_QUALITY
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job, Task
from irg.reasoning.search import Searching
from irg.reasoning.settings import (
    CRITIC,
    EFFORT,
    IMPROVE,
    MAX_SEED,
    Settings,
    check_options,
    of_later_images,
    with_options,
)
from irg.reasoning.sizes import parse_size
from irg.serving.errors import ApiError, invalid
from irg.serving.options import Limits, ServerOptions
from irg.serving.schemas import ALIASES, SETTINGS, Generation


@dataclass(frozen=True)
class Translator:
    """Makes jobs of requests."""

    pipe: IRGPipeline
    options: ServerOptions

    @property
    def limits(self) -> Limits:
        return self.options.limits

    def check_model(self, name: str | None) -> None:
        """Check that a request means this model.

        Raises:
            ApiError: it names another one.
        """
        known = (self.pipe.name, *self.options.model_names)
        if name is not None and name not in known and not self.options.any_model_name:
            raise ApiError(
                404, f"there is no model {name!r}; there is {', '.join(known)}", param="model", code="model_not_found"
            )

    def jobs(
        self,
        request: Generation,
        prompt: str,
        *,
        count: int = 1,
        size: str | None = None,
        quality: str | None = None,
        task: Task = "generate",
        images: Sequence[Image] = (),
        given: dict[str, Any] | None = None,
    ) -> list[Searching]:
        """The jobs of a request, each with its candidates, with the seeds SEED, SEED + 1, ... Official texts that they
        need are read now.

        Args:
            given: settings by name over the model's own, under the request's.

        Raises:
            ApiError: something in the request is not usable, or beyond the server's limits.
        """
        if len(prompt.encode("utf-8", "replace")) > self.limits.max_prompt_bytes:
            raise invalid(f"the prompt has more than {self.limits.max_prompt_bytes:,} bytes", "prompt", "too_long")
        if count > min(self.limits.max_images, self.limits.max_waiting):
            raise invalid(f"n must be at most {min(self.limits.max_images, self.limits.max_waiting)}", "n", "too_many")
        try:
            settings = self._settings(request, size, quality, task, given or {})
            first = secrets.randbelow(2**32) if request.seed is None else request.seed
            if first + count - 1 > MAX_SEED:
                raise ValueError(f"seed must be at most {MAX_SEED - count + 1} for {count} images, got {first}")
            jobs = [self.pipe.jobs.make(prompt, settings, first + i, task, images) for i in range(count)]
            self._check_limits(jobs)
            return [self.pipe.requests.searching(job) for job in jobs]
        except ValueError as error:
            raise invalid(str(error), _named(str(error))) from None

    def _settings(
        self, request: Generation, size: str | None, quality: str | None, task: Task, given: dict[str, Any]
    ) -> Settings:
        changes = given | self._changes(request)
        if size not in (None, "auto"):
            changes["size"] = self._size(size)
        elif {"width", "height"} <= changes.keys() and self.options.fit_sizes:
            changes["size"] = self._size(f"{changes.pop('width')}x{changes.pop('height')}")
        usual = self._with_effort(request.effort, quality)
        if task == "generate":
            check_options({name: value for name, value in changes.items() if name not in ("critic", "select")})
            settings = self.pipe.with_options(usual, changes)
        else:
            settings = self.pipe.with_options(usual.sized_by_image(), of_later_images(changes))
        own_critic = self.pipe.defaults.critic
        for name, value, own in (("critic", settings.critic, (SELF,)), ("select", settings.select, (SELF, CRITIC))):
            allowed = tuple(dict.fromkeys((*own, own_critic, *self.options.critics)))
            if value not in allowed:
                raise ValueError(f"{name} must be one that this server allows ({', '.join(allowed)}), got {value!r}")
        if (steps := request.num_inference_steps) is not None:
            points = {"num_timesteps": steps + 1}
            settings = with_options(settings, points | {IMPROVE + name: n for name, n in points.items()})
        return settings

    def _with_effort(self, effort: str | None, quality: str | None) -> Settings:
        """The model's own settings at an effort, with no more updates than the server allows or the model usually
        takes."""
        named = None if quality is None else OF_QUALITY.get(quality)
        if effort is not None and named is not None:
            raise ValueError("effort and quality are the same setting; give one of them")
        usual = self.pipe.defaults
        if (effort or named) is None:
            return usual
        chosen = self.pipe.with_options(usual, {EFFORT: effort or named})

        def limited(draw: DrawSettings, own: DrawSettings) -> DrawSettings:
            most = max(own.num_timesteps, self.limits.max_steps + 1)
            return replace(draw, num_timesteps=min(draw.num_timesteps, most))

        return replace(
            chosen,
            initial=limited(chosen.initial, usual.initial),
            improving=limited(chosen.improving, usual.improving),
        )

    def _changes(self, request: Generation) -> dict[str, Any]:
        """Settings by name, as the request gives them under whatever name."""
        changes: dict[str, Any] = {}
        for name in (*SETTINGS, *ALIASES):
            if (value := getattr(request, name)) is None:
                continue
            ours = ALIASES.get(name, name)
            if ours in changes:
                raise ValueError(f"{name} and {ours} are the same setting; give one of them")
            changes[ours] = tuple(value) if isinstance(value, list) else value
        if request.think is not None:
            if "mode" in changes:
                raise ValueError("think and mode are the same setting; give one of them")
            changes["mode"] = "think" if request.think else "direct"
        if request.think_do_sample is False:
            changes["temperature"] = 0.0
        return changes

    def _size(self, size: str | None) -> str:
        """A size that the model draws: the size itself, or with ``fit_sizes`` the nearest shape at its usual size."""
        assert size is not None
        pixels, sizes = parse_size(size), self.pipe.sizes
        if not self.options.fit_sizes or isinstance(pixels, Fraction):
            return size
        try:
            sizes.check(*pixels)
            return size
        except ValueError:
            return f"{pixels[0]}:{pixels[1]}"

    def _check_limits(self, jobs: Sequence[Job]) -> None:
        job, limits, settings = jobs[0], self.limits, jobs[0].settings
        if len(jobs) * settings.candidates > min(limits.max_images, limits.max_waiting):
            raise _beyond("candidates", settings.candidates, f"{limits.max_images} for all images of a request")
        if limits.max_pixels is not None and job.width * job.height > limits.max_pixels:
            raise _beyond("size", f"{job.width}x{job.height}", f"{limits.max_pixels:,} pixels")
        for start, draw in (("", settings.initial), (IMPROVE, settings.improving)):
            if draw.num_timesteps - 1 > limits.max_steps:
                raise _beyond(f"{start}num_timesteps", draw.num_timesteps, f"{limits.max_steps + 1}")
        if settings.rounds > limits.max_rounds:
            raise _beyond("rounds", settings.rounds, str(limits.max_rounds))
        for name in ("max_think_tokens", "max_reflect_tokens"):
            if (getattr(settings, name) or 0) > limits.max_tokens:
                raise _beyond(name, getattr(settings, name), str(limits.max_tokens))


def _beyond(name: str, value: object, most: str) -> ApiError:
    return invalid(f"{name} {value} is beyond this server's limit of {most}", name, "limit_exceeded")


def _named(message: str) -> str | None:
    """The setting that an error's message begins with."""
    word = message.partition(" ")[0].rstrip(":")
    return word if word in (*SETTINGS, *ALIASES, "size", "seed", "think", "effort") else None
