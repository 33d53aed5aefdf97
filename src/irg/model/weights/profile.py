"""What a model folder says about how to talk to it: ``irg.json`` beside the weights.

A folder without one (BAGEL's own, for example) gets the defaults of its architecture from the caller.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irg import files
from irg.model.weights.config_files import read_json
from irg.recipes import build

FILE = "irg.json"


@dataclass(frozen=True)
class Profile:
    """Texts a model was trained with, and the settings it draws best with (names of ``reasoning.settings``).

    ``protocol`` is the way it was trained to reason in (:mod:`irg.reasoning.protocols`); empty: not said.

    ``how_to_check`` is what the critic ``self-check`` asks: whether what the model planned, or says that it sees, is
    what the prompt asks for.

    ``prompt_notes`` names a plug-in of the group ``irg.prompt_notes``: it says what the model can't do with a prompt.

    ``draft_texts`` are examples of the thinking it writes, if that has a form: the n-gram drafter proposes tokens from
    them.

    ``efforts`` are changes of drawing settings for less or more work (:mod:`irg.reasoning.effort`).
    """

    name: str
    system_prompt: str = ""
    how_to_think: str = ""
    how_to_improve: str = ""
    how_to_check: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    draft_texts: tuple[str, ...] = ()
    protocol: str = ""
    efforts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    prompt_notes: str = ""

    def save(self, folder: Path) -> None:
        """Write ``irg.json`` into a model folder."""
        files.write_json(folder / FILE, asdict(self))


def read_profile(folder: Path) -> Profile | None:
    """The folder's profile, or None if it has none.

    Raises:
        ValueError: the file is there but not what it should be.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    data = read_json(path)
    if "forms" in data:  # its name in folders written by earlier versions
        data["draft_texts"] = data.pop("forms")
    try:
        return build(Profile, data)
    except ValueError as error:
        raise ValueError(f"{path} is not a valid model profile: {error}") from None
