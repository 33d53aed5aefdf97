"""What happens while requests run, in the order it happens: the values that ``IRGPipeline.stream`` yields.

``request`` is the index of the prompt in the list that was streamed; ``turn`` 0 is the first image's turn.
"""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from irg.results.trajectory import Trajectory


@dataclass(frozen=True)
class ThinkingDelta:
    """The next piece of a thought."""

    request: int
    turn: int
    text: str


@dataclass(frozen=True)
class ThinkingDone:
    """A whole thought, how many tokens it took and how long."""

    request: int
    turn: int
    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class DrawStep:
    """``step`` of ``total`` updates of an image are done; a grid of N points has N - 1 updates.

    ``time`` is where the image now stands (1 = noise, 0 = finished), ``latents`` [tokens, values] its tokens.
    """

    request: int
    turn: int
    step: int
    total: int
    time: float = 0.0
    latents: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ImageDone:
    """A finished image."""

    request: int
    turn: int
    image: Image.Image
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A request is done; nothing more comes for it."""

    request: int
    trajectory: Trajectory


Event = ThinkingDelta | ThinkingDone | DrawStep | ImageDone | Finished
