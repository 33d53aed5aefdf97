"""The learning modes: the six of IRGL, ways to write one trajectory down as a sequence of parts.

A trajectory is prompt, T1, I1, T2, I2. Whatever a mode does not learn is context without loss (``docs/training.md``;
the paper's figure of the modes). Two further ways are not IRGL's but BAGEL's own ground: ``direct`` (prompt ->
image) and ``unconditional`` (an image from nothing, what guidance subtracts).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from irg.sequence.parts import Latents, Part, Patches, Target, Text

Mode = Literal[
    "initial_thinking_understanding",
    "initial_thinking_generation",
    "initial_full",
    "improving_thinking_understanding",
    "improving_thinking_generation",
    "improving_full",
    "direct",
    "unconditional",
]
MODES: tuple[Mode, ...] = get_args(Mode)
IRGL: tuple[Mode, ...] = MODES[:6]
IMPROVING: tuple[Mode, ...] = MODES[3:6]


def turns(mode: Mode) -> int:
    """Of how many turns the rows are that a mode is for."""
    return 2 if mode in IMPROVING else 1


@dataclass(frozen=True)
class EncodedImage:
    """An image in all its forms, ready to become parts. ``content`` is what its parts carry, such as
    an :class:`irg.learning.data.samples.ImageContent`."""

    content: Any
    latent_grid: tuple[int, int]
    patch_grid: tuple[int, int]

    def as_context(self, vit: bool = True, vae: bool = True) -> list[Part]:
        """The image as something to look at: clean latents, then ViT patches."""
        forms: list[Part] = [Latents(self.latent_grid, self.content)] if vae else []
        return [*forms, Patches(self.patch_grid, self.content)] if vit else forms

    def as_target(self) -> Part:
        """The image as something to draw."""
        return Target(self.latent_grid, self.content)


@dataclass(frozen=True)
class EncodedTrajectory:
    """One trajectory as token ids and images. ``reflection`` and ``improved`` are None for a first turn alone."""

    system: tuple[int, ...]
    prompt: tuple[int, ...]
    thinking: tuple[int, ...]
    image: EncodedImage
    reflection: tuple[int, ...] | None = None
    improved: EncodedImage | None = None
    how_to_think: tuple[int, ...] = ()
    how_to_improve: tuple[int, ...] = ()


def hide_thinking(
    mode: Mode, trajectory: EncodedTrajectory, uniform: Callable[[], float], share: float
) -> EncodedTrajectory:
    """In ``share`` of all improving samples, leave the thinking out of what the reflection sees.

    An image mostly shows what the thinking planned, so a small model learns to repeat it instead of looking. Without
    it, only the image is left to go by. ``uniform`` in [0, 1) is drawn from only where the share matters.
    """
    if not share or mode not in IMPROVING or uniform() >= share:
        return trajectory
    return replace(trajectory, thinking=())


def write(mode: Mode, trajectory: EncodedTrajectory) -> list[Part]:
    """Write a trajectory down in a mode.

    Raises:
        ValueError: the trajectory lacks what the mode needs.
    """
    t = trajectory
    system = [Text(t.system)] if t.system else []
    prompt = [*system, Text(t.prompt)]
    if mode in IMPROVING and (t.improved is None or t.reflection is None):
        raise ValueError(f"mode {mode} needs a reflection and an improved image, which this trajectory lacks")
    match mode:
        case "initial_thinking_understanding":
            return [*prompt, *t.image.as_context(), Text(t.how_to_think), Text(t.thinking, loss=True)]
        case "initial_thinking_generation":
            return [*prompt, Text(t.thinking, loss=True)]
        case "initial_full":
            return [*prompt, Text(t.thinking, loss=True), t.image.as_target()]
        case "direct":
            return [Text(t.prompt), t.image.as_target()]
        case "unconditional":
            return [*system, t.image.as_target()]
    assert t.improved is not None and t.reflection is not None
    reflection = Text(t.reflection, loss=True)
    planned = [*prompt, Text(t.thinking)] if t.thinking else prompt
    match mode:
        case "improving_thinking_understanding":
            return [*prompt, *t.image.as_context(), *t.improved.as_context(), Text(t.how_to_improve), reflection]
        case "improving_thinking_generation":
            return [*planned, *t.image.as_context(), reflection]
        case "improving_full":
            return [*planned, *t.image.as_context(), reflection, t.improved.as_target()]
    raise ValueError(f"unknown mode {mode!r}; the modes are {', '.join(MODES)}")
