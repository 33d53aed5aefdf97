"""What a model folder says about how to talk to it: ``irg.json`` beside the weights.

A folder without one (BAGEL's own, say) gets the defaults of its architecture from whoever asks.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irg.model.weights.config_files import read_json
from irg.recipes import build

FILE = "irg.json"


@dataclass(frozen=True)
class Profile:
    """Texts a model was trained with, and the settings it draws best with (names of ``reasoning.settings``).
    ``draft_texts``: examples of the thinking it writes, if it keeps to a form, for speculative decoding."""

    name: str
    system_prompt: str = ""
    how_to_think: str = ""
    how_to_improve: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    draft_texts: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``irg.json`` into a model folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_profile(folder: Path) -> Profile | None:
    """The folder's profile, or None if it has none.

    Raises:
        ValueError: the file is there but not what it should be.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    data = read_json(path)
    if isinstance(data, dict) and "forms" in data:  # the field's name in folders of before
        data["draft_texts"] = data.pop("forms")
    try:
        return build(Profile, data)
    except ValueError as error:
        raise ValueError(f"{path} is not a valid model profile: {error}") from None
