"""A protocol may answer in words where an image was asked for: every API says so in its own way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import find
from irg.serving.options import ServerOptions
from serving import Running, serving

PROMPT = "how many apples?"
OWN = {"seed": 7, "mode": "irg", "max_think_tokens": 4, "temperature": 0.0}


@pytest.fixture(scope="module")
def solver(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory, options: ServerOptions) -> Iterator[Any]:
    """ThinkMorph; random weights write no text that an image follows."""
    folder: Path = tmp_path_factory.mktemp("solver")
    write_folder(folder, tiny_loaded.config)
    texts = {name: name for name in find("thinkmorph").texts}
    pipe = IRGPipeline.from_pretrained(folder, "cpu", protocol="thinkmorph", texts=texts)
    pipe.name = "tiny"
    with serving(pipe, options) as running:
        yield running


def said(running: Running) -> str:
    trajectory = running.model.pipe(PROMPT, **OWN).trajectory
    assert trajectory.image is None and trajectory.turns[-1].thinking
    return trajectory.turns[-1].thinking


@pytest.mark.parametrize("stream", [False, True])
def test_images(solver: Running, stream: bool) -> None:
    with pytest.raises(openai.APIError) as caught:
        answer: Any = solver.client().images.generate(prompt=PROMPT, stream=stream, n=2, extra_body=OWN)
        assert list(answer) == []
    assert caught.value.code == "no_image" and f"drew no image: {said(solver)}" in caught.value.message
    assert stream or caught.value.status_code == 422  # type: ignore[attr-defined]


def test_chat(solver: Running) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    fields: Any = {"model": "tiny", "messages": messages, "extra_body": OWN | {"modalities": ["image", "text"]}}
    message: Any = solver.client().chat.completions.create(**fields).choices[0].message
    assert message.content == said(solver) and not getattr(message, "images", None)
    assert message.irg["stop_reason"] == "answered"
    chunks = list(solver.client().chat.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said(solver)


def test_responses(solver: Running) -> None:
    tools: Any = [{"type": "image_generation"}]
    answer = solver.client().responses.create(input=PROMPT, tools=tools, extra_body=OWN)
    assert answer.output_text == said(solver)
    call: Any = answer.output[-1]
    assert (call.type, call.status, call.result) == ("image_generation_call", "failed", None)
    events: list[Any] = list(solver.client().responses.create(input=PROMPT, tools=tools, stream=True, extra_body=OWN))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert "image_generation_call.completed" not in kinds and kinds[-1] == "completed"
    assert events[-1].response.output_text == said(solver)
