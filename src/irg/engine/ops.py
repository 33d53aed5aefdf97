"""The operations that a reasoning program yields, and their results.

A program is a generator: it yields an operation, the engine carries it out (together with equal operations of other
programs) and sends the result in. Handles name the parts of the program's sequence, so that a later ``Draw`` can say
which of them its unconditional branches leave out.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from irg.engine.settings import DrawSettings

Handles = tuple[int, ...]


@dataclass(frozen=True)
class Say:
    """Put a text into the sequence. Result: :class:`Said`."""

    text: str | tuple[int, ...]


@dataclass(frozen=True)
class Write:
    """Let the model write a text. Result: :class:`Written`.

    ``max_tokens`` counts the text's tokens, bos and eos not included. ``temperature`` 0 takes the likeliest token.
    ``forced`` ids are taken instead of the model's choice, token by token (for tests and for replaying).

    Raises:
        ValueError: a number is negative or not finite.
    """

    max_tokens: int
    temperature: float = 0.3
    forced: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_tokens:
            raise ValueError(f"max_tokens must be at least 0, got {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}")


@dataclass(frozen=True)
class Draw:
    """Let the model draw an image. Result: :class:`Drawn`. The image does not enter the sequence: ``Look`` at it.

    ``drop_text`` and ``drop_image`` are the handles of the parts that the unconditional text branch and the
    unconditional image branch leave out. ``noise`` [tokens, values] replaces the request's own random start.
    """

    height: int
    width: int
    settings: DrawSettings
    drop_text: Handles = ()
    drop_image: Handles = ()
    noise: torch.Tensor | None = None


@dataclass(frozen=True)
class Look:
    """Show the model an image: through the autoencoder, then the ViT. Result: :class:`Said`.

    ``eps`` [channels, h, w] replaces the request's own random sample of the posterior.
    """

    image: Image.Image
    vae: bool = True
    vit: bool = True
    eps: torch.Tensor | None = None


@dataclass(frozen=True)
class Forget:
    """Take everything after a part (the last of ``handles``) out of the sequence. Result: None. Costs nothing."""

    handles: Handles


Operation = Say | Write | Draw | Look | Forget


@dataclass(frozen=True)
class Said:
    """Parts that were put into the sequence."""

    handles: Handles


@dataclass(frozen=True)
class Written:
    """A text the model wrote; it is in the sequence already."""

    handles: Handles
    text: str
    ids: tuple[int, ...]
    seconds: float
    complete: bool  # the model ended it itself


@dataclass(frozen=True)
class Drawn:
    """An image, as it would be saved: 8 bits a channel."""

    image: Image.Image
    latents: torch.Tensor = field(repr=False)
    seconds: float = 0.0


Program = Generator[Operation, Any, Any]
