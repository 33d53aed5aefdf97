"""Trajectories for training: parquet rows in, token ids and encoded pictures out.

A row has ``prompt``, ``thinking``, ``image`` and, with a second turn, ``reflection`` and ``improved``; pictures are
``{bytes, path}`` structs. A row that cannot be used is an error that names file and row: never half-used.

Everything is held in memory, pictures as pixels plus latents encoded once: right for data of one machine.

Legend: N pictures; z latent channels; h, w latent sides.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from irg.learning.modes import EncodedPicture, EncodedTrajectory, Mode
from irg.model.autoencoder import Autoencoder
from irg.model.config import ModelConfig
from irg.model.profile import Profile
from irg.model.tokenizer import TextTokenizer
from irg.sequence.images import ResizeRule, patchify, to_rgb, to_tensor

COLUMNS = ("prompt", "thinking", "image", "reflection", "improved")


@dataclass(frozen=True)
class Row:
    """One trajectory before encoding; ``where`` names its file and row for messages."""

    where: str
    prompt: str
    thinking: str
    image: bytes
    reflection: str | None
    improved: bytes | None


def data_files(sources: Sequence[str]) -> list[Path]:
    """Parquet files named directly or found in folders, sorted.

    Raises:
        ValueError: a source does not exist or a folder holds none.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise ValueError(f"data: {source} is neither a parquet file nor a folder with parquet files")
        files += found
    return files


def read_rows(files: Sequence[Path]) -> Iterator[Row]:
    """All rows of all files, in order.

    Raises:
        ValueError: a file lacks a column, or a row lacks a part.
    """
    for file in files:
        try:
            table = pq.read_table(file, columns=list(COLUMNS))
        except Exception as error:
            raise ValueError(f"{file}: not a trajectory parquet file: {error}") from None
        for number, row in enumerate(table.to_pylist()):
            yield _checked(row, f"{file}, row {number}")


def _checked(row: dict[str, Any], where: str) -> Row:
    def picture(name: str) -> bytes | None:
        return row[name]["bytes"] if row[name] else None

    image, improved = picture("image"), picture("improved")
    if not row["prompt"] or not row["thinking"] or not image:
        raise ValueError(f"{where}: a trajectory needs prompt, thinking and image")
    if (row["reflection"] is None) != (improved is None):
        raise ValueError(f"{where}: reflection and improved picture come together or not at all")
    return Row(where, row["prompt"], row["thinking"], image, row["reflection"], improved)


def _pixels(image: bytes, where: str, rule: ResizeRule) -> np.ndarray:
    try:
        opened = Image.open(io.BytesIO(image))
        opened.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{where}: the picture cannot be decoded: {error}") from None
    picture = to_rgb(opened)
    size = rule.size(*picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture)


class TrajectoryData:
    """All trajectories of a run, encoded. Pictures are numbered; parts carry the number, not the pixels."""

    def __init__(
        self,
        sources: Sequence[str],
        tokenizer: TextTokenizer,
        config: ModelConfig,
        profile: Profile,
        autoencoder: Autoencoder,
        cache: Path | None = None,
        quiet: bool = True,
    ) -> None:
        """Read and encode, file by file. ``cache`` is a folder that keeps each file's latents between runs."""
        self.config = config
        self.pixels: list[np.ndarray] = []
        self._latents: list[Tensor] = []
        rows: list[Row] = []
        seal = _fingerprint(autoencoder)
        with ThreadPoolExecutor(4) as pool:
            for file in track(data_files(sources), "encoding pictures", disable=quiet):
                new = list(read_rows([file]))
                jobs = [(data, row.where) for row in new for data in (row.image, row.improved) if data is not None]
                pixels = list(pool.map(lambda job: _pixels(job[0], job[1], config.vae_resize), jobs))
                key = hashlib.sha256(file.read_bytes() + seal).hexdigest()[:16]
                self._latents += _cached_latents(autoencoder, pixels, cache / f"latents-{key}.npy" if cache else None)
                self.pixels += pixels
                rows += new
        starts = np.cumsum([0, *(1 if row.improved is None else 2 for row in rows)])
        self.first_picture = starts[:-1]
        self.two_turns = np.array([row.improved is not None for row in rows], bool)
        self.held = np.zeros(0, np.int64)
        self._encode_texts(rows, tokenizer, profile)

    def __len__(self) -> int:
        return len(self.two_turns)

    def _encode_texts(self, rows: Sequence[Row], tokenizer: TextTokenizer, profile: Profile) -> None:
        self.prompts = tokenizer.encode_many([row.prompt for row in rows])
        self.thinking = tokenizer.encode_many([row.thinking for row in rows])
        self.reflections = tokenizer.encode_many([row.reflection or "" for row in rows])
        self.fixed = {
            name: tokenizer.encode(text)
            for name, text in (
                ("system", profile.system_prompt),
                ("how_to_think", profile.how_to_think),
                ("how_to_improve", profile.how_to_improve),
            )
        }

    def hold_out(self, rows: int) -> np.ndarray:
        """Take the last one-turn rows out of training; returns their indices.

        Raises:
            ValueError: there are not that many, or none would be left.
        """
        single = np.flatnonzero(~self.two_turns)
        if rows >= len(single):
            raise ValueError(
                f"validation_rows {rows} leaves no one-turn row to train on (the data has {len(single)}); "
                "lower it, or set validate_every to 0"
            )
        self.held = single[len(single) - rows :]
        return self.held

    def rows_for(self, mode: Mode) -> np.ndarray:
        """Indices of the training rows that can be written in a mode."""
        rows = np.flatnonzero(self.two_turns if mode.startswith("improving") else ~self.two_turns)
        return np.setdiff1d(rows, self.held)

    def trajectory(self, row: int) -> EncodedTrajectory:
        """One row, encoded."""
        picture, two = int(self.first_picture[row]), bool(self.two_turns[row])
        return EncodedTrajectory(
            prompt=self.prompts[row],
            thinking=self.thinking[row],
            image=self._picture(picture),
            reflection=self.reflections[row] if two else None,
            improved=self._picture(picture + 1) if two else None,
            **self.fixed,
        )

    def _picture(self, key: int) -> EncodedPicture:
        height, width = self.pixels[key].shape[:2]
        stride = self.config.image_stride
        vit_width, vit_height = self.config.vit_resize.size(width, height)
        patch = self.config.vit.patch_size
        return EncodedPicture(key, (height // stride, width // stride), (vit_height // patch, vit_width // patch))

    def patches(self, key: int) -> Tensor:
        """ViT patches of a picture, float32 [patches, values]."""
        pixels_3HW = self.config.vit_resize(Image.fromarray(self.pixels[key]))
        return patchify(pixels_3HW, self.config.vit.patch_size)

    def latents(self, key: int) -> Tensor:
        """Latent tokens of a picture, [tokens, values]."""
        return patchify(self._latents[key], self.config.latent_patch_size)


def _fingerprint(autoencoder: Autoencoder) -> bytes:
    """Changes whenever the autoencoder's weights do."""
    digest = hashlib.sha256()
    for tensor in autoencoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()


@torch.inference_mode()
def _cached_latents(autoencoder: Autoencoder, pixels: list[np.ndarray], file: Path | None) -> list[Tensor]:
    """Posterior means of pictures (float16 [z, h, w] each), from the cache file if it is there.

    Pictures of several sizes are encoded one by one and not cached.
    """
    same = len({p.shape for p in pixels}) == 1
    if file and same and file.is_file():
        return list(torch.from_numpy(np.load(file)))
    out: list[Tensor] = []
    step = 64 if same else 1
    for start in range(0, len(pixels), step):
        x_N3HW = torch.stack([to_tensor(Image.fromarray(p)) for p in pixels[start : start + step]])
        out += list(autoencoder.encode(x_N3HW).to(torch.float16))
    if file and same:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".part.npy")
        np.save(temporary, torch.stack(out).numpy())
        temporary.replace(file)
    return out
