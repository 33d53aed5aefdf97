"""Which format a file of weights has, and the network's tensors in it, by headers alone."""

from pathlib import Path

import torch

from irg.model.weights.formats import bitsandbytes, comfyui, dfloat11, gguf, scaled, unsupported
from irg.model.weights.key_names import unwrapped
from irg.model.weights.manifest import TensorEntry, read_entries

_FP8 = {torch.float8_e4m3fn: "fp8 (e4m3)", torch.float8_e5m2: "fp8 (e5m2)"}


def read_weights(path: Path) -> tuple[str | None, dict[str, TensorEntry]]:
    """The name of the format in which a file, or the files of an index, has its weights (None: plain numbers), and the
    tensors that it stands for, by their names without wrappers. Besides headers only the few bytes are read that
    describe a format.

    Raises:
        ValueError: a file is missing or damaged, or has its weights in a format that is not read.
    """
    if path.suffix == gguf.SUFFIX:
        name, entries = gguf.read_gguf(path)
        return name, unwrapped(entries, path)
    numbers, entries = _read_safetensors(path)
    names = [comfyui.NAME if comfyui.description(path) is not None else None, numbers]
    return ", ".join(name for name in names if name) or None, entries


def _read_safetensors(path: Path) -> tuple[str | None, dict[str, TensorEntry]]:
    entries = unwrapped(read_entries(path), path)
    entries |= dfloat11.entries_beside(path, entries)
    for format in (scaled, bitsandbytes, dfloat11):
        if (found := format.decode_entries(path, entries)) is not None:
            return found
    unsupported.refuse(path, entries)
    plain = [entry.dtype for key, entry in entries.items() if not key.endswith(".qdata")]  # of our own layers
    return next((_FP8[dtype] for dtype in plain if dtype in _FP8), None), entries
