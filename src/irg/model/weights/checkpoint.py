"""Model folders in and out: configuration, unified model and autoencoder.

Reads the irg layout (written here too) and BAGEL's; see :mod:`irg.model.weights.config_files` for the configuration
and :mod:`irg.model.weights.manifest` for weight files. Loading builds the model on the meta device, compares every
key and shape with the files' headers, and only then maps or reads tensors, straight into the wanted dtype and device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from irg import files
from irg.model.network.autoencoder import Autoencoder, build_autoencoder
from irg.model.network.config import ModelConfig
from irg.model.network.embeddings import PositionTable
from irg.model.network.unified import UnifiedModel
from irg.model.weights.adapter_files import Adapters
from irg.model.weights.config_files import CONFIG, how_to_complete, read_config, to_sections
from irg.model.weights.formats.dfloat11 import reshaped
from irg.model.weights.formats.recognition import read_weights
from irg.model.weights.key_names import lacking_parts
from irg.model.weights.manifest import TensorEntry, compare
from irg.model.weights.quantize import PARTS as QUANTIZED_PARTS
from irg.model.weights.quantize import (
    Quantization,
    QuantizedLinear,
    allocate_quantized,
    fill_quantized,
    prepare_for,
    require_library,
    stored_quantization,
)
from irg.model.weights.tensor_reader import TensorReader
from irg.model.weights.weight_sets import AUTOENCODER, WEIGHTS, find_autoencoder, find_weights

__all__ = ["LoadedModel", "load_model", "read_config", "save_model"]

M = TypeVar("M", bound=nn.Module)

_HEAD = "language_model.lm_head.weight"
PATCH_EMBEDDING = "vit_model.vision_model.embeddings.patch_embedding.weight"


@dataclass
class LoadedModel:
    """What a model folder holds."""

    config: ModelConfig
    model: UnifiedModel
    autoencoder: Autoencoder
    weights_file: Path | None = None  # that was read: the file, its index, or the first of its shards


def load_model(
    folder: "Path | str | CheckedFolder",
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str | Callable[[str], torch.device] = "cpu",
    weights: str | None = None,
    autoencoder_file: Path | str | None = None,
    quantize: Quantization | None = None,
    adapters: Adapters | None = None,
) -> LoadedModel:
    """Load a model folder; both networks are in eval mode.

    Nothing is read before every key and shape has been compared. Host memory peaks at the weights' own size in the
    target dtype plus one tensor; weights that keep their dtype on the CPU are mapped, not read.

    Args:
        folder: or one that has been checked already; its networks are then filled, so it serves once.
        dtype: of all weights; None keeps each tensor's stored one. What a folder has quantized stays quantized.
        device: of all weights, or a function that gives it for the name of a module of the unified model (the
            autoencoder is asked for as ``""``).
        weights: the name of the set of weights to take, such as ``ema`` or ``model`` (default:
            :func:`irg.model.weights.weight_sets.choose_set`).
        autoencoder_file: a safetensors file to read the autoencoder from, instead of the folder's ``ae.safetensors``.
        quantize: make the decoder's linear layers int8, int4 or fp8, each as soon as it is read.
        adapters: are added to each weight as it is read, before it is quantized
            (:func:`irg.model.weights.adapter_files.read_adapters`).

    Raises:
        ValueError: a file is missing, damaged, or does not fit the configuration. One line that names the file.
    """
    checked = folder if isinstance(folder, CheckedFolder) else check_folder(folder, weights, autoencoder_file)
    stored = stored_quantization(checked.entries)
    if quantize is not None and stored not in (None, quantize):
        raise ValueError(f"{checked.weights_file} is quantized to {stored}, so it can't be loaded as {quantize}")
    model, autoencoder = checked.model, checked.autoencoder
    where = device if callable(device) else (lambda _: torch.device(device))
    if quantize is not None and stored is None:
        require_library(quantize)
        allocate_quantized(model, quantize, where)
    _fill(model, checked.entries, dtype, where, adapters)
    _fill(autoencoder, checked.autoencoder_entries, dtype, lambda _: where(""))
    return LoadedModel(checked.config, model.eval(), autoencoder.eval(), checked.weights_file)


@dataclass(frozen=True)
class CheckedFolder:
    """A model folder whose every key and shape fits its configuration; the networks are on the meta device."""

    config: ModelConfig
    model: UnifiedModel
    autoencoder: Autoencoder
    weights_file: Path
    autoencoder_file: Path
    entries: dict[str, TensorEntry]
    autoencoder_entries: dict[str, TensorEntry]
    weight_format: str | None = None  # None: plain numbers


def check_folder(
    folder: Path | str, weights: str | None = None, autoencoder_file: Path | str | None = None
) -> CheckedFolder:
    """Hold a folder's files against its configuration, by their headers alone (arguments: :func:`load_model`).

    Raises:
        ValueError: a file is missing, damaged, or does not fit the configuration.
    """
    folder = Path(folder)
    config = read_config(folder)
    ae_path = find_autoencoder(folder) if autoencoder_file is None else Path(autoencoder_file)
    path = find_weights(folder, weights)
    named = read_weights(path)
    if lacking := lacking_parts(named[1]):
        raise ValueError(f"{path} lacks {', '.join(lacking)}: {how_to_complete(folder)}")
    return check_weights(config, path, named, ae_path)


def check_weights(
    config: ModelConfig, path: Path, named: tuple[str | None, dict[str, TensorEntry]], ae_path: Path
) -> CheckedFolder:
    """Hold tensors against a configuration.

    Args:
        path: the weights' file, for messages.
        named: what :func:`~irg.model.weights.formats.recognition.read_weights` returns.

    Raises:
        ValueError: a file is damaged, or does not fit the configuration.
    """
    (weight_format, entries), (_, ae_entries), folder = named, read_weights(ae_path), path.parent
    if config.decoder.tie_word_embeddings and _HEAD in entries:
        # A head of its own wins, as in the reference, which unties every model it loads.
        config = replace(config, decoder=replace(config.decoder, tie_word_embeddings=False))
    _check_size(config, entries, path)
    model = _on_meta(lambda: UnifiedModel(config), folder)
    autoencoder = _on_meta(lambda: build_autoencoder(config.autoencoder), folder)
    exact = prepare_for(model, entries)
    vit = config.vit
    conv = {PATCH_EMBEDDING: (vit.hidden_size, vit.num_channels, vit.patch_size, vit.patch_size)}
    tables = [f"{name}.pos_embed" for name in _tables(model)]
    shapes = expected(model)
    entries = {key: reshaped(entry, shapes[key]) if key in shapes else entry for key, entry in entries.items()}
    compare(entries, shapes, path, optional=tables, reshaped=conv, exact=exact)
    compare(ae_entries, expected(autoencoder), ae_path)
    return CheckedFolder(config, model, autoencoder, path, ae_path, entries, ae_entries, weight_format)


def save_model(
    folder: Path | str,
    config: ModelConfig,
    model: UnifiedModel,
    autoencoder: Autoencoder,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder in the irg layout; ``dtype`` None keeps the weights' own.

    Every file is written atomically, the configuration last. Other files of the folder stay.

    Raises:
        ValueError: the folder can't be written, or ``config`` is not the model's.
    """
    if config != model.config or config.autoencoder != getattr(autoencoder, "config", None):
        raise ValueError("the configuration to save is not that of the model and autoencoder")
    folder = Path(folder)
    try:
        for name, module in ((WEIGHTS, model), (AUTOENCODER, autoencoder)):
            with files.written(folder / f"{name}.safetensors") as path:
                save_file(_state(module, dtype), path, metadata={"format": "pt"})
        files.write_json(folder / CONFIG, to_sections(config))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: can't write the model: {error}") from None


# --------------------------------------------------------------------------------------------------------- the details


def _check_size(config: ModelConfig, entries: Mapping[str, TensorEntry], path: Path) -> None:
    """A configuration of many more layers than the file has is refused before even an empty network is built."""
    for whose, prefix, layers in (
        ("", "language_model.model.layers.", config.decoder.num_hidden_layers),
        ("the ViT's ", "vit_model.vision_model.encoder.layers.", config.vit.num_hidden_layers),
    ):
        stored = len({key.removeprefix(prefix).split(".", 1)[0] for key in entries if key.startswith(prefix)})
        if layers > 2 * stored + 2:
            raise ValueError(
                f"{path} does not fit the configuration: {whose}num_hidden_layers is {layers}, the file has {stored}"
            )


def _on_meta(make: Callable[[], M], folder: Path) -> M:
    """Build a network without memory. Sizes too absurd even for that are the configuration's fault."""
    try:
        with torch.device("meta"), _NoInitialization():
            return make()
    except (RuntimeError, ArithmeticError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder}: no network can be built from the configuration: {reason}") from None


class _NoInitialization(TorchFunctionMode):
    """Skips ``torch.nn.init``: on the meta device it does nothing, slowly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _tables(model: UnifiedModel) -> dict[str, PositionTable]:
    """The frozen position tables: a formula, so training checkpoints may leave them out."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PositionTable)}


def expected(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network's checkpoint. A tied head is stored once, as the embedding."""
    tied = isinstance(module, UnifiedModel) and module.config.decoder.tie_word_embeddings
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if not (tied and key == _HEAD)}


def _fill(
    network: nn.Module,
    entries: Mapping[str, TensorEntry],
    dtype: torch.dtype | None,
    where: Callable[[str], torch.device],
    adapters: Adapters | None = None,
) -> None:
    """Put a checkpoint's tensors into a network on the meta device, module by module."""
    mapping, copying = TensorReader(), TensorReader(map_files=False)

    def read(reader: TensorReader, key: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        entry, module = entries[key], key.removesuffix(".weight")
        if adapters is None or module == key or module not in adapters:
            return reader.read(entry, dtype, device)
        return adapters.merged(module, copying.read(entry, torch.float32, device)).to(dtype or entry.dtype)

    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear) and (weight := f"{name}.weight") in entries:
            # read, not mapped: the file's pages would count beside the quantized weights
            fill_quantized(module, read(copying, weight, dtype, where(name)))
        own: list[tuple[str, Tensor | None]] = [*module._parameters.items(), *module._buffers.items()]
        for leaf, placeholder in own:
            key = f"{name}.{leaf}" if name else leaf
            if placeholder is None or key not in entries:
                continue  # a tied head, or a position table that is a formula
            tensor = read(mapping, key, _target_dtype(key, entries[key], dtype), where(name))
            if key == PATCH_EMBEDDING and tensor.ndim == 4:  # conv form [C, RGB, row, column]
                tensor = tensor.permute(0, 2, 3, 1).flatten(1).contiguous()
            if isinstance(placeholder, nn.Parameter):
                module._parameters[leaf] = nn.Parameter(tensor, requires_grad=placeholder.requires_grad)
            else:
                module._buffers[leaf] = tensor
    if isinstance(network, UnifiedModel):
        _complete(network, dtype, where(""))
    assert not any(t.is_meta for t in (*network.parameters(), *network.buffers()))


def _target_dtype(key: str, entry: TensorEntry, dtype: torch.dtype | None) -> torch.dtype | None:
    """Quantized numbers keep their dtypes; everything else takes the wanted one."""
    return entry.dtype if key.rpartition(".")[2] in QUANTIZED_PARTS else dtype


def _complete(model: UnifiedModel, dtype: torch.dtype | None, device: torch.device) -> None:
    """What a checkpoint need not hold: a tied head, and the position tables."""
    if model.config.decoder.tie_word_embeddings:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    for table in _tables(model).values():
        if table.pos_embed.is_meta:
            empty = torch.empty(table.pos_embed.shape, dtype=dtype or model.dtype, device=device)
            table.pos_embed = nn.Parameter(empty, requires_grad=False)
            table.reset_parameters()


def _state(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A network's tensors as a file holds them."""
    tensors = module.state_dict()

    def stored(key: str) -> Tensor:
        kept = key.rpartition(".")[2] in QUANTIZED_PARTS
        return tensors[key].detach().to(dtype=None if kept else dtype).contiguous()

    return {key: stored(key) for key in expected(module)}
