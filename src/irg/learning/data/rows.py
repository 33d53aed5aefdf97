"""Rows of training data as they lie on disk, and which of them are fit to be used.

Two kinds of parquet are read. **Trajectories**: columns ``prompt``, ``thinking``, ``image``, ``reflection``,
``improved``; images are ``{bytes, path}`` structs. **Conversations**, the IRG authors' own: one column
``conversation``, JSON, a list of turns; a user's turn has a string, an assistant's a list of parts ``{type: text|image,
content, need_loss, need_vae, need_vit}``. A row that is not whole is refused, with file, row and reason.
"""

import base64
import binascii
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from irg.learning.data.schema import COLUMNS, IMAGE_COLUMNS, TrajectoryRow
from irg.sequence.images import ResizeRule, to_rgb

TRAJECTORY = tuple(COLUMNS)
CONVERSATION = ("conversation",)


class BadRow(ValueError):
    """A row that cannot be used. ``where`` names file and row."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class Rejections:
    """Counts refused rows and writes each down: ``{"where", "reason"}``, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    @property
    def listed(self) -> str:
        """Where they are written down, for messages."""
        return f"; they are listed in {self.path}"

    def add(self, row: BadRow) -> None:
        """Write a row down."""
        self.count += 1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"where": row.where, "reason": row.reason}) + "\n")
        except OSError as error:  # a full disk; the row is refused all the same, and counted
            warnings.warn(f"cannot write {self.path} ({error}): {row}", stacklevel=2)


@dataclass(frozen=True)
class Row(TrajectoryRow):
    """A trajectory row; ``where`` names its file and row for messages."""

    where: str = ""


@dataclass(frozen=True)
class Piece:
    """One part of a conversation: a text, or an encoded image in the forms that are set."""

    text: str | None = None
    image: bytes | None = None
    loss: bool = False
    vae: bool = False
    vit: bool = False


def data_files(sources: Sequence[str], what: str = "data") -> list[Path]:
    """Parquet files named directly or found in folders, sorted.

    Raises:
        ValueError: a source does not exist or a folder holds none.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise ValueError(f"{what}: {source} is neither a parquet file nor a folder with parquet files")
        files += found
    return files


def open_parquet(file: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """A parquet file that has the columns, to be read in small pieces.

    Raises:
        ValueError: it is no parquet file, or lacks a column.
    """
    kind = "trajectory" if columns == TRAJECTORY else "conversation"
    try:
        opened = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except Exception as error:
        raise ValueError(f"{file}: not a {kind} parquet file: {error}") from None
    if missing := [name for name in columns if name not in opened.schema_arrow.names]:
        raise ValueError(f"{file}: not a {kind} parquet file: it has no column {missing[0]}")
    for name in columns:
        held = opened.schema_arrow.field(name).type
        wanted = "bytes in a struct {bytes, path}" if name in IMAGE_COLUMNS else "text"
        if not (pa.types.is_null(held) or (_has_bytes(held) if name in IMAGE_COLUMNS else _is_text(held))):
            raise ValueError(f"{file}: not a {kind} parquet file: column {name} must hold {wanted}, it holds {held}")
    return opened


def _is_text(held: pa.DataType) -> bool:
    held = held.value_type if pa.types.is_dictionary(held) else held
    return pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_string_view(held)


def _has_bytes(held: pa.DataType) -> bool:
    return pa.types.is_struct(held) and any(held.field(i).name == "bytes" for i in range(held.num_fields))


def read_rows(files: Sequence[Path], rejections: Rejections | None = None) -> Iterator[Row]:
    """All rows of all files, in order. Without ``rejections``, the first broken row is an error.

    Raises:
        ValueError: a file lacks a column, or a row lacks a part.
    """
    for file in files:
        number = 0
        for batch in open_parquet(file, TRAJECTORY).iter_batches(64, columns=list(TRAJECTORY)):
            for row in batch.to_pylist():
                try:
                    yield checked(row, f"{file}, row {number}")
                except BadRow as bad:
                    if rejections is None:
                        raise
                    rejections.add(bad)
                number += 1


def checked(row: Mapping[str, Any], where: str) -> Row:
    """A trajectory from a parquet row.

    Raises:
        BadRow: a part is missing.
    """

    try:
        return Row(**vars(TrajectoryRow.from_columns(row)), where=where)
    except ValueError as error:
        raise BadRow(where, str(error)) from None


def pixels_of(data: bytes, where: str, rule: ResizeRule) -> np.ndarray:
    """An image, uint8 [H, W, 3], at the size that the rule wants.

    Raises:
        BadRow: it cannot be decoded.
    """
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
        image = to_rgb(opened)
    except Exception as error:  # decoders raise whatever they stumble over: struct.error, EOFError, SyntaxError ...
        raise BadRow(where, f"the image cannot be decoded: {error}") from None
    size = rule.size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


# ------------------------------------------------------------------------------------------------------- conversations


def conversation(text: Any, where: str) -> list[Piece]:
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
