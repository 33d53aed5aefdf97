"""From a row to a sample: texts to ids, images to pixels, a learning mode's parts, condition dropout."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from irg.learning.data.conversations import parse_conversation
from irg.learning.data.row_source import SourceRow
from irg.learning.data.rows import BadRow, pixels_of
from irg.learning.data.schema import TrajectoryRow
from irg.learning.modes import EncodedImage, EncodedTrajectory, Mode, hide_thinking, write
from irg.learning.recipe import Draw, TrainRecipe
from irg.model.network.config import ModelConfig
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.randomness import numpy_generator
from irg.sequence.images import patchify, to_tensor
from irg.sequence.layout import TokenLayout, lay_out
from irg.sequence.parts import Part, Text, drop_conditions, noised_copies


@dataclass(eq=False)
class ImageContent:
    """A decoded image at the size the autoencoder reads, and its latents where they are kept."""

    pixels_HW3: np.ndarray  # uint8
    latents_Zhw: Tensor | None = None  # None: the autoencoder reads the image with its pack

    def tensor(self) -> Tensor:
        """Float [3, H, W] in [-1, 1]."""
        return to_tensor(Image.fromarray(self.pixels_HW3))

    def patches(self, config: ModelConfig) -> Tensor:
        """ViT patches, float32 [patches, values]."""
        return patchify(config.vit_resize(Image.fromarray(self.pixels_HW3)), config.vit.patch_size)


def grids_of(height: int, width: int, config: ModelConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """(latent rows, columns), (patch rows, columns) of an image of that many pixels."""
    vit_width, vit_height = config.vit_resize.size(width, height)
    stride, patch = config.image_stride, config.vit.patch_size
    return (height // stride, width // stride), (vit_height // patch, vit_width // patch)


class TrajectoryEncoder:
    """Texts to token ids, image files to pixels."""

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer, profile: Profile) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.fixed = {
            "system": tokenizer.encode(profile.system_prompt),
            "how_to_think": tokenizer.encode(profile.how_to_think),
            "how_to_improve": tokenizer.encode(profile.how_to_improve),
        }

    def trajectory(self, row: SourceRow) -> EncodedTrajectory:
        """A trajectory row, encoded (or as it is held in memory).

        Raises:
            BadRow: a part is missing or broken.
        """
        if isinstance(row.content, EncodedTrajectory):
            return row.content
        if isinstance(row.content, BadRow):
            raise row.content
        assert isinstance(row.content, Mapping)
        try:
            values = TrajectoryRow.from_columns(row.content, row.folder)
        except ValueError as error:
            raise BadRow(row.where, str(error)) from None
        encode = self.tokenizer.encode
        return EncodedTrajectory(
            prompt=encode(values.prompt),
            thinking=encode(values.thinking),
            image=self.image(values.image, row.where),
            reflection=None if values.reflection is None else encode(values.reflection),
            improved=None if values.improved is None else self.image(values.improved, row.where),
            **self.fixed,
        )

    def image(self, data: bytes, where: str) -> EncodedImage:
        """An image file, decoded; the :class:`ImageContent` is its content.

        Raises:
            BadRow: it cannot be decoded.
        """
        pixels_HW3 = pixels_of(data, where, self.config.vae_resize)
        height, width, _ = pixels_HW3.shape
        return EncodedImage(ImageContent(pixels_HW3), *grids_of(height, width, self.config))

    def conversation(self, text: object, where: str) -> list[Part]:
        """The parts of a conversation, as they are: no system prompt is added.

        Raises:
            BadRow: it is broken.
        """
        parts: list[Part] = []
        for piece in parse_conversation(text, where):
            if piece.text is not None:
                parts.append(Text(self.tokenizer.encode(piece.text), piece.loss))
            else:
                assert piece.image is not None
                image = self.image(piece.image, where)
                parts += [image.as_target()] * piece.loss
                parts += image.as_context(vit=piece.vit, vae=piece.vae)
        return parts


@dataclass(frozen=True)
class Address:
    """Which sample it is: the mode, the row, and the draw that decided its dropout. Enough to make it again."""

    mode: Mode
    slice: int
    row: int
    stream: int
    draw: int


@dataclass
class Sample:
    """A sample that waits for its pack. ``tries``: packs it was too long for."""

    address: Address
    parts: list[Part]
    layout: TokenLayout
    where: str
    tries: int = 0

    def __len__(self) -> int:
        return len(self.layout)


class SampleBuilder:
    """Makes samples from rows."""

    def __init__(self, recipe: TrainRecipe, config: ModelConfig, encoder: TrajectoryEncoder) -> None:
        self.recipe, self.config, self.encoder = recipe, config, encoder
        self.limit = min(recipe.max_tokens_per_sample, recipe.tokens_per_pack)

    def sample(self, mode: Mode, row: SourceRow, stream: int, draw: int) -> Sample:
        """A row as a sample of a mode.

        Raises:
            BadRow: a part is missing or broken, or the sample is too long.
        """
        rng, d = numpy_generator(self.recipe.seed, Draw.DROPOUT, stream, draw), self.recipe.dropout
        if isinstance(row.content, dict) and "conversation" in row.content:
            whole = self.encoder.conversation(row.content["conversation"], row.where)
        else:
            trajectory = hide_thinking(mode, self.encoder.trajectory(row), rng.random, d.thinking)
            try:
                whole = write(mode, trajectory)
            except ValueError as error:
                raise BadRow(row.where, str(error)) from None
        parts = drop_conditions(whole, rng.random, text=d.text, latents=d.vae, patches=d.vit)
        parts = noised_copies(parts, self.recipe.noise_copies)
        try:
            layout = lay_out(parts, self.config.grammar)
        except ValueError as error:
            raise BadRow(row.where, str(error)) from None
        if len(layout) > self.limit:
            which = "max_tokens_per_sample" if self.limit < self.recipe.tokens_per_pack else "tokens_per_pack"
            raise BadRow(row.where, f"{len(layout)} tokens in mode {mode}, more than {which} {self.limit}")
        return Sample(Address(mode, row.slice, row.row, stream, draw), parts, layout, row.where)
