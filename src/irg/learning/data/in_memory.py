"""Trajectories held in memory: texts as token ids, images as pixels and latents that are encoded once. Right for data
of one machine; larger data is streamed.

Legend: N images; Z latent channels; h, w latent sides.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.progress import track
from torch import Tensor

from irg import files
from irg.learning.data.row_source import Memory, SourceRow, columns_of
from irg.learning.data.rows import TRAJECTORY, BadRow, open_parquet
from irg.learning.data.samples import ImageContent, TrajectoryEncoder
from irg.learning.data.schema import IMAGE_COLUMNS
from irg.learning.modes import EncodedTrajectory
from irg.model.network.autoencoder import Autoencoder

AT_ONCE = 64
"""Images of one size that the autoencoder encodes in one call."""


def hold_in_memory(
    sources: Sequence[Path], encoder: TrajectoryEncoder, autoencoder: Autoencoder, cache: Path, quiet: bool
) -> Memory:
    """All rows of trajectory files, encoded. ``cache`` is a folder that keeps each file's latents between runs.

    Raises:
        ValueError: a file is not of that kind.
    """
    held: dict[tuple[Path, int], EncodedTrajectory | BadRow] = {}
    salt = _fingerprint(autoencoder) + repr(encoder.config.vae_resize).encode()

    def encoded(row: SourceRow) -> EncodedTrajectory | BadRow:
        try:
            return encoder.trajectory(row)
        except BadRow as bad:
            return bad

    with ThreadPoolExecutor(4) as pool:
        for file in track(list(dict.fromkeys(sources)), "encoding images", disable=quiet):
            rows = list(pool.map(encoded, _rows(file)))
            held |= {(file, number): row for number, row in enumerate(rows)}
            images = [i.content for row in rows if not isinstance(row, BadRow) for i in (row.image, row.improved) if i]
            linked = b"".join(map(_pixels_digest, images)) if _has_paths(file) else b""
            key = hashlib.sha256(_digest(file) + salt + linked).hexdigest()[:16]
            latents = _cached_latents(autoencoder, images, cache / f"latents-{key}.npy")
            for image, latents_Zhw in zip(images, latents, strict=True):
                image.latents_Zhw = latents_Zhw
    return held


def _rows(file: Path) -> list[SourceRow]:
    number, rows = 0, []
    for batch in open_parquet(file, TRAJECTORY).iter_batches(64, columns=list(TRAJECTORY)):
        for index in range(len(batch)):
            where = f"{file}, row {number}"
            rows.append(SourceRow(0, number, where, columns_of(batch, index, where), file.parent))
            number += 1
    return rows


def _has_paths(file: Path) -> bool:
    """Whether images of a file's rows are files of their own, which may change without it."""
    opened = open_parquet(file, TRAJECTORY)
    names = [name for name in IMAGE_COLUMNS if "path" in _field_names(opened.schema_arrow.field(name).type)]
    table = opened.read(columns=[f"{name}.path" for name in names])
    return any(value and value["path"] for column in table.columns for value in column.to_pylist())


def _field_names(kind: pa.DataType) -> list[str]:
    return [kind.field(index).name for index in range(kind.num_fields)]


def _pixels_digest(image: ImageContent) -> bytes:
    return hashlib.sha256(image.pixels_HW3.tobytes()).digest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _fingerprint(autoencoder: Autoencoder) -> bytes:
    """Changes whenever the autoencoder's weights do."""
    digest = hashlib.sha256()
    for tensor in autoencoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


@torch.no_grad()
def _cached_latents(autoencoder: Autoencoder, images: Sequence[ImageContent], file: Path) -> list[Tensor]:
    """Posterior means of images (float16 [Z, h, w] each), from the cache file if it is there.

    Images of several sizes are encoded one by one and not cached.
    """
    same = len({image.pixels_HW3.shape for image in images}) == 1
    if same and file.is_file():
        return list(torch.from_numpy(np.load(file)))
    out: list[Tensor] = []
    weight = next(autoencoder.parameters())
    step = AT_ONCE if same else 1
    for start in range(0, len(images), step):
        x_N3HW = torch.stack([image.tensor() for image in images[start : start + step]])
        out += list(autoencoder.encode(x_N3HW.to(weight.device, weight.dtype)).to("cpu", torch.float16))
    if same:
        with files.written(file) as temporary:
            np.save(temporary, torch.stack(out).numpy())
    return out
