"""The parts an interleaved sequence is made of.

An image appears in three forms. ``Latents`` is an image read through the autoencoder, ``Patches`` is an image read
through the ViT, ``Target`` is the image being drawn (noised latents). An image that is read back is two parts,
latents first. Parts may carry their pixel content; the layout never looks at it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Text:
    """A text without its ``bos``/``eos`` wrapping. With ``loss`` the model learns to write it.

    A ``sibling`` is one of several continuations of the same prefix in a training sample: no other block sees it, and
    the next part stands at its position, as if it were not there.
    """

    ids: tuple[int, ...]
    loss: bool = False
    sibling: bool = False


@dataclass(frozen=True)
class _Image:
    grid: tuple[int, int]  # token rows, token columns
    content: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"{type(self).__name__}: an image needs at least one token a side, got grid {self.grid}")

    @property
    def tokens(self) -> int:
        """Tokens without the start and end token."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Latents(_Image):
    """An image read through the autoencoder: clean latents at time 0. ``content``: float [C, H/8, W/8]."""


@dataclass(frozen=True)
class Patches(_Image):
    """An image read through the ViT. ``content``: float [tokens, patch * patch * 3]."""


@dataclass(frozen=True)
class Target(_Image):
    """An image to draw: noised latents that carry the flow loss. ``content``: clean float [C, H/8, W/8].

    ``noise`` numbers the noised copies of one image in a training sample: each is its own, mutually invisible block.
    """

    noise: int = 0


@dataclass(frozen=True)
class DroppedImage:
    """Stands where a read image was dropped: no tokens, but the rope position still advances by one."""


Part = Text | Latents | Patches | Target | DroppedImage


def drop_conditions(
    parts: Sequence[Part],
    uniform: Callable[[], float],
    text: float = 0.0,
    latents: float = 0.3,
    patches: float = 0.0,
) -> list[Part]:
    """Condition dropout for training, one draw of ``uniform`` in [0, 1) per droppable part, in order.

    A dropped text leaves no trace; a dropped image leaves a :class:`DroppedImage`; a target is never dropped.
    Texts with loss are droppable too (IRG's data sets do that; BAGEL's fixture ``i_dropout_packing`` shows it).
    """
    kept: list[Part] = []
    for part in parts:
        match part:
            case Text():
                if uniform() >= text:
                    kept.append(part)
            case Latents():
                kept.append(DroppedImage() if uniform() < latents else part)
            case Patches():
                kept.append(DroppedImage() if uniform() < patches else part)
            case _:
                kept.append(part)
    return kept


def noised_copies(parts: Sequence[Part], copies: int) -> list[Part]:
    """Repeat every target ``copies`` times: several noise levels share one pass over the context."""
    out: list[Part] = []
    for part in parts:
        if isinstance(part, Target):
            out.extend(replace(part, noise=i) for i in range(copies))
        else:
            out.append(part)
    return out
