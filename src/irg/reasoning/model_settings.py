"""What a model's configuration says of requests, before its weights are read: sizes, settings, memory."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from irg.critics.options import SELF_CHECK
from irg.model.network.config import ModelConfig
from irg.model.placement.memory_plan import RequestShape
from irg.model.weights.profile import FILE, Profile
from irg.reasoning.effort import Presets
from irg.reasoning.settings import SIZE, Settings, with_options
from irg.reasoning.sizes import ImageSizes, parse_size


def image_sizes(config: ModelConfig, usual: Settings) -> ImageSizes:
    """The sizes that the network draws."""
    assert usual.height is not None and usual.width is not None
    return ImageSizes(max(usual.height, usual.width), config.image_stride, config.max_image_size)


def checked_settings(
    config: ModelConfig, usual: Settings, options: Mapping[str, Any], presets: Presets, say: Callable[[str], None]
) -> Settings:
    """The model's own settings with ``options``; a ``size`` that is a ratio is told in pixels.

    Raises:
        ValueError: an option is not acceptable, or the network does not draw images of the size.
    """
    sizes = image_sizes(config, usual)
    chosen = with_options(usual, options, sizes, presets)
    assert chosen.height is not None and chosen.width is not None
    sizes.check(chosen.width, chosen.height)
    if isinstance(parse_size(options.get(SIZE, 1)), Fraction):
        say(f"Size: {options[SIZE]} is {chosen.width}x{chosen.height} for this model")
    return chosen


def check_question(settings: Settings, profile: Profile) -> None:
    """Raises ValueError where the critic is ``self-check`` and the model's profile does not say what to ask."""
    if settings.critic == SELF_CHECK and not profile.how_to_check:
        raise ValueError(f"critic {SELF_CHECK} needs a question: how_to_check in {FILE} of the model's folder")


def usual_request(usual: Settings) -> RequestShape:
    """The request that the memory has to suffice for."""
    assert usual.height is not None and usual.width is not None
    thinking = min(RequestShape.thinking_tokens, usual.max_think_tokens)
    return RequestShape(usual.height, usual.width, thinking, usual.rounds)
