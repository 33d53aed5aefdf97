"""What a run leaves behind: a model folder that every command takes, an adapter, sample images."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from irg.model.network.lora import LoraConfig
from irg.model.network.unified import UnifiedModel
from irg.model.weights.adapter_files import merge_adapter
from irg.model.weights.checkpoint import LoadedModel, load_model, save_model
from irg.model.weights.config_files import is_bagel_layout
from irg.model.weights.profile import Profile

WEIGHTS = "ema.safetensors"


def write_model(
    folder: Path,
    start: Path,
    loaded: LoadedModel,
    weights: Mapping[str, Tensor],
    profile: Profile,
    dtype: torch.dtype | None,
) -> None:
    """Write weights (all of the model's, by name) as a folder in the layout of the one the run started from.

    Raises:
        ValueError: the folder can't be written.
    """
    with torch.device("meta"):
        model = UnifiedModel(loaded.config)
    model.load_state_dict({name: t.detach().cpu() for name, t in weights.items()}, assign=True)
    if not is_bagel_layout(start):
        save_model(folder, loaded.config, model, loaded.autoencoder, dtype)
        _copy(start, folder, "ae.safetensors")  # as it came: training may hold it in another dtype
        _copy(start, folder, "tokenizer.json")
        profile.save(folder)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: t.to(dtype=dtype).contiguous() for name, t in model.state_dict().items()}
        if loaded.config.decoder.tie_word_embeddings:
            state.pop("language_model.lm_head.weight", None)
        part = folder / f"{WEIGHTS}.part"
        save_file(state, part, metadata={"format": "pt"})
        part.replace(folder / WEIGHTS)
        for path in start.iterdir():
            if path.is_file() and path.suffix in (".json", ".txt", ".jinja") and ".index." not in path.name:
                _copy(start, folder, path.name)
        for path in start.glob("ae*.safetensors"):
            _copy(start, folder, path.name)
        profile.save(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the model: {error}") from None


def merged(start: Path, config: LoraConfig, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the folder the run started from (never quantized ones) with an adapter added."""
    weights = dict(load_model(start, dtype=None).model.state_dict())
    merge_adapter(weights, config, adapter)
    return weights


def _copy(start: Path, folder: Path, name: str) -> None:
    """Copy a file, aside first."""
    source, target = start / name, folder / name
    if not source.is_file() or (target.exists() and target.samefile(source)):
        return
    part = target.with_name(f".{name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    shutil.copyfile(source, part)
    part.replace(target)
