"""The operations that a reasoning program yields, and their results.

A program is a generator: it yields an operation, the engine carries it out (together with equal operations of other
programs) and sends the result in. Handles name the parts of the program's sequence, so that a later ``Draw`` can say
which of them it, and its unconditional branches, leave out.

Parts that are said or looked at are computed when a ``Write`` or a ``Draw`` first needs them, so a part that only a
guidance branch holds costs that branch alone.
"""

import math
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image

from irg.engine.events import TextKind
from irg.engine.settings import DrawSettings
from irg.sequence.images import ResizeRule

Handles = tuple[int, ...]


@dataclass(frozen=True)
class Say:
    """Put a text into the sequence. Result: :class:`Said`."""

    text: str | tuple[int, ...]


@dataclass(frozen=True)
class Write:
    """Let the model write a text. Result: :class:`Written`.

    Attributes:
        max_tokens: the most tokens that the model chooses; bos, ``prefix`` and eos not included.
        temperature: of the softmax; 0 takes the likeliest token.
        forced: ids that are taken instead of the model's choice, token by token (for tests and for replaying).
        top_k: only so many likeliest tokens can be chosen; 0: all.
        top_p: of those, only the likeliest whose probabilities first reach ``top_p`` together; 1: all.
        prefix: how the text begins; given, not chosen, and part of the result.
        choices: after the prefix the text must go on with one of these; every token that none of them allows has
            probability 0 there.
        logprobs: report how likely every token was that the model chose.
        kind: what the text is to the request; events of it say so.

    Raises:
        ValueError: a number is out of range.
    """

    max_tokens: int
    temperature: float = 0.3
    forced: tuple[int, ...] | None = None
    top_k: int = 0
    top_p: float = 1.0
    prefix: str | tuple[int, ...] = ()
    choices: tuple[str | tuple[int, ...], ...] = ()
    logprobs: bool = False
    kind: TextKind = "thinking"

    def __post_init__(self) -> None:
        if not 0 <= self.max_tokens:
            raise ValueError(f"max_tokens must be at least 0, got {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}")
        if not 0 <= self.top_k:
            raise ValueError(f"top_k must be at least 0 (0 is off), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (1 is off), got {self.top_p}")


@dataclass(frozen=True)
class Draw:
    """Let the model draw an image. Result: :class:`Drawn`. The image does not enter the sequence: ``Look`` at it.

    Each branch is the whole sequence without some parts, and none depends on another: a text can stand in an
    unconditional branch alone.

    Attributes:
        drop_text: parts that the unconditional text branch leaves out.
        drop_image: parts that the unconditional image branch leaves out.
        noise: [tokens, values], replaces the request's own random start.
        drop: parts that the image itself (the main branch) is drawn without.
        rounded: round to 8 bits; default: truncate, as BAGEL does.
        sde_noise: [steps, tokens, values], replaces the request's own random numbers in stochastic steps.
    """

    height: int
    width: int
    settings: DrawSettings
    drop_text: Handles = ()
    drop_image: Handles = ()
    noise: torch.Tensor | None = None
    drop: Handles = ()
    rounded: bool = False
    sde_noise: torch.Tensor | None = None


@dataclass(frozen=True)
class Look:
    """Show the model an image: through the autoencoder, then the ViT. Result: :class:`Said`.

    Attributes:
        eps: [channels, h, w], replaces the request's own random sample of the posterior.
        vae_resize, vit_resize: how the image is resized for each; None: the model's own rules.
        posterior: take a sample of the autoencoder's posterior, or its mean.
    """

    image: Image.Image
    vae: bool = True
    vit: bool = True
    eps: torch.Tensor | None = None
    vae_resize: ResizeRule | None = None
    vit_resize: ResizeRule | None = None
    posterior: Literal["sample", "mean"] = "sample"


@dataclass(frozen=True)
class Forget:
    """Take everything after a part (the last of ``handles``; of none: the whole sequence) out of the sequence.
    Result: None. Costs nothing."""

    handles: Handles = ()


@dataclass(frozen=True)
class Wait:
    """Wait for something outside the model, while other requests go on. Result: the future's; its exception is raised
    in the program, which may catch it. The future is cancelled with the request."""

    future: "Future[Any]"


@dataclass(frozen=True)
class Fork:
    """Run programs from here on, each in a sequence of its own that begins as this one, and wait for all of them.
    Result: the list of their values.

    What the sequence holds so far is computed once. The programs run beside one another and beside all other requests;
    they do not count towards limits of concurrent requests, and their events are not delivered. The error of one is
    raised here; the others are then closed.

    Attributes:
        programs: generators that have not begun.
        seeds: of each program's random numbers.

    Raises:
        ValueError: there is no program, or not as many seeds.
    """

    programs: "tuple[Program, ...]"
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.programs or len(self.programs) != len(self.seeds):
            raise ValueError(
                f"a fork needs programs and as many seeds, got {len(self.programs)} and {len(self.seeds)} seeds"
            )


Operation = Say | Write | Draw | Look | Forget | Wait | Fork


@dataclass(frozen=True)
class Said:
    """Parts that were put into the sequence."""

    handles: Handles


@dataclass(frozen=True)
class Written:
    """A text the model wrote; it is in the sequence already.

    ``logprobs``, where they were asked for: of every token that the model chose (or that was forced in its place), eos
    included, the logarithm of its probability in the softmax of all logits at the operation's temperature (at
    temperature 1 where that is 0), before top-k, top-p and choices.
    """

    handles: Handles
    text: str
    ids: tuple[int, ...]
    seconds: float
    complete: bool  # the model ended it itself
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class StochasticStep:
    """A stochastic step of an image: its times, the image before and after it, float32 [tokens, values], and the mean
    over all values of the logarithm of their density (:func:`irg.engine.flow.gaussian_logprob`), a number."""

    now: float
    after: float
    x_ND: torch.Tensor = field(repr=False)
    x_after_ND: torch.Tensor = field(repr=False)
    logprob: torch.Tensor = field(repr=False)


@dataclass(frozen=True)
class Drawn:
    """An image, as it would be saved: 8 bits a channel. ``stochastic``: the steps that were, in order."""

    image: Image.Image
    latents: torch.Tensor = field(repr=False)
    seconds: float = 0.0
    stochastic: tuple[StochasticStep, ...] = field(default=(), repr=False)


Program = Generator[Operation, Any, Any]
