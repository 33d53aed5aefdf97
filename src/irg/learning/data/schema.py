"""What a trajectory row holds: the columns that training learns from, their parquet types, and the row as an object.

The one home of these names: data building writes them (with columns of its own beside), training and checks read them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class TrajectoryRow:
    """One trajectory: prompt, T1, I1 and, with a second turn, T2, I2. Images are encoded files, such as PNG."""

    prompt: str
    thinking: str
    image: bytes
    reflection: str | None = None
    improved: bytes | None = None

    @classmethod
    def from_columns(cls, values: Mapping[str, Any]) -> "TrajectoryRow":
        """A row as parquet holds it, images as structs; columns of other names are ignored.

        Raises:
            ValueError: a part is missing.
        """
        image, improved = (values[name]["bytes"] if values[name] else None for name in IMAGE_COLUMNS)
        if not values["prompt"] or not values["thinking"] or not image:
            raise ValueError("a trajectory needs prompt, thinking and image")
        if bool(values["reflection"]) != bool(improved):
            raise ValueError("reflection and improved image come together or not at all")
        return cls(values["prompt"], values["thinking"], image, values["reflection"] or None, improved or None)

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
