"""The authors' data format: one column ``conversation``, JSON, a list of turns.

A user's turn holds a string, an assistant's a list of parts ``{type, content, need_loss, need_vae, need_vit}``;
images are base64. Each of the six learning modes is a data set of its own.
"""

import base64
from typing import Any

from irg.curation.records import TrajectoryRecord
from irg.reasoning.prompts import BAGEL_PROFILE

MODES = {  # mode -> rows of how many turns it is for
    "initial_thinking_understanding": 1,
    "initial_thinking_generation": 1,
    "initial_full": 1,
    "improving_thinking_understanding": 2,
    "improving_thinking_generation": 2,
    "improving_full": 2,
}


def conversation(record: TrajectoryRecord, mode: str) -> list[dict[str, Any]]:
    """A trajectory as the turns of a mode: loss on what the mode learns, images to be read as latents and patches.

    The understanding modes begin with the image or images and end with the question how to think or improve.
    """
    first, second = record.image, record.improved
    match mode:
        case "initial_thinking_understanding":
            return [
                _user(record.prompt),
                _assistant(_read(first)),
                _user(BAGEL_PROFILE.how_to_think),
                _assistant(_text(record.thinking, True)),
            ]
        case "initial_thinking_generation":
            return [_user(record.prompt), _assistant(_text(record.thinking, True))]
        case "initial_full":
            return [_user(record.prompt), _assistant(_text(record.thinking, True), _drawn(first))]
    assert record.reflection is not None and second is not None, "improving modes need the second turn"
    match mode:
        case "improving_thinking_understanding":
            images = (_read(first), _read(second))
            question = _user(BAGEL_PROFILE.how_to_improve)
            return [_user(record.prompt), _assistant(*images), question, _assistant(_text(record.reflection, True))]
        case "improving_thinking_generation":
            parts = (_text(record.thinking, False), _read(first), _text(record.reflection, True))
            return [_user(record.prompt), _assistant(*parts)]
        case "improving_full":
            whole = (_text(record.thinking, False), _read(first), _text(record.reflection, True), _drawn(second))
            return [_user(record.prompt), _assistant(*whole)]
    raise ValueError(f"no learning mode {mode!r}; there are {', '.join(MODES)}")


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(parts)}


def _text(text: str, loss: bool) -> dict[str, Any]:
    return {"type": "text", "content": text, "need_loss": loss, "need_vae": False, "need_vit": False}


def _image(data: bytes, loss: bool, read: bool) -> dict[str, Any]:
    content = base64.b64encode(data).decode("ascii")
    return {"type": "image", "content": content, "need_loss": loss, "need_vae": read, "need_vit": read}


def _read(data: bytes) -> dict[str, Any]:
    return _image(data, loss=False, read=True)


def _drawn(data: bytes) -> dict[str, Any]:
    return _image(data, loss=True, read=False)
