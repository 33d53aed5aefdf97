"""From a model's name to its folder: bundled models, folders, hub models."""

import logging
from collections.abc import Callable
from pathlib import Path

from irg.model.weights.hub import cached, is_repo_id, snapshot
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
    """The folder of a model: a bundled one by name, a path, or a hub id (``owner/name``), which is downloaded once.

    Args:
        weights: the name of the set of weights to download (default:
            :func:`irg.model.weights.weight_sets.choose_set`).
        say: gets a line with the size before a download starts.
        download: False takes hub models from the cache alone.
        partial: a hub model without an autoencoder will do: a fine-tune that is to be completed.

    Raises:
        ValueError: there is no such model, or it can't be downloaded.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and str(name).isidentifier() and (BUNDLED / str(name)).is_dir():
        path = BUNDLED / str(name)
    if path.is_dir():
        return path
    if path.is_file():
        advice = "; a pickle is never read" if path.suffix in PICKLES else ""
        if is_weights_file(path):
            advice = f"; one is made of weights alone with irg model convert {path} OUT --base BASE"
        raise ValueError(f"{path} is a file: give the folder with its configuration and tokenizer{advice}")
    if isinstance(name, str) and is_repo_id(name) and not path.parent.is_dir():
        if not download:
            return cached(name, otherwise=f"hub model {name!r} is not in the cache")
        return snapshot(name, weights, say, partial=partial)
    bundled = sorted(p.name for p in BUNDLED.iterdir() if p.is_dir()) if BUNDLED.is_dir() else []
    known = f"a bundled one ({', '.join(bundled)}), " if bundled else ""
    raise ValueError(f"unknown model {str(name)!r}: give {known}a folder with a model in it, or a hub id (owner/name)")
