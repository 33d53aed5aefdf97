"""Published models and the protocol each was trained for; which protocol a model gets if nobody names one."""

import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PROTOCOL = "irg"
REFINER_WEIGHTS = "rvr.safetensors"
"""Only RvR's folder has it: the refiner beside BAGEL's own weights."""
_HUB_ADDRESS = re.compile(r"https?://[^/]+/|hf://|(huggingface|hf)\.co/")


@dataclass(frozen=True)
class KnownModel:
    """What its authors' repository says of a model on the Hugging Face hub.

    Attributes:
        protocol: the protocol it was trained for.
        license: of the authors' repository; the model's page on the hub may say more.
        weights: its weights file: ``ema``, ``model`` or ``rvr``, each with ``.safetensors``.
        notes: what a user should know before he downloads it; may be empty.
    """

    protocol: str
    license: str
    weights: str
    notes: str = ""


KNOWN_MODELS: dict[str, KnownModel] = {
    "ByteDance-Seed/BAGEL-7B-MoT": KnownModel(
        "bagel", "Apache-2.0", "ema", "The base of all the others. It was not trained to reflect on its images."
    ),
    "YijiaFan/UMM-Reflection-BAGEL-RL": KnownModel(
        "umm-reflection", "Apache-2.0", "ema", "512 x 512 only. Its first training stage used data for research only."
    ),
    "YijiaFan/UMM-Reflection-BAGEL-SFT": KnownModel(
        "umm-reflection", "Apache-2.0", "ema", "512 x 512 only. Trained on data for non-commercial research only."
    ),
    "JiayiGuo821/RvR-7B-MoT": KnownModel(
        "rvr", "MIT", "rvr", "Two sets of weights: ema (BAGEL, draws the first image) and rvr (refines an image)."
    ),
    "Alex11556666/UniReason": KnownModel(
        "unireason", "Apache-2.0", "ema", "Checkpoints of two stages in subfolders, such as results/stage_1_align."
    ),
    "Fr0zencr4nE/UniCoT-7B-MoT": KnownModel("unicot", "Apache-2.0", "ema"),
    "Fr0zencr4nE/UniCoT-7B-MoT-v0.2": KnownModel(
        "unicot-v0.2", "Apache-2.0", "ema", "Its configuration files and autoencoder are taken from BAGEL's folder."
    ),
    "ThinkMorph/ThinkMorph-7B": KnownModel(
        "thinkmorph", "Apache-2.0", "model", "Answers visual questions, with images of its own on the way."
    ),
}
"""By hub id."""


def protocol_of(model_name: str, folder: Path, profile_protocol: str = "") -> tuple[str, str]:
    """The protocol of a model, and why.

    The first of these that says something: the folder's ``irg.json``; the table of known models; a file that only one
    protocol's folders have. Otherwise ``irg``.

    Args:
        model_name: as the user gave it: a hub id, with ``@revision`` or not, its address, or a folder.
        folder: where the model is.
        profile_protocol: what ``irg.json`` in the folder names; empty where it names none.
    """
    if profile_protocol:
        return profile_protocol, "irg.json in the model's folder names it"
    known = known_id(model_name, folder)
    if known is not None:
        return KNOWN_MODELS[known].protocol, f"{known} was trained for it"
    if (folder / REFINER_WEIGHTS).is_file():
        return "rvr", f"the model's folder has {REFINER_WEIGHTS}"
    return DEFAULT_PROTOCOL, "nothing says otherwise"


def usual_weights(model_name: str, folder: Path, protocol: str | None = None) -> str | None:
    """The name of the weights that a model is run with in a protocol (None: its own); None where nothing is known.

    Args:
        folder: where the model is; one that is not there yet, such as a hub id, will do.
    """
    known = known_id(model_name, folder)
    if known is not None and protocol in (None, KNOWN_MODELS[known].protocol):
        return KNOWN_MODELS[known].weights
    is_refiner = protocol in (None, "rvr") and (folder / REFINER_WEIGHTS).is_file()
    return REFINER_WEIGHTS.removesuffix(".safetensors") if is_refiner else None


def known_id(model_name: str, folder: Path) -> str | None:
    """The known model's hub id, or None: by the name that was given, the hub's cache, or the name of a local folder."""
    given = _known(_named_id(model_name))
    if given is not None:
        return given
    parts = folder.absolute().parts
    cached = [part.removeprefix("models--") for part in parts if re.fullmatch(r"models--.+--.+", part)]
    if cached:  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return _known(cached[-1].replace("--", "/", 1))
    return next((known for known in KNOWN_MODELS if known.partition("/")[2].lower() == parts[-1].lower()), None)


def _known(name: str) -> str | None:
    """The hub's spelling of an id; the hub itself does not tell capital letters apart."""
    return next((known for known in KNOWN_MODELS if known.lower() == name.lower()), None)


def _named_id(model_name: str) -> str:
    """``owner/name`` out of a hub id with or without revision, or an address of it."""
    address = _HUB_ADDRESS.match(model_name)
    if address is not None:
        model_name = "/".join(re.split("[/?#]", model_name[address.end() :])[:2])
    return model_name.partition("@")[0].rstrip("/")
