"""What a run leaves behind: a model folder that every command takes, and an adapter."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from irg import files
from irg.learning import parallel
from irg.learning.recipe import TrainRecipe
from irg.learning.run_state import RunState
from irg.learning.setup import adapter_of
from irg.model.network.lora import LoraConfig
from irg.model.network.unified import UnifiedModel
from irg.model.weights.adapter_files import merge_adapter, save_adapter
from irg.model.weights.checkpoint import LoadedModel, load_model, save_model
from irg.model.weights.config_files import is_bagel_layout
from irg.model.weights.profile import Profile
from irg.reasoning.protocols.known_models import DEFAULT_PROTOCOL

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
        with files.written(folder / WEIGHTS) as path:
            save_file(state, path, metadata={"format": "pt"})
        for path in start.iterdir():
            if path.is_file() and path.suffix in (".json", ".txt", ".jinja") and ".index." not in path.name:
                _copy(start, folder, path.name)
        for path in start.glob("ae*.safetensors"):
            _copy(start, folder, path.name)
        profile.save(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the model: {error}") from None


@torch.no_grad()
def export(
    recipe: TrainRecipe, start: Path, loaded: LoadedModel, state: RunState, profile: Profile, ranks: parallel.Ranks
) -> Path:
    """Write the averaged weights: ``out/model``, a folder that every command takes, and with adapters
    ``out/adapter``. Returns the model's folder, or the adapter's if nothing is merged. All ranks call it.

    Args:
        start: the folder that the run started from.

    Raises:
        ValueError: a folder can't be written.
    """
    out, adapter = Path(recipe.out), adapter_of(recipe)
    dtype = torch.bfloat16 if recipe.parallel.precision == "bfloat16" else None
    named = dict(zip(state.named_weights, state.average, strict=True))
    averages = _gathered(named, None if adapter else dtype, ranks)
    folder = out / ("model" if adapter is None or recipe.lora.merge else "adapter")
    parallel.reshard(loaded.model)
    untrained = {name: t for name, t in loaded.model.state_dict().items() if name not in named}
    others = {} if adapter else _gathered(untrained, dtype, ranks)
    if ranks.main:
        if adapter is not None:
            save_adapter(out / "adapter", adapter, averages)
        if folder.name == "model":
            weights = averages | others if adapter is None else merged(start, adapter, averages)
            write_model(folder, start, loaded, weights, replace(profile, protocol=DEFAULT_PROTOCOL), dtype)
    ranks.barrier()
    return folder


def _gathered(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, ranks: parallel.Ranks) -> dict[str, Tensor]:
    """Whole tensors in the main process's memory; the others help to put them together and keep none."""
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = parallel.whole(tensor.detach())
        if ranks.main:
            held[name] = whole.to("cpu", dtype)
    return held


def merged(start: Path, config: LoraConfig, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the folder the run started from (never quantized ones) with an adapter added."""
    weights = dict(load_model(start, dtype=None).model.state_dict())
    merge_adapter(weights, config, adapter)
    return weights


def _copy(start: Path, folder: Path, name: str) -> None:
    """Copy a file, if it is there and not the same one."""
    source, target = start / name, folder / name
    if not source.is_file() or (target.exists() and target.samefile(source)):
        return
    with files.written(target) as temporary:
        shutil.copyfile(source, temporary)
