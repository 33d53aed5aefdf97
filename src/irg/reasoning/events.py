"""What happens while requests run, in the order it happens: the values that ``IRGPipeline.stream`` yields.

They are the engine's own events, and ``Finished`` in the place of ``RequestDone``. ``request`` is the index of the
prompt in the list that was streamed; ``turn`` 0 is the first image's turn.
"""

from dataclasses import dataclass

from irg.deprecation import module_names
from irg.engine.events import DenoiseStep, ImageDone, TextDelta, TextDone
from irg.results.trajectory import Trajectory


@dataclass(frozen=True)
class Finished:
    """A request is done; nothing more comes for it."""

    request: int
    trajectory: Trajectory


Event = TextDelta | TextDone | DenoiseStep | ImageDone | Finished

__getattr__ = module_names(__name__, {"ThinkingDelta": TextDelta, "ThinkingDone": TextDone, "DrawStep": DenoiseStep})
