"""The IRG authors' own rows: one column ``conversation``, JSON, a list of turns.

A user's turn has a string, an assistant's a list of parts ``{type: text|image, content, need_loss, need_vae,
need_vit}``; images are base64. Also read: ``{from, value}`` in place of ``{role, content}``, and parts as OpenAI has
them (``{type: text, text}``, ``{type: image_url, image_url: {url}}`` with a data URL).
"""

from dataclasses import dataclass
from typing import Any

from irg.image_files import from_base64
from irg.learning.data.rows import BadRow
from irg.text_files import parse_json

_ROLES = {"user": "user", "human": "user", "system": "user", "assistant": "assistant", "gpt": "assistant", None: None}


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
        turns = parse_json(text)
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
    if not isinstance(turn, dict):
        raise BadRow(where, f"{at}: a turn must be an object")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str | None) or role not in _ROLES:
        raise BadRow(where, f"{at}: role {role!r:.40} is none of user, assistant, system (or human, gpt)")
    speaker = _ROLES[role] or ("user" if isinstance(content, str) else "assistant")
    if isinstance(content, str) and content:
        return [Piece(text=content, loss=speaker == "assistant")]
    if not isinstance(content, list) or not content:
        raise BadRow(where, f"{at}: expected a text or a list of parts from role {role!r}")
    return [_piece(part, speaker, where, f"{at}, part {i}") for i, part in enumerate(content)]


def _piece(part: Any, speaker: str, where: str, at: str) -> Piece:
    if not isinstance(part, dict):
        raise BadRow(where, f"{at}: a part must be an object")
    kind, content, plain = part.get("type"), part.get("content"), "content" not in part
    if plain:  # as OpenAI has them: what is shown is read, what is said or drawn is learned
        kind = "image" if kind == "image_url" else kind
        url = part.get("image_url", part.get("image"))
        content = part.get("text") if kind == "text" else url.get("url") if isinstance(url, dict) else url
    if not isinstance(content, str) or not content:
        raise BadRow(where, f"{at}: a part needs a content")
    shown = plain and speaker == "user"
    usual = {"loss": not shown and (plain or kind == "text"), "vae": shown, "vit": shown}
    flags = {name: part.get(f"need_{name}", value) for name, value in usual.items()}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise BadRow(where, f"{at}: need_loss, need_vae and need_vit are true or false")
    if kind == "text":
        return Piece(text=content, loss=flags["loss"])
    if kind != "image":
        raise BadRow(where, f"{at}: unknown type {kind!r:.40}")
    if not any(flags.values()):
        raise BadRow(where, f"{at}: the image has neither need_loss nor need_vae nor need_vit")
    if content.startswith(("http://", "https://", "file:")):
        raise BadRow(where, f"{at}: an image must be in the row, as base64; addresses are not fetched")
    try:
        return Piece(image=from_base64(content), **flags)
    except ValueError as error:
        raise BadRow(where, f"{at}: the image is {error}") from None
