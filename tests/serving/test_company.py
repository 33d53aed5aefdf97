"""With one image at a time a request's result is the pipeline's bit for bit, whatever else the server is asked."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from irg.engine.events import ImageDone
from irg.reasoning.events import Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import with_options
from irg.serving.async_engine import Submission
from irg.serving.options import ServerOptions
from serving import Running, pixels, serving

REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "a cat", "seed": 1, "max_think_tokens": 12, "temperature": 0.7, "cfg_text_scale": 2.0},
    {"prompt": "three red apples left of a bus " * 3, "seed": 2, "size": "48x32", "cfg_text_scale": 2.0},
    {"prompt": "x", "seed": 3, "mode": "direct", "size": "64x64"},
    {"prompt": "two dogs", "seed": 4, "rounds": 2, "max_think_tokens": 20, "improve_cfg_text_scale": 2.0},
)
ORDERS = ((0, 1, 2, 3), (3, 1, 0, 2, 1))

Result = tuple[list[str], bytes]
"""Texts, and the last image's pixels."""


@pytest.fixture
def one_at_a_time(tiny_pipe: IRGPipeline, options: ServerOptions) -> Iterator[Running]:
    limits = replace(options.limits, max_running=1, max_waiting=16)
    with serving(tiny_pipe, replace(options, limits=limits)) as running:
        yield running


def alone(pipe: IRGPipeline, request: dict[str, Any]) -> tuple[Result, list[bytes]]:
    """A request's result and the latents of its images, by the pipeline."""
    own = dict(request)
    prompt, seed = own.pop("prompt"), own.pop("seed")
    events = list(pipe.stream([prompt], [seed], with_options(pipe.defaults, own, pipe.sizes)))
    latents = [event.latents.numpy().tobytes() for event in events if isinstance(event, ImageDone)]
    assert isinstance(events[-1], Finished)
    turns = events[-1].trajectory.turns
    return ([turn.thinking or "" for turn in turns], np.asarray(turns[-1].image).tobytes()), latents


def served(running: Running, request: dict[str, Any]) -> Result:
    """A request's result, by the server."""
    answer = running.call("/v1/images/generations", request).json["data"][0]
    return [turn.get("thinking") or "" for turn in answer["irg"]["turns"]], pixels(answer["b64_json"]).tobytes()


def test_one_at_a_time_company_changes_no_bit(one_at_a_time: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, tell = one_at_a_time.model.pipe, Submission.tell
    wanted = [alone(pipe, request) for request in REQUESTS]
    drawn: list[bytes] = []

    def listen(submission: Submission, event: Any) -> None:
        if isinstance(event, ImageDone):
            drawn.append(event.latents.numpy().tobytes())
        tell(submission, event)

    monkeypatch.setattr(Submission, "tell", listen)
    for order in ORDERS:
        drawn.clear()
        with ThreadPoolExecutor(len(order)) as clients:  # side by side
            found = list(clients.map(lambda i: served(one_at_a_time, REQUESTS[i]), order))
        assert found == [wanted[i][0] for i in order]
        assert sorted(drawn) == sorted(latents for i in order for latents in wanted[i][1])
