"""One model folder into another: layout, dtype, shards, quantization, a merged adapter. Tensor by tensor.

All else stays: without a dtype, an adapter or quantization every tensor keeps its bits, and configuration
files are copied as they are. Going from BAGEL's layout to ours keeps its configuration files inside ``config.json``
(``bagel_files``), so that the way back gives them back too.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from irg import files
from irg.model.network.config import ModelConfig
from irg.model.weights import quantize as quantizing
from irg.model.weights.adapter_files import Adapters, LoraSource, read_adapters
from irg.model.weights.checkpoint import CheckedFolder, check_folder
from irg.model.weights.completion import RECORD, completed
from irg.model.weights.config_files import (
    CONFIG,
    LLM_CONFIG,
    VIT_CONFIG,
    bagel_sections,
    is_bagel_layout,
    read_config,
    read_json,
    to_sections,
)
from irg.model.weights.finite import check_finite
from irg.model.weights.formats import comfyui, dfloat11, gguf, scaled
from irg.model.weights.formats.comfyui import configuration
from irg.model.weights.manifest import PICKLES, TensorEntry
from irg.model.weights.profile import Profile
from irg.model.weights.shards import Planned, write_weights
from irg.model.weights.tensor_reader import TensorReader
from irg.model.weights.weight_sets import AUTOENCODER, BAGELS, WEIGHTS, set_name

FolderLayout = Literal["irg", "bagel"]
WeightFormat = Literal["fp8", "gguf", "comfyui"]
"""Formats of other programs in which weights can be written."""
ORIGINAL = "bagel_files"  # in config.json: BAGEL's configuration files, as text
_CONFIGS = (CONFIG, LLM_CONFIG, VIT_CONFIG)
_FORMAT_SETTINGS = (dfloat11.SETTINGS, "quantization_config")
_KEPT = (".json", ".txt", ".md", "")  # tokenizer, irg.json, model card, licence
MAX_KEPT_BYTES = 1 << 26


@dataclass(frozen=True)
class Conversion:
    """What to change; None keeps what the folder has."""

    layout: FolderLayout | None = None
    dtype: torch.dtype | None = None
    quantize: quantizing.Quantization | None = None
    lora: tuple[LoraSource, ...] = ()
    shard_bytes: int | None = None
    weights: str | None = None
    base: Path | None = None
    format: WeightFormat | None = None
    profile: Profile | None = None


def convert(
    source: Path,
    out: Path,
    conversion: Conversion,
    overwrite: bool = False,
    started: Callable[[int], None] = lambda _: None,
    wrote: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write ``source`` anew as ``out``, which appears when it is complete.

    Args:
        source: a folder; or a single file of weights, whose base then has all else.
        started, wrote: progress: all bytes to write, then the bytes of each tensor.
        say: gets lines about what comes from the source and what from its base.

    Raises:
        ValueError: the source is damaged, the conversion does not go with it, or ``out`` is there already.
        OSError: ``out`` can't be written.
    """
    _check(conversion)
    if source.is_file():
        if conversion.base is None:
            raise ValueError(f"{source} is weights alone: say with --base which model has all else that a folder needs")
        with configuration(source, conversion.base) as folder:
            return _convert_completed(folder, out, conversion, overwrite, started, wrote, say, source)
    if conversion.base is None:
        return _convert(check_folder(source, conversion.weights), source, out, conversion, overwrite, started, wrote)
    return _convert_completed(source, out, conversion, overwrite, started, wrote, say)


def _check(conversion: Conversion) -> None:
    """ValueError where two options do not go together."""
    if (written := conversion.format) is None:
        return
    if conversion.quantize is not None:
        raise ValueError(f"weights are written as {written} or quantized to {conversion.quantize}, not both")
    if written != "fp8" and conversion.shard_bytes is not None:
        raise ValueError(f"weights as {written} are one file: leave the shard size out")
    if written == "comfyui" and conversion.layout == "irg":
        raise ValueError("ComfyUI-BAGEL has BAGEL's layout: leave the layout irg out")


def _convert_completed(
    source: Path,
    out: Path,
    conversion: Conversion,
    overwrite: bool,
    started: Callable[[int], None],
    wrote: Callable[[int], None],
    say: Callable[[str], None],
    file: Path | None = None,
) -> None:
    """Convert a model that gets what it lacks from its base."""
    assert conversion.base is not None
    with completed(source, conversion.base, conversion.weights, file) as both:
        for line in both.lines:
            say(line)
        files.write_json(both.folder / RECORD, both.record)
        _convert(both.checked, both.folder, out, conversion, overwrite, started, wrote)


def _convert(
    checked: CheckedFolder,
    source: Path,
    out: Path,
    conversion: Conversion,
    overwrite: bool,
    started: Callable[[int], None],
    wrote: Callable[[int], None],
) -> None:
    """Write a checked model, and the files of ``source`` that are no weights."""
    adapter = read_adapters(conversion.lora, checked.entries, checked.weights_file)
    stored = quantizing.stored_quantization(checked.entries)
    if stored is not None and (conversion.quantize not in (None, stored) or conversion.format is not None):
        raise ValueError(f"{checked.weights_file} is quantized to {stored} already: start from the full weights")
    if conversion.quantize is not None:
        quantizing.require_library(conversion.quantize)
    layout = "bagel" if conversion.format == "comfyui" else conversion.layout
    to_bagel = is_bagel_layout(source) if layout is None else layout == "bagel"
    conversion = replace(conversion, dtype=_dtype(checked, conversion))
    weights = list(_weights(checked, conversion, adapter))
    autoencoder = [_copied(k, e, conversion.dtype) for k, e in checked.autoencoder_entries.items()]
    with new_model_folder(out, overwrite) as folder:
        started(sum(tensor.nbytes for tensor in (*weights, *autoencoder)))
        _write_configs(source, folder, to_bagel)
        name = WEIGHTS if not to_bagel else _bagel_name(checked)
        _write_weights(folder, name, checked, weights, conversion, wrote)
        write_weights(folder, AUTOENCODER, autoencoder, None, wrote)
        for path in sorted(source.iterdir()):
            if _is_kept(path):
                shutil.copyfile(path, folder / path.name)
        if conversion.profile is not None:
            conversion.profile.save(folder)


@contextmanager
def new_model_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of ``out`` if the block succeeds, and is removed if not.

    Raises:
        ValueError: ``out`` is there and not empty, and may not be replaced; or it is no model folder.
    """
    out = out.absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not overwrite:
            raise ValueError(f"{out} is there already: give another folder, or --overwrite")
        if out.is_symlink() or not out.is_dir() or not _is_model(out):
            raise ValueError(f"{out} is not a model folder, so it is not replaced")
    with files.written_folder(out) as folder:
        yield folder


def _is_model(folder: Path) -> bool:
    """Whether all of a folder may go when a model replaces it: a config.json alone does not make it a model's."""
    if (folder / LLM_CONFIG).is_file():
        return True
    try:
        return "llm_config" in read_json(folder / CONFIG)
    except ValueError:
        return False


# ---------------------------------------------------------------------------------------------------------- weights


def _bagel_name(checked: CheckedFolder) -> str:
    """The name of weights in BAGEL's layout: as they were called, if that is not what they no longer are."""
    name = set_name(checked.weights_file.name)
    kept = name in BAGELS if checked.weight_format else name != WEIGHTS
    return name if kept else BAGELS[0]


def _dtype(checked: CheckedFolder, conversion: Conversion) -> torch.dtype | None:
    """The wanted dtype. A file for ComfyUI-BAGEL has one for all, that of most weights; where a format has no plain
    float8, that becomes bfloat16."""
    if conversion.format is None or conversion.dtype is not None:
        return conversion.dtype
    (usual, _), *others = Counter(entry.dtype for entry in checked.entries.values()).most_common()
    if any(dtype in scaled.FP8 for dtype, _ in [(usual, 0), *others]):
        return torch.bfloat16
    return usual if conversion.format == "comfyui" and usual in comfyui.DTYPES else None


def _write_weights(
    folder: Path,
    name: str,
    checked: CheckedFolder,
    weights: list[Planned],
    conversion: Conversion,
    wrote: Callable[[int], None],
) -> None:
    if conversion.format == "gguf":
        modules = checked.model.named_modules()
        projections = {f"{name}.weight" for name, module in modules if quantizing.is_quantizable(name, module)}
        gguf.write_gguf(folder / f"{name}{gguf.SUFFIX}", weights, projections.__contains__, wrote)
    elif conversion.format == "comfyui":
        assert conversion.dtype is not None
        metadata = comfyui.metadata(folder, checked.config, conversion.dtype)
        write_weights(folder, comfyui.FILE, weights, None, wrote, metadata=metadata)
    else:
        by_key = conversion.quantize is not None or conversion.format == "fp8"
        write_weights(folder, name, weights, conversion.shard_bytes, wrote, by_key=by_key)


@dataclass(frozen=True)
class _Parts:
    """The parts that a weight is written as, and how they are made."""

    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    make: Callable[[Tensor], dict[str, Tensor]]


def _parts(inputs: int, outputs: int, conversion: Conversion) -> _Parts | None:
    """None: the weight is written as it is."""
    if conversion.format == "fp8":
        return _Parts(scaled.part_shapes(inputs, outputs), scaled.quantized_parts)
    if (kind := conversion.quantize) is None:
        return None
    shapes = quantizing.part_shapes(inputs, outputs, kind)
    return None if shapes is None else _Parts(shapes, lambda weight: quantizing.quantized_weight(weight, kind))


def _weights(checked: CheckedFolder, conversion: Conversion, adapter: Adapters | None) -> Iterator[Planned]:
    quantized = dict[str, _Parts]()
    for name, module in checked.model.named_modules():
        if quantizing.is_quantizable(name, module):
            assert isinstance(module, torch.nn.Linear)
            parts = _parts(module.in_features, module.out_features, conversion)
            quantized |= {name: parts} if parts else {}
    if conversion.format == "fp8":
        yield scaled.marker()
    for key, entry in checked.entries.items():
        module = key.removesuffix(".weight")
        adapted = adapter if adapter is not None and module in adapter and key != module else None
        if key == module or module not in quantized:
            yield _copied(key, entry, conversion.dtype, adapted, module)
        else:
            yield from _quantized(module, entry, quantized[module], adapted)


def _copied(
    key: str, entry: TensorEntry, dtype: torch.dtype | None, adapter: Adapters | None = None, module: str = ""
) -> Planned:
    """A tensor as it is, in another dtype (quantized numbers keep theirs), or with its adapter merged."""
    if dtype is None or key.rpartition(".")[2] in quantizing.PARTS:
        dtype = entry.dtype
    wanted = dtype

    def make() -> Tensor:
        reader = TensorReader(map_files=False)
        if adapter is None:
            tensor = reader.read(entry, wanted)
        else:
            tensor = adapter.merged(module, reader.read(entry, torch.float32)).to(wanted)
        return check_finite(key, tensor)

    return Planned(key, entry.shape, wanted, make)


def _quantized(module: str, entry: TensorEntry, parts: _Parts, adapter: Adapters | None) -> Iterator[Planned]:
    """A weight's quantized parts. It is quantized when the first part is made, and freed with the last."""
    made: dict[str, Tensor] = {}

    def make(part: str) -> Tensor:
        if not made:
            weight = TensorReader(map_files=False).read(entry)
            if adapter is not None:
                weight = adapter.merged(module, weight.to(torch.float32))
            made.update(parts.make(check_finite(f"{module}.weight", weight)))
        return made.pop(part)

    for part, (shape, dtype) in parts.shapes.items():
        yield Planned(f"{module}.{part}", shape, dtype, lambda part=part: make(part))  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------- other files


def _write_configs(source: Path, folder: Path, to_bagel: bool) -> None:
    """Configuration files of the layout: copied if it is the source's, else translated."""
    if to_bagel == is_bagel_layout(source):
        for name in _CONFIGS:
            if (source / name).is_file():
                (folder / name).write_bytes(_config_bytes(source / name))
        return
    config = read_config(source)
    if not to_bagel:
        originals = {n: _config_bytes(source / n).decode("utf-8") for n in _CONFIGS if (source / n).is_file()}
        files.write_json(folder / CONFIG, to_sections(config) | {ORIGINAL: originals})
        return
    originals = read_json(source / CONFIG).get(ORIGINAL, {})
    if isinstance(originals, dict) and _restored(originals, folder, config):
        return
    for name, sections in bagel_sections(config).items():
        files.write_json(folder / name, sections)


def _config_bytes(path: Path) -> bytes:
    """A configuration file, without what it says of a format of weights that the new folder does not have."""
    try:
        sections = read_json(path)
    except ValueError:
        return path.read_bytes()
    kept = {key: value for key, value in sections.items() if key not in _FORMAT_SETTINGS}
    return path.read_bytes() if len(kept) == len(sections) else json.dumps(kept, indent=2).encode("utf-8")


def _restored(originals: Mapping[str, Any], folder: Path, config: ModelConfig) -> bool:
    """Write BAGEL's own files back, if they still say what the configuration says."""
    for name in _CONFIGS:
        if isinstance(originals.get(name), str):
            (folder / name).write_text(originals[name], encoding="utf-8")
    try:
        if is_bagel_layout(folder) and read_config(folder) == config:
            return True
    except ValueError:
        pass
    for name in _CONFIGS:
        (folder / name).unlink(missing_ok=True)
    return False


def _is_kept(path: Path) -> bool:
    """Whether a file that is neither configuration nor weights goes along."""
    return (
        path.is_file()
        and path.name not in _CONFIGS
        and not path.name.startswith(".")
        and not path.name.endswith(".safetensors.index.json")
        and path.suffix in _KEPT
        and path.suffix not in PICKLES
        and path.stat().st_size <= MAX_KEPT_BYTES
    )
