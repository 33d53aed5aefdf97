"""One file with the unified model alone, as the ComfyUI node pack ComfyUI-BAGEL loads and writes it.

A safetensors file with BAGEL's names; the text ``comfyui_bagel`` in its header is JSON that says what it holds, and has
BAGEL's ``llm_config.json`` and ``vit_config.json`` in ``model_configs``. The autoencoder is a file of its own
(FLUX's ``ae.safetensors``), the tokenizer stands in the node pack: both come from a base here. The pack runs what is
called BAGEL-7B-MoT, in bfloat16.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from irg import files
from irg.model.network.config import ModelConfig, bagel_7b
from irg.model.weights.config_files import LLM_CONFIG, VIT_CONFIG, is_bagel_layout, read_json
from irg.model.weights.manifest import read_metadata
from irg.model.weights.weight_sets import SUFFIX

NAME, KEY, VERSION = "ComfyUI-BAGEL file", "comfyui_bagel", 1
VARIANT = "BAGEL-7B-MoT"
FILE = "bagel"  # the name of what is written
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def description(path: Path) -> dict[str, Any] | None:
    """What a file's header says about it; None if it is not of this format.

    Raises:
        ValueError: it is, but the description is damaged or of a newer version.
    """
    text = read_metadata(path).get(KEY) if path.suffix == SUFFIX else None
    if text is None:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("model_configs", {}), dict):
        raise ValueError(f"{path} is corrupt: {KEY} in its header is not a JSON object")
    if said.get("format_version") != VERSION:
        raise ValueError(f"{path}: {KEY} has format_version {said.get('format_version')!r}, only {VERSION} is read")
    return said


@contextmanager
def configuration(path: Path, base: Path) -> Iterator[Path]:
    """A temporary folder with the configuration files that a file of weights brings, if its base has BAGEL's layout.

    Raises:
        ValueError: the file is damaged.
    """
    said = description(path) or {}
    configs = said.get("model_configs", {}) if is_bagel_layout(base) else {}
    with TemporaryDirectory() as temporary:
        for name in (LLM_CONFIG, VIT_CONFIG):
            if isinstance(configs.get(name), Mapping):
                files.write_json(Path(temporary) / name, configs[name])
        yield Path(temporary)


def metadata(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, str]:
    """What the header of a file says about a model of one dtype.

    Args:
        folder: with BAGEL's configuration files.
    """
    usual = bagel_7b()
    is_usual = (config.decoder, config.vit) == (usual.decoder, usual.vit)
    said = {
        "format": KEY,
        "format_version": VERSION,
        "architecture": "Bagel",
        "variant": VARIANT if is_usual else re.sub(r"\W+", "-", folder.name),
        "dtype": DTYPES[dtype],
        "quantization": "none",
        "latent_format": "flux",
        "capabilities": ["text_to_image", "image_edit", "image_understanding"],
        "model_configs": {name: read_json(folder / name) for name in (LLM_CONFIG, VIT_CONFIG)},
        "converter_version": "irg",
    }
    return {KEY: json.dumps(said, sort_keys=True)}
