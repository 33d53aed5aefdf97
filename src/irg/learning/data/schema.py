"""What a trajectory row holds: the columns that training learns from, their parquet types, and the row as an object.

The one home of these names: data building writes them (with columns of its own beside), training and checks read them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""An encoded image file, in the form that Hugging Face's ``datasets`` and viewer know."""
COLUMNS: dict[str, pa.DataType] = {
    "prompt": pa.string(),
    "thinking": pa.string(),  # T1
    "image": IMAGE,  # I1
    "reflection": pa.string(),  # T2; null in rows of one turn, as is
    "improved": IMAGE,  # I2
}
IMAGE_COLUMNS = tuple(name for name, kind in COLUMNS.items() if kind == IMAGE)


def _image_bytes(value: Mapping[str, Any] | None, folder: Path | None) -> bytes | None:
    """An image's file: from the row or, where that has a path alone, from the folder of the row's file."""
    data, path = (value.get("bytes"), value.get("path")) if value else (None, None)
    if data or not path or folder is None:
        return data
    try:
        place = (folder / path).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise ValueError(f"the image {path!r} is outside of {folder}, where the row's file is: it is not read")
        if not place.is_file():
            raise ValueError(f"the image {path!r} is no file in {folder}")
        return place.read_bytes()
    except OSError as error:
        raise ValueError(f"the image {path!r} can't be read: {error.strerror or error}") from None


@dataclass(frozen=True)
class TrajectoryRow:
    """One trajectory: prompt, T1, I1 and, with a second turn, T2, I2. Images are encoded files, such as PNG."""

    prompt: str
    thinking: str
    image: bytes
    reflection: str | None = None
    improved: bytes | None = None

    @classmethod
    def from_columns(cls, values: Mapping[str, Any], folder: Path | None = None) -> "TrajectoryRow":
        """A row as parquet holds it, images as structs; columns of other names are ignored.

        Args:
            folder: where the row's file is. Images that are given by a path alone are read from there.

        Raises:
            ValueError: a part is missing, or the path of an image leads out of the folder.
        """
        image, improved = (_image_bytes(values[name], folder) for name in IMAGE_COLUMNS)
        if not values["prompt"] or not values["thinking"] or not image:
            missing = [name for name in ("prompt", "thinking") if not values[name]] + ["image"] * (not image)
            raise ValueError(f"a trajectory needs prompt, thinking and image; it lacks {', '.join(missing)}")
        reflection = values["reflection"]
        if reflection is not None and not reflection.strip():
            raise ValueError("the reflection is empty; in a row of one turn it must be null")
        if (reflection is None) != (not improved):
            raise ValueError("reflection and improved image come together or not at all")
        return cls(values["prompt"], values["thinking"], image, reflection, improved or None)

    def to_columns(self) -> dict[str, Any]:
        """The row as parquet takes it."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return values | {n: values[n] and {"bytes": values[n], "path": None} for n in IMAGE_COLUMNS}

    @property
    def turns(self) -> int:
        """1, or 2 with a reflection and an improved image."""
        return 1 if self.improved is None else 2

    @property
    def digest(self) -> str:
        """sha256 of all five parts; each goes in with its length, so that none can run into the next."""
        whole = hashlib.sha256()
        for part in (self.prompt, self.thinking, self.image, self.reflection, self.improved):
            data = part.encode() if isinstance(part, str) else part
            whole.update(b"-" if data is None else str(len(data)).encode() + b":" + data)
        return whole.hexdigest()
