"""Perceptual hashes of images."""

import importlib.util
from typing import Any

from irg.curation.resources import Resources
from irg.curation.stages import Outcome, Stage, accepted
from irg.curation.store import Row
from irg.image_files import open_image


class HashStage(Stage):
    """Perceptual hashes of a row's images, 16 hex digits each."""

    name, columns, reads = "hash", {"image_phash": str, "improved_phash": str}, ("draft", "target")

    async def open(self, resources: Resources) -> None:
        if importlib.util.find_spec("imagehash") is None:
            raise ValueError("hashes need the package imagehash: pip install 'irg[data]'")
        self.resources = resources

    async def make(self, rows: list[Row]) -> list[Outcome]:
        hashed: list[Outcome] = await self.resources.run_in_process(_hash_rows, rows)
        return hashed


def _hash_rows(rows: list[Row]) -> list[Row]:
    def hashes(row: Row) -> dict[str, Any]:
        return {f"{name}_phash": phash(row[name]) if row.get(name) else None for name in ("image", "improved")}

    return [accepted(row, {"model": "imagehash.phash"}, **hashes(row)) for row in rows]


def phash(image: bytes) -> str:
    """Perceptual hash of an image (64 bits of its coarse cosine transform)."""
    import imagehash

    return str(imagehash.phash(open_image(image)))
