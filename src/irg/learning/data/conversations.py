"""The IRG authors' own rows: one column ``conversation``, JSON, a list of turns.

A user's turn has a string, an assistant's a list of parts ``{type: text|image, content, need_loss, need_vae,
need_vit}``; images are base64.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from irg.learning.data.rows import BadRow


@dataclass(frozen=True)
class Piece:
    """One part of a conversation: a text, or an encoded image in the forms that are set."""

    text: str | None = None
    image: bytes | None = None
    loss: bool = False
    vae: bool = False
    vit: bool = False


def parse_conversation(text: Any, where: str) -> list[Piece]:
    """The pieces of a conversation, in order.

    Raises:
        BadRow: it is no such JSON, has a part of an unknown kind, or nothing in it carries loss.
    """
    try:
        turns = json.loads(text)
    except (TypeError, ValueError) as error:
        raise BadRow(where, f"the conversation is not valid JSON: {error}") from None
    if not isinstance(turns, list) or not turns:
        raise BadRow(where, "the conversation must be a list of turns")
    pieces: list[Piece] = []
    for number, turn in enumerate(turns):
        pieces += _turn(turn, where, f"turn {number}")
    if not any(piece.loss for piece in pieces):
        raise BadRow(where, "nothing in the conversation carries loss")
    return pieces


def _turn(turn: Any, where: str, at: str) -> list[Piece]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role == "user" or (role is None and isinstance(content, str)):
        if not isinstance(content, str) or not content:
            raise BadRow(where, f"{at}: a user's turn needs a text")
        return [Piece(text=content)]
    if role not in ("assistant", None) or not isinstance(content, list) or not content:
        raise BadRow(where, f"{at}: expected a user's text or an assistant's list of parts, got role {role!r}")
    return [_piece(part, where, f"{at}, part {i}") for i, part in enumerate(content)]


def _piece(part: Any, where: str, at: str) -> Piece:
    if not isinstance(part, dict) or not isinstance(part.get("content"), str) or not part["content"]:
        raise BadRow(where, f"{at}: a part needs a content")
    kind, content = part.get("type"), part["content"]
    flags = {name: part.get(f"need_{name}", kind == "text" and name == "loss") for name in ("loss", "vae", "vit")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise BadRow(where, f"{at}: need_loss, need_vae and need_vit are true or false")
    if kind == "text":
        return Piece(text=content, loss=flags["loss"])
    if kind != "image":
        raise BadRow(where, f"{at}: unknown type {kind!r}")
    if not any(flags.values()):
        raise BadRow(where, f"{at}: the image has neither need_loss nor need_vae nor need_vit")
    try:
        data = content.partition(",")[2] if content.startswith("data:") else content
        return Piece(image=base64.b64decode(data, validate=True), **flags)
    except (binascii.Error, ValueError) as error:
        raise BadRow(where, f"{at}: the image is not base64: {error}") from None
