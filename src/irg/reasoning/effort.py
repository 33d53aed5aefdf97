"""How much work an image is worth, in a word: what ``--effort``, the page's choice and OpenAI's ``quality`` mean.

A model folder may carry its own presets (``efforts`` in ``irg.json``); for any other model updates are multiples of its
usual number (:data:`UPDATES`). ``balanced`` is the model's own settings where the folder says nothing else of it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from irg.engine.settings import MAX_TIMESTEPS, DrawSettings
from irg.recipes import choose

Effort = Literal["draft", "balanced", "best"]
Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By effort, changes of drawing settings: {"draft": {"initial": {"num_timesteps": 5}, "improving": {...}}}."""

UPDATES: dict[str, tuple[float, float]] = {"draft": (0.3, 0.5), "balanced": (1.0, 1.0), "best": (2.0, 2.0)}
"""Updates of (the first image, later images), as multiples of the model's own. Chosen, not measured: with BAGEL's
settings ``draft`` makes the loop's two images for 1.1 times the forwards of one usual first image."""

OF_QUALITY: dict[str, Effort] = {
    "low": "draft",
    "medium": "balanced",
    "standard": "balanced",
    "high": "best",
    "hd": "best",
    "xhigh": "best",
    "max": "best",
}
"""The effort of each ``quality`` of OpenAI's API; ``auto`` has none."""


def with_effort(
    effort: object, initial: DrawSettings, improving: DrawSettings, presets: Presets
) -> tuple[DrawSettings, DrawSettings]:
    """Drawing settings of the first image and of later ones, changed to an effort.

    Args:
        presets: the model's own.

    Raises:
        ValueError: there is no such effort, or a preset of the model's is not acceptable.
    """
    names = get_args(Effort)
    if effort not in names:
        raise ValueError(f"effort must be one of {', '.join(names)}, got {effort!r}{choose(str(effort), names)}")
    assert isinstance(effort, str)
    if effort not in presets:
        first, later = UPDATES[effort]
        return _scaled(initial, first), _scaled(improving, later)
    own = presets[effort]
    try:
        if unknown := own.keys() - {"initial", "improving"}:
            raise ValueError(f"there are initial and improving, got {', '.join(sorted(unknown))}")
        return replace(initial, **own.get("initial", {})), replace(improving, **own.get("improving", {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the model's irg.json: efforts.{effort}: {error}") from error


def _scaled(draw: DrawSettings, factor: float) -> DrawSettings:
    updates = max(1, round((draw.num_timesteps - 1) * factor))
    return replace(draw, num_timesteps=min(updates + 1, MAX_TIMESTEPS))
