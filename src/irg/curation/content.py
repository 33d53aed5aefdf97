"""What of a configuration decides the content of what it makes, and so the names of the folders where that is kept."""

import dataclasses
from pathlib import Path
from typing import Any

from irg.endpoints import Endpoint

_ENDPOINT_CONTENT = ("model", "extra")


def performance(default: Any, **metadata: Any) -> Any:
    """A field that says how fast or where, not what: it has no part in a stage's content."""
    return dataclasses.field(default=default, metadata={"performance": True, **metadata})


def content(config: Any) -> Any:
    """What of a configuration decides the content of what it makes, as plain JSON.

    A renamed field counts under its old name, so that a build that was begun under that name goes on.
    """
    if isinstance(config, Endpoint):
        return {"at": config.identity or config.url, "corrections": config.corrections} | {
            name: getattr(config, name) for name in _ENDPOINT_CONTENT
        }
    if dataclasses.is_dataclass(config):
        fields = [one for one in dataclasses.fields(config) if not one.metadata.get("performance")]
        return {one.metadata.get("was", one.name): content(getattr(config, one.name)) for one in fields}
    if isinstance(config, list | tuple):
        return [content(one) for one in config]
    if isinstance(config, dict):
        return {name: content(value) for name, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
