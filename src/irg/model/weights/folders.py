"""From a model's name to its folder: bundled models, folders, hub models."""

import logging
from collections.abc import Callable
from pathlib import Path

from irg.model.weights.adapter_forms import PEFT_SETTINGS, SETTINGS
from irg.model.weights.config_files import CONFIG, LLM_CONFIG
from irg.model.weights.hub import cached, snapshot
from irg.model.weights.hub_names import parse_hub_name
from irg.model.weights.manifest import PICKLES

_log = logging.getLogger("irg")
BUNDLED = Path(__file__).parents[2] / "assets"


def is_model_folder(name: str) -> bool:
    """Whether a model's name is a folder here, or that of a bundled model."""
    return Path(name).expanduser().is_dir() or (name.isidentifier() and (BUNDLED / name).is_dir())


def is_weights_file(path: Path) -> bool:
    """Whether a path is a single file of weights, without the folder that a model needs."""
    return path.suffix in (".safetensors", ".gguf") and path.is_file()


def model_folder(
    name: str | Path,
    weights: str | None = None,
    say: Callable[[str], None] = _log.info,
    download: bool = True,
    partial: bool = False,
) -> Path:
    """The folder of a model: a bundled one by name, a path, or a hub model (``owner/name``, ``owner/name@REVISION`` or
    its page's address), which is downloaded once.

    Args:
        weights: the name of the set of weights to download (default:
            :func:`irg.model.weights.weight_sets.choose_set`).
        say: gets a line with the size before a download starts.
        download: False takes hub models from the cache alone.
        partial: a hub model without an autoencoder will do: a fine-tune that is to be completed.

    Raises:
        ValueError: there is no such model, or it can't be downloaded.
    """
    if not str(name).strip():
        raise ValueError(f"the model's name is empty: give {_what_to_give()}")
    path = Path(name).expanduser()
    if not path.is_dir() and str(name).isidentifier() and (BUNDLED / str(name)).is_dir():
        path = BUNDLED / str(name)
    if path.is_dir():
        _refuse_others(path)
        return path
    if path.is_file():
        advice = "; a pickle is never read" if path.suffix in PICKLES else ""
        if is_weights_file(path):
            advice = f"; one is made of weights alone with irg model convert {path} OUT --base BASE"
        raise ValueError(f"{path} is a file: give the folder with its configuration and tokenizer{advice}")
    hub = parse_hub_name(name) if isinstance(name, str) and not path.parent.is_dir() else None
    if hub is not None:
        if not download:
            return cached(hub, f"hub model {str(hub)!r} is not in the cache")
        return snapshot(hub, weights, say, partial)
    raise ValueError(f"unknown model {str(name)!r}: give {_what_to_give()}")


def _what_to_give() -> str:
    bundled = sorted(p.name for p in BUNDLED.iterdir() if p.is_dir()) if BUNDLED.is_dir() else []
    known = f"a bundled one ({', '.join(bundled)}), " if bundled else ""
    return f"{known}a folder with a model in it, or a hub id (owner/name, owner/name@REVISION)"


def _refuse_others(folder: Path) -> None:
    """ValueError for a folder that is known to be something else: a training run's, or an adapter's."""
    if (folder / CONFIG).is_file() or (folder / LLM_CONFIG).is_file():
        return
    if (folder / "recipe.json").is_file():
        model, adapter = folder / "model", folder / "adapter"
        what = f"its model is {model}" if model.is_dir() else f"its adapter is {adapter}, for --lora"
        if not (model.is_dir() or adapter.is_dir()):
            what = "it has no model yet: irg train with the same recipe goes on with it"
        raise ValueError(f"{folder} is the folder of a training run: {what}")
    if (folder / SETTINGS).is_file() or (folder / PEFT_SETTINGS).is_file():
        raise ValueError(
            f"{folder} is an adapter, no model: give it with --lora, and the model that it is for with --model"
        )
