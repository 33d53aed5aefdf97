"""Images about images: edits by OpenAI's client, and what its forms may hold."""

from typing import Any

import numpy as np
import openai
import pytest

from serving import Running, picture, pixels


def test_an_edit_is_the_pipelines(served: Running) -> None:
    content = picture()
    more = {"seed": 3, "num_timesteps": 5}
    answer: Any = served.client().images.edit(image=("a.png", content), prompt="make it red", extra_body=more)
    wanted = served.model.pipe.edit(content, "make it red", seed=3, num_timesteps=5)
    assert np.abs(pixels(answer.data[0].b64_json) - np.asarray(wanted.image, dtype=float)).max() <= 1
    told = answer.data[0].irg
    assert (told["mode"], told["settings"]["improving"]["num_timesteps"]) == ("edit", 5)
    assert answer.size == f"{wanted.image.width}x{wanted.image.height}"
    assert answer.usage.input_tokens_details.image_tokens > 0


def test_several_images_and_a_stream(served: Running) -> None:
    images = [("a.png", picture()), ("b.png", picture((32, 32), 1))]
    events = list(served.client().images.edit(image=images, prompt="put both together", stream=True))
    assert [event.type for event in events] == ["image_edit.completed"]
    assert len(events[0].irg["turns"]) == 3  # type: ignore[union-attr]


def test_improving_is_the_loop_from_a_given_image(served: Running) -> None:
    more = {"task": "improve", "rounds": 2, "seed": 3, "cfg_interval": "0.2,0.9"}
    events: list[Any] = list(
        served.client().images.edit(image=("a.png", picture()), prompt="a red apple", stream=True, extra_body=more)
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    wanted = served.model.pipe.improve(picture(), "a red apple", rounds=2, seed=3, cfg_interval=(0.2, 0.9)).trajectory
    for event, turn in zip(events, wanted.turns[1:], strict=True):
        assert np.abs(pixels(event.b64_json) - np.asarray(turn.image, dtype=float)).max() <= 1


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"image": ("a.png", b"no image")}, "image", "is no image that can be read"),
        ({"image": [("a.png", picture((32, 32)))] * 17}, "image", "at most 16 images"),
        ({"mask": ("m.png", picture())}, "mask", "mask is not supported"),
        ({"extra_body": {"nonsense": "1"}}, "nonsense", "unknown field"),
        ({"extra_body": {"task": "improve"}, "image": [("a.png", picture())] * 2}, None, "improve needs one image"),
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"extra_body": {"cfg_interval": "a,b"}}, "cfg_interval.0", "valid number"),
    ],
)
def test_mistakes_are_named(served: Running, fields: dict[str, Any], param: str | None, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        served.client().images.edit(**({"image": ("a.png", picture()), "prompt": "x"} | fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n", b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n']
)
def test_broken_forms_are_refused(served: Running, body: bytes) -> None:
    reply = served.call("/v1/images/edits", body, {"content-type": "multipart/form-data; boundary=x"})
    assert reply.status == 400 and reply.error["type"] == "invalid_request_error"
