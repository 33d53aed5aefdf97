"""What happens to a request, in the order it happens: the values that a :class:`irg.engine.engine.Session` yields.

``request`` is the number under which the request was added. ``turn`` counts the images that it has finished: 0 until
its first image is done.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

TextKind = Literal["thinking", "reflection", "check", "answer"]


@dataclass(frozen=True)
class TextDelta:
    """The next piece of a text that the model writes."""

    request: int
    turn: int
    text: str
    kind: TextKind = "thinking"


@dataclass(frozen=True)
class TextDone:
    """A whole text: its tokens' number and ids, the seconds it took, and whether the model ended it itself."""

    request: int
    turn: int
    text: str
    tokens: int
    seconds: float
    ids: tuple[int, ...] = field(default=(), repr=False)
    complete: bool = True
    kind: TextKind = "thinking"


@dataclass(frozen=True)
class DenoiseStep:
    """``step`` of ``total`` updates of an image are done; a grid of N points has N - 1 updates.

    ``time`` is where the image now stands (1 = noise, 0 = finished), ``latents`` float32 [tokens, values] its tokens.
    """

    request: int
    turn: int
    step: int
    total: int
    time: float = 0.0
    latents: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ImageDone:
    """A finished image, the seconds it took, and its latents [channels, h, w]."""

    request: int
    turn: int
    image: Image.Image
    seconds: float
    latents: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class WaitDone:
    """What the program waited for is there: ``result``, such as a critic's verdict on the newest image."""

    request: int
    turn: int
    result: Any


@dataclass(frozen=True)
class RequestDone:
    """The request's program returned ``value``; nothing more comes for it."""

    request: int
    value: Any


@dataclass(frozen=True)
class RequestFailed:
    """The request ended with ``error``; nothing more comes for it. Other requests are not affected."""

    request: int
    error: Exception


EngineEvent = TextDelta | TextDone | DenoiseStep | ImageDone | WaitDone | RequestDone | RequestFailed
