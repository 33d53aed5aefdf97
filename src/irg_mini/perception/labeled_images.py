"""Labeled images of the mini world for training encoders and detectors, and their augmentation.

A generator's images are soft, wobbly and slightly off in color, and sometimes hold shapes that are no thing at all.
``sample_example`` renders scenes with such half-things, which are *not* among the labels; ``Augmentation`` makes whole
batches look generated rather than rendered.

Legend: B images; H, W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORLESS_CLASSES, COLORS, object_class
from irg_mini.world.placement import sample_pair
from irg_mini.world.render import DEGRADATIONS, degrade, render
from irg_mini.world.scene import Box, Scene, Thing, pixel_box
from irg_mini.world.sprites import Sprites
from irg_mini.world.vocabularies import find_vocabulary

Reconstruct = Callable[[np.ndarray], np.ndarray]
"""uint8 images [B, H, W, 3] -> the same as a generator's decoder would give them back."""
Vocab = str | Sequence[str]
"""A vocabulary's name, or nouns."""


@dataclass(frozen=True)
class LabeledImage:
    """An image (uint8 [H, W, 3]), the things that can be recognized in it, and the scene it came from."""

    image: np.ndarray
    things: tuple[Thing, ...]
    scene: Scene
    degradation: str | None = None
    """"""


def sample_example(
    rng: np.random.Generator,
    size: int = 96,
    unrecognizable_share: float = 0.25,
    sprites: Sprites | None = None,
    vocab: Vocab | None = None,
) -> LabeledImage:
    """A random image of the world; in ``unrecognizable_share`` of them one thing is changed beyond recognition.

    Requests of both splits are drawn: an encoder must know every combination.
    """
    scene = random_scene(rng, vocab, held_out=0.3)
    if rng.random() < 0.5:
        scene = recolored(scene, rng)
    look = int(rng.integers(2**31))

    def draw(drawn: Scene) -> np.ndarray:
        # The same brightness for every version of the scene.
        return render(drawn, size, sprites, np.random.default_rng(look))

    image = draw(scene)
    if not scene.things or rng.random() >= unrecognizable_share:
        return LabeledImage(image, scene.things, scene)
    return _with_unrecognizable(rng, scene, image, draw, vocab)


def random_scene(rng: np.random.Generator, vocab: Vocab | None, held_out: float = 0.0) -> Scene:
    """A scene, in ``held_out`` of all cases of a held-out request."""
    split = "test" if held_out and rng.random() < held_out else "train"
    return sample_pair(rng, vocab=vocab, split=split)[1]


def recolored(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with each thing's color drawn anew, so that color says nothing about the class or its neighbors."""
    palette = (None, *COLORS)
    things = [
        thing
        if thing.name in COLORLESS_CLASSES or rng.random() < 0.4
        else replace(thing, color=palette[int(rng.integers(len(palette)))])
        for thing in scene.things
    ]
    return replace(scene, things=tuple(things))


def color_of(thing: Thing) -> int:
    """Index of the color a thing shows: its tint, else its class's own color; len(COLORS) where it has none."""
    color = thing.color or object_class(thing.name).natural
    return len(COLORS) if color is None else COLORS.index(color)


def _with_unrecognizable(
    rng: np.random.Generator,
    scene: Scene,
    image: np.ndarray,
    draw: Callable[[Scene], np.ndarray],
    vocab: Vocab | None,
) -> LabeledImage:
    index = int(rng.integers(len(scene.things)))
    victim = scene.things[index]
    others = scene.things[:index] + scene.things[index + 1 :]
    without = draw(replace(scene, things=others)).astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:  # faint, yet there
        weight = rng.uniform(0.75, 0.95)
        mixed = weight * image + (1 - weight) * without
        return LabeledImage(mixed.astype(np.uint8), scene.things, scene)
    if kind == 1:  # too faint to count
        weight = rng.uniform(0.1, 0.4)
        mixed = weight * image + (1 - weight) * without
    elif kind == 2:  # two classes at once
        names = find_vocabulary(vocab).nouns
        double = replace(victim, name=names[int(rng.integers(len(names)))])
        if double.name == victim.name:
            return LabeledImage(image, scene.things, scene)
        weight = rng.uniform(0.4, 0.6)
        mixed = weight * image + (1 - weight) * draw(replace(scene, things=(*others, double)))
    else:
        mixed = _scrambled(rng, image, victim, smear=kind == 3)
    return LabeledImage(mixed.clip(0, 255).astype(np.uint8), others, scene)


def _scrambled(rng: np.random.Generator, image: np.ndarray, victim: Thing, smear: bool) -> np.ndarray:
    """The image with the thing smeared to a blob, or with the tiles that it covers shuffled."""
    size = image.shape[0]
    x0, y0, x1, y1 = (min(max(value, 0), size) for value in pixel_box(victim, size))
    region = torch.from_numpy(image[y0:y1, x0:x1].astype(np.float32)).permute(2, 0, 1)[None]
    cells = (3, 3) if smear else (4, 4)
    mixed = image.astype(np.float32)
    if smear:
        blob = F.interpolate(F.adaptive_avg_pool2d(region, cells), region.shape[2:], mode="bicubic")
        mixed[y0:y1, x0:x1] = blob[0].permute(1, 2, 0).numpy()
        return mixed
    high, wide = (y1 - y0) // cells[0], (x1 - x0) // cells[1]
    if high and wide:
        tiles = [(y0 + r * high, x0 + c * wide) for r in range(cells[0]) for c in range(cells[1])]
        for (y, x), source in zip(tiles, rng.permutation(len(tiles)), strict=True):
            v, u = tiles[int(source)]
            mixed[y : y + high, x : x + wide] = image[v : v + high, u : u + wide]
    return mixed


class Pool:
    """Rendered images that training draws from, and that are slowly replaced by new ones.

    Every third of the first ones goes through ``reconstruct`` (an autoencoder) when there is one.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        size: int = 96,
        unrecognizable_share: float = 0.25,
        degraded_share: float = 0.0,
        reconstruct: Reconstruct | None = None,
        sprites: Sprites | None = None,
        vocab: Vocab | None = None,
    ) -> None:
        self.seed, self.size, self.sprites, self.vocab = seed, size, sprites, vocab
        self.unrecognizable_share, self.degraded_share = unrecognizable_share, degraded_share
        self.made = count
        self.examples: list[LabeledImage] = [self._make(number) for number in range(count)]
        if reconstruct is not None:
            reconstructed = range(0, count, 3)
            images_BHW3 = reconstruct(np.stack([self.examples[i].image for i in reconstructed]))
            for i, image in zip(reconstructed, images_BHW3, strict=True):
                self.examples[i] = replace(self.examples[i], image=image)

    def _make(self, number: int) -> LabeledImage:
        rng = np.random.default_rng([self.seed, number])
        example = sample_example(rng, self.size, self.unrecognizable_share, self.sprites, self.vocab)
        if rng.random() < self.degraded_share:
            how = DEGRADATIONS[int(rng.integers(len(DEGRADATIONS)))]
            example = replace(example, image=degrade(example.image, rng, how), degradation=how)
        return example

    def refresh(self, count: int) -> None:
        """Replace the ``count`` oldest rendered images (reconstructed ones stay: they cost more).

        Refreshing at once leaves the same images as refreshing little by little, each rendered only once.
        """
        latest = {number % len(self.examples): number for number in range(self.made, self.made + count)}
        for place, number in latest.items():
            if place % 3:
                self.examples[place] = self._make(number)
        self.made += count

    def draw(self, rng: np.random.Generator, batch: int) -> list[LabeledImage]:
        """A random batch."""
        return [self.examples[i] for i in rng.integers(len(self.examples), size=batch)]


def to_batch(examples: list[LabeledImage]) -> Tensor:
    """Their images, float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack([example.image for example in examples])).permute(0, 3, 1, 2).float() / 127.5 - 1


# ----------------------------------------------------------------------------------------------------- augmentation


@dataclass(frozen=True)
class Shift:
    """How a batch was moved: a point at p (shares of the side) is now at center + scale * (p - center) + offset."""

    scale_B: np.ndarray
    offset_B2: np.ndarray

    def __call__(self, index: int, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point (x, y) of image ``index`` is now."""
        scale, offset = float(self.scale_B[index]), self.offset_B2[index].tolist()
        return 0.5 + scale * (point[0] - 0.5) + offset[0], 0.5 + scale * (point[1] - 0.5) + offset[1]

    def box(self, index: int, box: Box) -> Box:
        """Where a box of image ``index`` is now."""
        x0, y0, x1, y1 = box
        return *self(index, (x0, y0)), *self(index, (x1, y1))


def augmented_part(x_B3HW: Tensor, augmentation: "Augmentation", share: float, generator: torch.Generator) -> Shift:
    """Augment the first ``share`` of a batch in place; where the points of all its images are now."""
    batch, count = len(x_B3HW), round(share * len(x_B3HW))
    scale_B, offset_B2 = np.ones(batch), np.zeros((batch, 2))
    if count:
        x_B3HW[:count], moved = augmentation(x_B3HW[:count], generator)
        scale_B[:count], offset_B2[:count] = moved.scale_B, moved.offset_B2
    return Shift(scale_B, offset_B2)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a batch that leave its things recognizable: wobble, blur, ghosts, noise, color."""

    move: float = 0.03
    """Largest offset, in shares of the side; 0 keeps every thing on its place."""
    zoom: float = 0.05
    wobble: float = 0.012
    """Spread of the smooth displacement, in shares of the side."""
    ghost: float = 0.15
    noise: float = 0.06
    color: float = 0.06

    def __call__(self, x_B3HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Shift]:
        """Changed images (in [-1, 1]) and where their points went."""
        x_B3HW, shift = self._moved(x_B3HW, generator)
        x_B3HW = self._blurred(x_B3HW, generator)
        return self._toned(x_B3HW, generator).clamp_(-1, 1), shift

    def _moved(self, x_B3HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Shift]:
        batch, _, height, width = x_B3HW.shape
        offset_B2 = (torch.rand(batch, 2, generator=generator) * 2 - 1) * self.move
        scale_B = 1 + (torch.rand(batch, generator=generator) * 2 - 1) * self.zoom
        rows = torch.linspace(-1, 1, height + 1)[:-1] + 1 / height
        cols = torch.linspace(-1, 1, width + 1)[:-1] + 1 / width
        grid_HW2 = torch.stack([cols.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
        # Positions run over -1..1, so an offset in shares counts twice.
        source_BHW2 = (grid_HW2 - 2 * offset_B2[:, None, None]) / scale_B[:, None, None, None]
        strength_B = torch.rand(batch, generator=generator) * (torch.rand(batch, generator=generator) < 0.6)
        bumps = torch.randn(batch, 2, 7, 7, generator=generator) * strength_B.view(-1, 1, 1, 1) * 2 * self.wobble
        smooth_BHW2 = F.interpolate(bumps, (height, width), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
        moved = F.grid_sample(x_B3HW, source_BHW2 + smooth_BHW2, padding_mode="border", align_corners=False)
        return moved, Shift(scale_B.numpy(), offset_B2.numpy())

    def _blurred(self, x_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        batch = x_B3HW.shape[0]
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        soft = _filtered(x_B3HW, kernel)  # spread of one pixel
        softer = _filtered(soft, kernel)
        weights = torch.rand(batch, 2, generator=generator) * (torch.rand(batch, 2, generator=generator) < 0.5)
        first, second = weights.view(batch, 2, 1, 1, 1).unbind(1)
        x_B3HW = torch.lerp(torch.lerp(x_B3HW, soft, first), softer, 0.6 * second)
        chosen = (torch.rand(batch, generator=generator) < 0.3).view(-1, 1, 1, 1)
        faint = torch.rand(batch, generator=generator).view(-1, 1, 1, 1) * self.ghost * chosen
        return torch.lerp(x_B3HW, x_B3HW.roll(1, 0), faint)

    def _toned(self, x_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = x_B3HW.shape

        def level(chance: float) -> Tensor:
            chosen = torch.rand(batch, generator=generator) < chance
            return (torch.rand(batch, generator=generator) * chosen).view(-1, 1, 1, 1)

        x_B3HW = x_B3HW + level(0.5) * self.noise * torch.randn(x_B3HW.shape, generator=generator)
        blotches = torch.randn(batch, 3, height // 8, width // 8, generator=generator) * level(0.5) * self.noise
        x_B3HW = x_B3HW + F.interpolate(blotches, (height, width), mode="bilinear")
        gain = 1 + (torch.rand(batch, 1, 1, 1, generator=generator) - 0.6) * 4 * self.color
        tone = (torch.rand(batch, 3, 1, 1, generator=generator) * 2 - 1) * self.color
        return x_B3HW * gain + tone


def _filtered(x_B3HW: Tensor, kernel: Tensor) -> Tensor:
    """Separable blur with reflected edges."""
    taps, reach = kernel.shape[0], kernel.shape[0] // 2
    across = kernel.view(1, 1, 1, taps).expand(3, 1, 1, taps)
    x_B3HW = F.conv2d(F.pad(x_B3HW, (reach, reach, 0, 0), mode="reflect"), across, groups=3)
    down = kernel.view(1, 1, taps, 1).expand(3, 1, taps, 1)
    return F.conv2d(F.pad(x_B3HW, (0, 0, reach, reach), mode="reflect"), down, groups=3)


def background_index(scene: Scene) -> int:
    """The background's place in the world's table."""
    return list(BACKGROUNDS).index(scene.background)
