"""Trajectories held in memory: images as pixels plus latents encoded once. Right for data of one machine; larger data
is streamed (:mod:`.stream`).

Legend: N images; z latent channels; h, w latent sides.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from irg.learning.data.rows import BadRow, Rejections, Row, data_files, pixels_of, read_rows
from irg.learning.modes import EncodedImage, EncodedTrajectory, Mode
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.config import ModelConfig
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import ResizeRule, patchify, to_tensor


def patches_of(pixels_HW3: np.ndarray, config: ModelConfig) -> Tensor:
    """ViT patches of an image (at the size the autoencoder sees), float32 [patches, values]."""
    return patchify(config.vit_resize(Image.fromarray(pixels_HW3)), config.vit.patch_size)


def grids_of(height: int, width: int, config: ModelConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """(latent rows, columns), (patch rows, columns) of an image of that many pixels."""
    vit_width, vit_height = config.vit_resize.size(width, height)
    stride, patch = config.image_stride, config.vit.patch_size
    return (height // stride, width // stride), (vit_height // patch, vit_width // patch)


def fixed_texts(tokenizer: TextTokenizer, profile: Profile) -> dict[str, tuple[int, ...]]:
    """The texts that are the same in every row, by their names in EncodedTrajectory."""
    return {
        "system": tokenizer.encode(profile.system_prompt),
        "how_to_think": tokenizer.encode(profile.how_to_think),
        "how_to_improve": tokenizer.encode(profile.how_to_improve),
    }


class TrajectoryData:
    """All trajectories of a run, encoded. Images are numbered; parts carry the number, not the pixels."""

    def __init__(
        self,
        sources: Sequence[str],
        tokenizer: TextTokenizer,
        config: ModelConfig,
        profile: Profile,
        autoencoder: Autoencoder,
        cache: Path | None = None,
        quiet: bool = True,
        rejections: Rejections | None = None,
    ) -> None:
        """Read and encode, file by file. ``cache`` is a folder that keeps each file's latents between runs.

        A broken row goes to ``rejections``, or is an error where there is no such log.
        """
        self.config = config
        self.pixels: list[np.ndarray] = []
        self._latents: list[Tensor] = []
        rows: list[Row] = []
        seal = _fingerprint(autoencoder)
        with ThreadPoolExecutor(4) as pool:
            for file in track(data_files(sources), "encoding images", disable=quiet):
                new, pixels = [], list[np.ndarray]()
                read = list(read_rows([file], rejections))
                for row, decoded in zip(read, pool.map(partial(_decoded, rule=config.vae_resize), read), strict=True):
                    if not isinstance(decoded, BadRow):
                        new.append(row)
                        pixels += decoded
                    elif rejections is None:
                        raise decoded
                    else:
                        rejections.add(decoded)
                key = hashlib.sha256(file.read_bytes() + seal).hexdigest()[:16]
                self._latents += _cached_latents(autoencoder, pixels, cache / f"latents-{key}.npy" if cache else None)
                self.pixels += pixels
                rows += new
        starts = np.cumsum([0, *(1 if row.improved is None else 2 for row in rows)])
        self.first_image = starts[:-1]
        self.two_turns = np.array([row.improved is not None for row in rows], bool)
        self.held = np.zeros(0, np.int64)
        self._encode_texts(rows, tokenizer, profile)

    def __len__(self) -> int:
        return len(self.two_turns)

    def _encode_texts(self, rows: Sequence[Row], tokenizer: TextTokenizer, profile: Profile) -> None:
        self.prompts = tokenizer.encode_many([row.prompt for row in rows])
        self.thinking = tokenizer.encode_many([row.thinking for row in rows])
        self.reflections = tokenizer.encode_many([row.reflection or "" for row in rows])
        self.fixed = fixed_texts(tokenizer, profile)

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
        image, two = int(self.first_image[row]), bool(self.two_turns[row])
        return EncodedTrajectory(
            prompt=self.prompts[row],
            thinking=self.thinking[row],
            image=self._image(image),
            reflection=self.reflections[row] if two else None,
            improved=self._image(image + 1) if two else None,
            **self.fixed,
        )

    def _image(self, key: int) -> EncodedImage:
        return EncodedImage(key, *grids_of(self.pixels[key].shape[0], self.pixels[key].shape[1], self.config))

    def patches(self, key: int) -> Tensor:
        """ViT patches of an image, float32 [patches, values]."""
        return patches_of(self.pixels[key], self.config)

    def latents(self, key: int) -> Tensor:
        """Latent tokens of an image, [tokens, values]."""
        return patchify(self._latents[key], self.config.latent_patch_size)


def _decoded(row: Row, rule: ResizeRule) -> list[np.ndarray] | BadRow:
    """A row's images, or why they can't be had."""
    try:
        return [pixels_of(data, row.where, rule) for data in (row.image, row.improved) if data is not None]
    except BadRow as bad:
        return bad


def _fingerprint(autoencoder: Autoencoder) -> bytes:
    """Changes whenever the autoencoder's weights do."""
    digest = hashlib.sha256()
    for tensor in autoencoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


@torch.inference_mode()
def _cached_latents(autoencoder: Autoencoder, pixels: list[np.ndarray], file: Path | None) -> list[Tensor]:
    """Posterior means of images (float16 [z, h, w] each), from the cache file if it is there.

    Images of several sizes are encoded one by one and not cached.
    """
    same = len({p.shape for p in pixels}) == 1
    if file and same and file.is_file():
        return list(torch.from_numpy(np.load(file)))
    out: list[Tensor] = []
    weight = next(autoencoder.parameters())
    step = 64 if same else 1
    for start in range(0, len(pixels), step):
        x_N3HW = torch.stack([to_tensor(Image.fromarray(p)) for p in pixels[start : start + step]])
        out += list(autoencoder.encode(x_N3HW.to(weight.device, weight.dtype)).to("cpu", torch.float16))
    if file and same:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.part.npy")
        np.save(temporary, torch.stack(out).numpy())
        temporary.replace(file)
    return out
