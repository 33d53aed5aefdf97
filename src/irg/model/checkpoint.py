"""Model folders in and out: configuration, unified model and autoencoder.

Reads the irg layout (written here too) and BAGEL's; see :mod:`irg.model.config_files` for the configuration and
:mod:`irg.model.manifest` for weight files. Loading builds the model on the meta device, compares every key and shape
with the files' headers, and only then maps or reads tensors, straight into the wanted dtype and device.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from irg.model.autoencoder import Autoencoder, build_autoencoder
from irg.model.config import ModelConfig
from irg.model.config_files import CONFIG, read_config, to_sections
from irg.model.embeddings import PositionTable
from irg.model.manifest import TensorEntry, TensorReader, compare, find_weights, read_entries
from irg.model.unified import UnifiedModel

__all__ = ["LoadedModel", "load_model", "new_model", "read_config", "save_model"]

M = TypeVar("M", bound=nn.Module)

WEIGHTS, AUTOENCODER = "weights", "ae"
_HEAD = "language_model.lm_head.weight"
_PATCH_EMBEDDING = "vit_model.vision_model.embeddings.patch_embedding.weight"


@dataclass
class LoadedModel:
    """What a model folder holds."""

    config: ModelConfig
    model: UnifiedModel
    autoencoder: Autoencoder


def load_model(
    folder: Path | str,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    prefer: Literal["ema", "model"] = "ema",
    autoencoder_file: Path | str | None = None,
) -> LoadedModel:
    """Load a model folder; both networks are in eval mode.

    Args:
        dtype: of all weights; None keeps each tensor's stored one.
        prefer: which weights to take where a folder has the averaged (``ema``) and the plain (``model``) ones.
        autoencoder_file: a safetensors file to read the autoencoder from, instead of the folder's ``ae.safetensors``.

    Raises:
        ValueError: a file is missing, damaged, or does not fit the configuration. One line that names the file.
    """
    folder = Path(folder)
    config = read_config(folder)
    ae_path = find_weights(folder, [AUTOENCODER]) if autoencoder_file is None else Path(autoencoder_file)
    path = find_weights(folder, [WEIGHTS, prefer, "model" if prefer == "ema" else "ema"])
    entries, ae_entries = read_entries(path), read_entries(ae_path)
    if config.decoder.tie_word_embeddings and _HEAD in entries:
        # A head of its own wins, as in the reference, which unties every model it loads.
        config = replace(config, decoder=replace(config.decoder, tie_word_embeddings=False))
    model = _on_meta(lambda: UnifiedModel(config), folder)
    autoencoder = _on_meta(lambda: build_autoencoder(config.autoencoder), folder)
    vit = config.vit
    conv = {_PATCH_EMBEDDING: (vit.hidden_size, vit.num_channels, vit.patch_size, vit.patch_size)}
    compare(entries, _expected(model), path, optional=[f"{name}.pos_embed" for name in _tables(model)], reshaped=conv)
    compare(ae_entries, _expected(autoencoder), ae_path)
    _fill(model, entries, dtype, device)
    _fill(autoencoder, ae_entries, dtype, device)
    return LoadedModel(config, model.eval(), autoencoder.eval())


def save_model(
    folder: Path | str,
    config: ModelConfig,
    model: UnifiedModel,
    autoencoder: Autoencoder,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder in the irg layout; ``dtype`` None keeps the weights' own.

    Every file is written aside and renamed, the configuration last: a crash leaves no half-written file under a name
    that is read. Other files of the folder stay.

    Raises:
        ValueError: the folder can't be written, or ``config`` is not the model's.
    """
    if config != model.config or config.autoencoder != getattr(autoencoder, "config", None):
        raise ValueError("the configuration to save is not that of the model and autoencoder")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in ((WEIGHTS, model), (AUTOENCODER, autoencoder)):
            with _written_aside(folder / f"{name}.safetensors") as path:
                save_file(_state(module, dtype), path, metadata={"format": "pt"})
        with _written_aside(folder / CONFIG) as path:
            path.write_text(json.dumps(to_sections(config), indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the model: {error}") from None


@torch.no_grad()
def new_model(config: ModelConfig, seed: int) -> UnifiedModel:
    """A model with random weights that keep activations near unit size, for tests and benchmarks.

    Unlike a start for training, every output depends on every weight (no zeros but the biases). The global random state
    is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = UnifiedModel(config)
    out_scale = 1 / math.sqrt(2 * config.decoder.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            last = any(part in name for part in ("o_proj", "down_proj"))
            parameter.normal_(0.0, (out_scale if last else 1.0) / math.sqrt(parameter.shape[1]), generator=generator)
    for table in _tables(model).values():
        table.reset_parameters()
    return model.eval()


# --------------------------------------------------------------------------------------------------------- the details


def _on_meta(make: Callable[[], M], folder: Path) -> M:
    """Build a network without memory. Sizes too absurd even for that are the configuration's fault."""
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder}: no network can be built from the configuration: {reason}") from None


def _tables(model: UnifiedModel) -> dict[str, PositionTable]:
    """The frozen position tables: a formula, so training checkpoints may leave them out."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PositionTable)}


def _expected(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network's checkpoint. A tied head is stored once, as the embedding."""
    tied = isinstance(module, UnifiedModel) and module.config.decoder.tie_word_embeddings
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if not (tied and key == _HEAD)}


def _fill(
    module: nn.Module, entries: dict[str, TensorEntry], dtype: torch.dtype | None, device: torch.device | str
) -> None:
    """Put a checkpoint's tensors into a network on the meta device."""
    reader = TensorReader()
    state: dict[str, Tensor] = {}
    for key, entry in entries.items():
        tensor = reader.read(entry, dtype, device)
        if key == _PATCH_EMBEDDING and tensor.ndim == 4:  # conv form [C, RGB, row, column]
            tensor = tensor.permute(0, 2, 3, 1).flatten(1).contiguous()
        state[key] = tensor
    module.load_state_dict(state, strict=False, assign=True)
    if isinstance(module, UnifiedModel):
        if module.config.decoder.tie_word_embeddings:
            module.language_model.lm_head.weight = module.language_model.model.embed_tokens.weight
        for table in _tables(module).values():
            if table.pos_embed.is_meta:
                empty = torch.empty(table.pos_embed.shape, dtype=dtype or module.dtype, device=device)
                table.pos_embed = nn.Parameter(empty, requires_grad=False)
                table.reset_parameters()
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def _state(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A network's tensors as a file holds them."""
    tensors = module.state_dict()
    return {key: tensors[key].detach().to(dtype=dtype).contiguous() for key in _expected(module)}


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block succeeds, and is removed if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
