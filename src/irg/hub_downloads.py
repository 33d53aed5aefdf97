"""Models that other libraries load from the Hugging Face hub: what they will download is said before they do.

transformers and diffusers fetch what they need by themselves. They don't say how much that is beforehand, and try a hub
that can't be reached again and again for minutes.
"""

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

PATIENCE_S = 10.0
_WEIGHTS = ".safetensors"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot")


def say_on_stderr(line: str) -> None:
    """One dim line on standard error."""
    Console(stderr=True, highlight=False, markup=False).print(line, style="dim", soft_wrap=True)


def only_cached(name: str, say: Callable[[str], object] = say_on_stderr) -> bool:
    """Whether another library is to load a model without asking the hub: its ``local_files_only``. (Given by its name a
    model keeps its commit, which judges' identities hold.)

    Args:
        name: a folder, or a model of the hub (``owner/name``).
        say: gets one line with what will be downloaded, from where, how big, if anything is not in the cache.

    Returns:
        True if the hub can't be reached, or may not be (``HF_HUB_OFFLINE``), and the cache has the model.

    Raises:
        ValueError: the hub has no such model, it may not be read, or the hub can't be reached and the cache lacks it.
    """
    if Path(name).is_dir():
        return False
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ValueError(f"{name}: neither a folder that is here nor a hub id (owner/name)")
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub import errors as hub_errors

    if constants.HF_HUB_OFFLINE:
        _check_cached(name, "HF_HUB_OFFLINE is set")
        return True
    try:
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True, timeout=PATIENCE_S)
    except hub_errors.HFValidationError:
        raise ValueError(f"{name}: neither a folder that is here nor a hub id (owner/name)") from None
    except hub_errors.GatedRepoError:
        terms = f"{constants.ENDPOINT}/{name}"
        raise ValueError(f"{name}: gated; accept its terms on {terms}, then hf auth login") from None
    except hub_errors.RepositoryNotFoundError:
        raise ValueError(f"{name}: not on {constants.ENDPOINT}, or private (then hf auth login)") from None
    except Exception as error:  # no answer; which of many errors that is depends on the library's HTTP client
        why = (str(error) or repr(error)).splitlines()[0]
        _check_cached(name, f"{constants.ENDPOINT} can't be reached ({why})")
        return True
    missing = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if not file.rfilename.endswith(_OTHER_WEIGHTS)
        and not isinstance(huggingface_hub.try_to_load_from_cache(name, file.rfilename, revision=info.sha), str)
    }
    if any(file.endswith(_WEIGHTS) for file in missing):
        size = f"{sum(missing.values()) / 1e9:.1f} GB"
        say(f"Downloading up to {size} of {name} from {constants.ENDPOINT} into {constants.HF_HUB_CACHE}: once")
    return False


def _check_cached(name: str, why: str) -> None:
    """ValueError if the hub's cache has no weights of the model; it says ``why`` they are not downloaded."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, local_files_only=True)
    except Exception as error:
        folder = str(getattr(error, "snapshot_path", None) or "")
    if not folder or not any(file.endswith(_WEIGHTS) for _, _, files in os.walk(folder) for file in files):
        raise ValueError(f"{name}: {why}, and the cache does not have it; once online: hf download {name}") from None
