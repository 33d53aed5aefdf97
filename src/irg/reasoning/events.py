"""What happens while requests run, in the order it happens: the values that ``IRGPipeline.stream`` yields.

They are the engine's own events, with ``Finished`` in the place of ``RequestDone`` and ``Failed`` in the place of
``RequestFailed``. ``request`` is the index of the prompt in the list that was streamed, ``turn`` 0 the first image's.
"""

from dataclasses import dataclass

from irg.deprecation import module_names
from irg.engine.events import DenoiseStep, ImageDone, TextDelta, TextDone, WaitDone
from irg.results.trajectory import Trajectory


@dataclass(frozen=True)
class Finished:
    """A request is done; nothing more comes for it."""

    request: int
    trajectory: Trajectory


@dataclass(frozen=True)
class CandidateDone:
    """A candidate of a search is drawn and waits for its scores; ``candidate`` is its number, 0 the first."""

    request: int
    candidate: int
    trajectory: Trajectory


class GenerationError(RuntimeError):
    """A request failed while it ran; ``__cause__`` is the error itself."""

    def __init__(self, request: int, prompt: str, cause: Exception) -> None:
        shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
        super().__init__(f"request {request} ({shown!r}) failed: {str(cause) or type(cause).__name__}")
        self.request, self.prompt = request, prompt
        self.__cause__ = cause


@dataclass(frozen=True)
class Failed:
    """A request failed; nothing more comes for it. Other requests are not affected."""

    request: int
    error: GenerationError


Event = TextDelta | TextDone | DenoiseStep | ImageDone | WaitDone | CandidateDone | Finished | Failed

__getattr__ = module_names(__name__, {"ThinkingDelta": TextDelta, "ThinkingDone": TextDone, "DrawStep": DenoiseStep})
