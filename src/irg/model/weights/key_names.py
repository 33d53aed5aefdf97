"""Names of tensors as training wrote them: wrappers of data parallelism, compilation and checkpointing taken off."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOTS = (  # the unified model's children
    "language_model",
    "vit_model",
    "connector",
    "vit_pos_embed",
    "time_embedder",
    "latent_pos_embed",
    "vae2llm",
    "llm2vae",
)
WRAPPERS = {  # anywhere in a name; the last is ComfyUI's
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "diffusion_model",
}


def unwrapped_name(key: str, roots: Iterable[str] = ROOTS) -> str:
    """``module._orig_mod.model.vae2llm.bias`` -> ``vae2llm.bias``. ``model`` goes only where it stands first."""
    words = [word for word in key.split(".") if word not in WRAPPERS]
    while len(words) > 1 and words[0] == "model" and words[0] not in roots:
        words = words[1:]
    return ".".join(words)


def lacking_parts(keys: Iterable[str]) -> list[str]:
    """The model's parts of which no tensor is there. Position tables are formulas, which files may leave out."""
    there = {key.partition(".")[0] for key in keys}
    return [root for root in ROOTS if root not in there and not root.endswith("pos_embed")]


def unwrapped(entries: Mapping[str, T], path: Path) -> dict[str, T]:
    """A weight file's tensors by their names without wrappers.

    Raises:
        ValueError: two tensors get one name.
    """
    renamed: dict[str, str] = {}
    for key in entries:
        name = unwrapped_name(key)
        if name in renamed:
            raise ValueError(f"{path}: {renamed[name]} and {key} are both {name}")
        renamed[name] = key
    return {name: entries[key] for name, key in renamed.items()}
