"""Interleaving Reasoning Generation: think in text, draw, look at the drawing, reflect, draw better.

The names below are loaded when they are first used, so that ``import irg`` and ``irg --help`` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from irg.version import __version__

if TYPE_CHECKING:
    from irg.engine.settings import DrawSettings
    from irg.reasoning.pipeline import IRGPipeline
    from irg.reasoning.settings import Settings
    from irg.results.reflection import Reflection
    from irg.results.trajectory import Trajectory, Turn

__all__ = ["DrawSettings", "IRGPipeline", "Reflection", "Settings", "Trajectory", "Turn", "__version__"]

_HOMES = {
    "DrawSettings": "irg.engine.settings",
    "IRGPipeline": "irg.reasoning.pipeline",
    "Reflection": "irg.results.reflection",
    "Settings": "irg.reasoning.settings",
    "Trajectory": "irg.results.trajectory",
    "Turn": "irg.results.trajectory",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'irg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
