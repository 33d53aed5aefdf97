"""Images by OpenAI's own client, against a running server."""

import asyncio
import io
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from irg.serving.answers import ImagesAnswer
from serving import Gate, Running, pixels

PROMPT = "a red apple"


def test_an_image_is_the_pipelines(served: Running) -> None:
    answer = served.client().images.generate(model="gpt-image-1", prompt=PROMPT, n=2, extra_body={"seed": 7})
    outputs = served.model.pipe([PROMPT] * 2, seed=[7, 8])
    assert answer.data is not None and len(answer.data) == 2
    for found, wanted in zip(answer.data, outputs, strict=True):
        assert np.abs(pixels(found.b64_json) - np.asarray(wanted.image, dtype=float)).max() <= 1
        turns = wanted.trajectory.turns
        assert found.revised_prompt == "\n".join([PROMPT, *(turn.thinking or "" for turn in turns)])
        told: dict[str, Any] = found.irg  # type: ignore[attr-defined]
        assert [turn["thinking"] for turn in told["turns"]] == [turn.thinking for turn in turns]
        assert (told["seed"], told["mode"], told["size"]) == (wanted.trajectory.seed, "irg", "32x32")
    assert (answer.size, answer.output_format, answer.quality) == ("32x32", "png", "auto")
    assert answer.usage is not None and answer.usage.output_tokens_details is not None
    assert answer.usage.input_tokens_details.text_tokens == len(PROMPT)  # a token a byte
    grid = (32 // served.model.pipe.config.image_stride) ** 2
    assert answer.usage.output_tokens_details.image_tokens == 4 * grid  # two images, two rounds


def test_the_loop_is_streamed_and_the_last_image_is_completed(served: Running) -> None:
    more = {"seed": 7, "rounds": 2}
    events = list(served.client().images.generate(prompt=PROMPT, stream=True, extra_body=more))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    wanted = served.model.pipe(PROMPT, seed=7, rounds=2).trajectory
    for event, turn in zip(events, wanted.turns, strict=True):
        assert np.abs(pixels(event.b64_json) - np.asarray(turn.image, dtype=float)).max() <= 1
    assert events[-1].usage.total_tokens > 0  # type: ignore[union-attr]
    assert len(events[-1].irg["turns"]) == 3  # type: ignore[union-attr]


def test_more_partial_images_are_previews(served: Running) -> None:
    more = {"seed": 7, "num_timesteps": 7, "improve_num_timesteps": 7}
    events = list(served.client().images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=more))
    kinds = [(event.partial_image_index, event.kind, event.turn) for event in events[:-1]]  # type: ignore[union-attr]
    assert kinds == [(0, "preview", 0), (1, "round", 0), (2, "preview", 1)]
    assert all(pixels(event.b64_json).shape == (32, 32, 3) for event in events)


def test_no_partial_images_when_none_are_wanted(served: Running) -> None:
    events = list(served.client().images.generate(prompt=PROMPT, stream=True, partial_images=0))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_texts_stream_when_they_are_asked_for(served: Running) -> None:
    more = {"seed": 7, "stream_thinking": True}
    events: list[Any] = list(served.client().images.generate(prompt=PROMPT, stream=True, extra_body=more))
    wanted = served.model.pipe(PROMPT, seed=7).trajectory
    for kind, turn in (("thinking", 0), ("reflection", 1)):
        pieces = [event.delta for event in events if event.type == f"image_generation.{kind}.delta"]
        whole = [event.text for event in events if event.type == f"image_generation.{kind}.done"]
        assert whole == [wanted.turns[turn].thinking] and "".join(pieces) == whole[0]
    types = [event.type.removeprefix("image_generation.") for event in events]
    assert types.index("thinking.done") < types.index("partial_image") < types.index("reflection.done")


def test_a_critics_verdict_comes_when_it_is_given(served: Running) -> None:
    gate = Gate()
    gate.open()
    served.model.pipe.critics.add("gate", gate)
    more = {"seed": 7, "stream_thinking": True, "critic": "gate"}
    events: list[Any] = list(served.client().images.generate(prompt=PROMPT, stream=True, extra_body=more))
    types = [event.type.removeprefix("image_generation.") for event in events]
    assert types[-2:] == ["verdict", "completed"] and types.count("verdict") == 1
    own = {"wrong": "nothing", "change": "", "done": True, "score": 1.0, "turn": 1, "image_index": 0}
    assert {name: getattr(events[-2], name) for name in own} == own
    more["stream_thinking"] = False
    events = list(served.client().images.generate(prompt=PROMPT, stream=True, extra_body=more))
    assert {event.type for event in events} <= {"image_generation.partial_image", "image_generation.completed"}


def test_several_clients_at_once_get_each_its_own(served: Running) -> None:
    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:

            async def one(seed: int) -> Any:
                mode, size = ("direct", "32x64") if seed % 2 else ("think", "64x32")
                own = {"seed": seed, "mode": mode}
                if seed % 3:
                    return await client.images.generate(prompt=PROMPT, size=size, extra_body=own)  # type: ignore[call-overload]
                stream = await client.images.generate(prompt=PROMPT, size=size, stream=True, extra_body=own)  # type: ignore[call-overload]
                return [event async for event in stream][-1]

            return await asyncio.gather(*(one(seed) for seed in range(9)))

    for seed, answer in enumerate(asyncio.run(ask())):
        data = answer.data[0] if hasattr(answer, "data") else answer
        assert (data.irg["seed"], data.irg["mode"]) == (seed, "direct" if seed % 2 else "think")
        assert pixels(data.b64_json).shape == ((64, 32, 3) if seed % 2 else (32, 64, 3))


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_urls_lead_to_images_in_the_format_asked_for(served: Running, format: Any) -> None:
    options = {"prompt": PROMPT, "response_format": "url", "output_format": format, "output_compression": 50}
    answer = served.client().images.generate(**options)
    assert answer.data is not None and answer.data[0].url is not None and answer.data[0].b64_json is None
    reply = served.call(answer.data[0].url.removeprefix(served.url))
    assert reply.status == 200 and reply.headers["content-type"] == f"image/{format}"
    assert Image.open(io.BytesIO(reply.body)).format == format.upper()
    assert served.call(answer.data[0].url.removeprefix(served.url)[:-1]).status == 404


def test_quality_and_names_of_other_servers_become_settings(served: Running) -> None:
    def settings(**fields: Any) -> dict[str, Any]:
        reply = served.call("/v1/images/generations", {"prompt": PROMPT} | fields)
        assert reply.status == 200, reply.body
        ImagesAnswer.model_validate(reply.json)  # what is left out may be left out
        found: dict[str, Any] = reply.json["data"][0]["irg"]["settings"]
        return found

    def steps(found: dict[str, Any]) -> list[int]:
        return [found[name]["num_timesteps"] - 1 for name in ("initial", "improving")]

    assert [steps(settings(quality=name)) for name in ("auto", "low", "high")] == [[3, 2], [1, 1], [6, 4]]
    assert steps(settings(effort="best", improve_num_timesteps=6)) == [6, 5]
    assert steps(settings(num_inference_steps=5)) == [5, 5]
    found = settings(guidance_scale=1.5, flow_shift=2.0, think=True, think_do_sample=False, cfg_interval=[0.2, 0.9])
    assert (found["mode"], found["temperature"], found["initial"]["cfg_text_scale"]) == ("think", 0.0, 1.5)
    assert (found["initial"]["timestep_shift"], found["initial"]["cfg_interval"]) == (2.0, [0.2, 0.9])
    assert settings(extra_body={"mode": "direct"})["mode"] == "direct"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"sede": 1}, "sede", "did you mean 'seed'"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": "2"}, "n", "valid integer"),
        ({"n": 9}, "n", "at most 8"),
        ({"size": "33x32"}, None, "width must be a multiple of"),
        ({"size": "large"}, "size", "size must be WIDTHxHEIGHT"),
        ({"size": "32x32", "width": 32, "height": 32}, "size", "give it alone"),
        ({"mode": "dream"}, "mode", "Input should be"),
        ({"mode": "direct", "rounds": 2}, "rounds", "no meaning in mode 'direct'"),
        ({"rounds": 9}, "rounds", "beyond this server's limit of 8"),
        ({"num_inference_steps": 301}, "num_timesteps", "beyond this server's limit"),
        ({"improve_num_timesteps": 400}, "improve_num_timesteps", "beyond this server's limit"),
        ({"critic": "hf:owner/model"}, "critic", "must be one that this server allows (self, gate)"),
        ({"think": True, "mode": "irg"}, "think", "same setting"),
        ({"guidance_scale": 2.0, "cfg_text_scale": 2.0}, "guidance_scale", "same setting"),
        ({"background": "transparent"}, "background", "Input should be"),
        ({"prompt": " "}, None, "the prompt is empty"),
        ({"prompt": "\ud800"}, None, "valid"),
        ({"prompt": "x" * 40_000}, "prompt", "more than 32,000 bytes"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"seed": 2**63 - 1, "n": 2}, "seed", "for 2 images"),
        ({"cfg_interval": [0.9, 0.1]}, "cfg_interval", "0 <= low <= high <= 1"),
        ({"extra_body": {"nonsense": 1}}, "nonsense", "unknown field"),
    ],
)
def test_mistakes_are_named_before_anything_runs(served: Running, fields: Any, param: str | None, said: str) -> None:
    before = served.metric('irg_stage_seconds_count{stage="queue"}')
    reply = served.call("/v1/images/generations", {"prompt": PROMPT} | fields)
    assert reply.status == 400 and said in reply.error["message"], reply.body
    assert reply.error["type"] == "invalid_request_error"
    if param is not None:
        assert reply.error["param"] == param
    assert served.metric('irg_stage_seconds_count{stage="queue"}') == before


def test_another_model_is_not_found(served: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.client().images.generate(model="dall-e-3", prompt=PROMPT)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert caught.value.request_id


def test_a_search_is_the_pipelines(served: Running) -> None:
    more = {"seed": 7, "candidates": 2, "mode": "direct"}
    answer: Any = served.client().images.generate(prompt=PROMPT, extra_body=more)
    wanted = served.model.pipe(PROMPT, seed=7, candidates=2, mode="direct")
    assert wanted.trajectory.search is not None
    told = answer.data[0].irg["search"]
    assert told["chosen"] == wanted.trajectory.search.chosen and len(told["candidates"]) == 2
    assert np.abs(pixels(answer.data[0].b64_json) - np.asarray(wanted.image, dtype=float)).max() <= 1
    assert served.metric("irg_kv_cache_tokens") == 0
