"""Writing the authors' data format, which training reads, too: one column ``conversation``, JSON, a list of turns.

A user's turn holds a string, an assistant's a list of parts ``{type, content, need_loss, need_vae, need_vit}``;
images are base64. Each of the six learning modes is a data set of its own.
"""

import base64
from typing import Any

from irg.learning.data.schema import TrajectoryRow
from irg.learning.modes import EncodedImage, EncodedTrajectory, Mode, write
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.sequence.parts import Latents, Target, Text

SYSTEM, PROMPT, THINKING, REFLECTION, HOW_TO_THINK, HOW_TO_IMPROVE = (
    (n,) for n in range(6)
)  # stand for a row's token ids


def conversation(row: TrajectoryRow, mode: Mode) -> list[dict[str, Any]]:
    """A trajectory as the turns of a mode, part by part as training writes it (:func:`irg.learning.modes.write`).

    The system prompt is a user's turn of its own, the first: readers of the format add none, and generation has one.

    Raises:
        ValueError: the row lacks the mode's second turn.
    """
    texts: dict[tuple[int, ...], str] = {THINKING: row.thinking, REFLECTION: row.reflection or ""}
    questions: dict[tuple[int, ...], str] = {
        SYSTEM: BAGEL_PROFILE.system_prompt,
        PROMPT: row.prompt,
        HOW_TO_THINK: BAGEL_PROFILE.how_to_think,
        HOW_TO_IMPROVE: BAGEL_PROFILE.how_to_improve,
    }
    first, second = (data and EncodedImage(data, (1, 1), (1, 1)) for data in (row.image, row.improved))
    assert isinstance(first, EncodedImage)
    trajectory = EncodedTrajectory(
        system=SYSTEM,
        prompt=PROMPT,
        thinking=THINKING,
        image=first,
        reflection=REFLECTION if row.reflection else None,
        improved=second or None,
        how_to_think=HOW_TO_THINK,
        how_to_improve=HOW_TO_IMPROVE,
    )
    found: list[dict[str, Any]] = []
    for part in write(mode, trajectory):
        if isinstance(part, Text) and part.ids in questions:
            found.append({"role": "user", "content": questions[part.ids]})
            continue
        if found[-1]["role"] == "user":
            found.append({"role": "assistant", "content": []})
        match part:
            case Text(ids, loss):
                found[-1]["content"].append(text_part(texts[ids], loss))
            case Latents(content=data):  # the patches that follow are of the same image
                found[-1]["content"].append(_image(data, loss=False, read=True))
            case Target(content=data):
                found[-1]["content"].append(_image(data, loss=True, read=False))
    return found


def text_part(text: str, loss: bool) -> dict[str, Any]:
    """A text as a part of an assistant's turn."""
    return {"type": "text", "content": text, "need_loss": loss, "need_vae": False, "need_vit": False}


def _image(data: bytes, loss: bool, read: bool) -> dict[str, Any]:
    content = base64.b64encode(data).decode("ascii")
    return {"type": "image", "content": content, "need_loss": loss, "need_vae": read, "need_vit": read}
