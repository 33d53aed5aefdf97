"""Chats and Responses by OpenAI's client: images in each form, answers about images, streams."""

import base64
from typing import Any

import numpy as np
import openai
import pytest

from irg.serving import fetching
from irg.serving.image_data import data_url
from serving import Running, picture, pixels

PROMPT = "a red apple"
DRAW = [{"role": "user", "content": PROMPT}]
IMAGE = data_url(picture(), "png")
ASK = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": IMAGE}}],
    }
]


def chat(running: Running, messages: Any, **fields: Any) -> Any:
    own = {
        name: fields.pop(name)
        for name in ("stream", "stream_options", "n", "max_tokens", "modalities")
        if name in fields
    }
    return running.client().chat.completions.create(model="tiny", messages=messages, **own, extra_body=fields)


def same(url: str, image: Any) -> bool:
    return bool(np.abs(pixels(url.partition(",")[2]) - np.asarray(image, dtype=float)).max() <= 1)


def test_an_image_in_openrouters_form(served: Running) -> None:
    answer = chat(served, DRAW, modalities=["image", "text"], seed=7, image_config={"aspect_ratio": "2:1"})
    message = answer.choices[0].message
    wanted = served.model.pipe(PROMPT, seed=7, size="2:1")
    assert message.content == "" and same(message.images[0]["image_url"]["url"], wanted.image)
    assert message.reasoning_content == "\n".join(turn.thinking or "" for turn in wanted.trajectory.turns)
    assert message.irg["seed"] == 7 and answer.usage.completion_tokens > 0


def test_an_image_in_vllm_omnis_form(served: Running) -> None:
    more = {"height": 32, "width": 64, "num_inference_steps": 4, "seed": 7, "cfg_text_scale": 1.5, "think": True}
    content = chat(served, DRAW, modalities=["image"], n=2, **more).choices[1].message.content
    options = {"num_timesteps": 5, "cfg_text_scale": 1.5, "mode": "think"}
    assert same(content[0]["image_url"]["url"], served.model.pipe(PROMPT, seed=8, size="64x32", **options).image)


def test_a_question_about_an_image_is_answered(served: Running) -> None:
    answer = chat(served, ASK, seed=7, max_tokens=6)
    wanted = served.model.pipe.ask(picture(), "what is it?", seed=7, max_tokens=6)
    assert answer.choices[0].message.content == wanted
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(served, ASK, seed=7, max_tokens=6, stream=True)]
    assert "".join(pieces) == wanted


def test_a_chat_goes_on_with_the_newest_image(served: Running) -> None:
    first = chat(served, DRAW, seed=7).choices[0].message
    messages = [
        *DRAW,
        {"role": "assistant", "content": "", "images": first.images},
        {"role": "user", "content": "bigger"},
    ]
    answer = chat(served, messages, modalities=["image", "text"], seed=3).choices[0].message
    given = base64.b64decode(first.images[0]["image_url"]["url"].partition(",")[2])
    assert same(answer.images[0]["image_url"]["url"], served.model.pipe.edit(given, "bigger", seed=3).image)


FORMS = pytest.mark.parametrize(
    ("modalities", "key"), [(["image", "text"], "images"), (["image"], "content")], ids=["openrouter", "vllm-omni"]
)


def images_sent(chunks: list[Any], key: str) -> list[Any]:
    """The images of a stream's deltas, in order."""
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    return [image for delta in deltas for image in getattr(delta, key, None) or []]


@FORMS
def test_a_chat_is_streamed(served: Running, modalities: list[str], key: str) -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}, "modalities": modalities}
    chunks = list(chat(served, DRAW, seed=7, rounds=2, **more))
    wanted = served.model.pipe(PROMPT, seed=7, rounds=2)
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts == "".join(turn.thinking or "" for turn in wanted.trajectory.turns)
    sent = images_sent(chunks, key)
    assert [image["index"] for image in sent] == [0, 1, 2]
    for image, turn in zip(sent, wanted.trajectory.turns, strict=True):  # the first image, then those after it
        assert same(image["image_url"]["url"], turn.image)
    assert getattr(deltas[-1], key) == sent[-1:]
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.total_tokens > 0


@FORMS
def test_a_loop_that_ends_early_sends_no_image_twice(served: Running, modalities: list[str], key: str) -> None:
    """Clients append what comes."""
    served.gate.open()
    chunks = list(chat(served, DRAW, seed=7, stream=True, critic="gate", modalities=modalities))
    assert [image["index"] for image in images_sent(chunks, key)] == [0]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_tools_may_be_offered(served: Running) -> None:
    """Clients such as Open WebUI offer theirs with every chat."""
    tool = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
    answer = chat(served, DRAW, seed=7, tools=[tool], tool_choice="auto", mode="direct")
    assert answer.choices[0].finish_reason == "stop" and len(answer.choices[0].message.images) == 1


@pytest.mark.parametrize(
    ("messages", "fields", "param", "said"),
    [
        ([{"role": "system", "content": "x"}, *DRAW], {}, "messages.0", "system prompt"),
        ([*DRAW, {"role": "assistant", "content": "x"}], {}, "messages", "must be the user's"),
        ([{"role": "user", "content": " "}], {}, "messages", "has no text"),
        (DRAW, {"modalities": ["text"]}, "modalities", "needs an image"),
        (DRAW, {"tool_choice": "required"}, "tool_choice", "'auto' or 'none'"),
        (DRAW, {"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ([{"role": "user", "content": "x", "surprise": 1}], {}, "messages.0.surprise", "unknown field"),
        (DRAW, {"size": "32x32", "image_config": {"aspect_ratio": "1:1"}}, "size", "same setting"),
    ],
)
def test_mistakes_are_named(served: Running, messages: Any, fields: Any, param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        chat(served, messages, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.png", "https://169.254.169.254/x", "file:///etc/passwd"])
def test_no_address_is_fetched(served: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_Connection", lambda *_: pytest.fail("something is fetched"))
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError):
        chat(served, [{"role": "user", "content": content}])


TOOL: Any = {"type": "image_generation", "size": "32x64", "output_format": "jpeg", "partial_images": 2}


def test_a_response_with_the_image_tool(served: Running) -> None:
    answer = served.client().responses.create(model="tiny", input=PROMPT, tools=[TOOL], extra_body={"seed": 7})
    kinds = [item.type for item in answer.output]
    assert kinds == ["reasoning", "image_generation_call"] and answer.status == "completed"
    call: Any = answer.output[1]
    assert pixels(call.result).shape == (64, 32, 3) and PROMPT in call.revised_prompt
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens > 0


def test_a_response_goes_on_with_an_earlier_image(served: Running) -> None:
    call = {"type": "image_generation_call", "id": "x", "result": base64.b64encode(picture()).decode()}
    messages: Any = [call, {"role": "user", "content": [{"type": "input_text", "text": "bigger"}]}]
    tool: Any = {"type": "image_generation", "action": "edit"}
    answer: Any = served.client().responses.create(input=messages, tools=[tool], extra_body={"seed": 3})
    wanted = served.model.pipe.edit(picture(), "bigger", seed=3)
    assert same(f",{answer.output[-1].result}", wanted.image)


def test_a_response_is_streamed(served: Running) -> None:
    events: list[Any] = list(
        served.client().responses.create(input=PROMPT, tools=[TOOL], stream=True, extra_body={"seed": 7})
    )
    kinds = [event.type.removeprefix("response.") for event in events]
    call = "image_generation_call"
    assert kinds[:5] == ["created", "in_progress", "output_item.added", f"{call}.in_progress", f"{call}.generating"]
    assert kinds.count(f"{call}.partial_image") == 2 and kinds[-1] == "completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in final.output]


def test_a_response_answers_about_an_image(served: Running) -> None:
    content = [{"type": "input_text", "text": "what is it?"}, {"type": "input_image", "image_url": IMAGE}]
    fields: Any = {"input": [{"role": "user", "content": content}], "max_output_tokens": 6, "extra_body": {"seed": 7}}
    answer = served.client().responses.create(**fields)
    wanted = served.model.pipe.ask(picture(), "what is it?", seed=7, max_tokens=6)
    assert answer.output_text == wanted
    events: list[Any] = list(served.client().responses.create(**fields, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == wanted
    assert events[-1].response.output_text == wanted
