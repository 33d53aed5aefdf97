"""One model folder into another: layout, dtype, shards, quantization, a merged adapter. Tensor by tensor.

All else stays: without a dtype, an adapter or quantization every tensor keeps its bits, and configuration
files are copied as they are. Going from BAGEL's layout to ours keeps its configuration files inside ``config.json``
(``bagel_files``), so that the way back gives them back too.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from irg import files
from irg.model.network.config import ModelConfig
from irg.model.weights import quantize as quantizing
from irg.model.weights.adapter_files import Adapter, read_adapter
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
from irg.model.weights.manifest import PICKLES, TensorEntry
from irg.model.weights.shards import Planned, write_weights
from irg.model.weights.tensor_reader import TensorReader
from irg.model.weights.weight_sets import AUTOENCODER, WEIGHTS, set_name

FolderLayout = Literal["irg", "bagel"]
ORIGINAL = "bagel_files"  # in config.json: BAGEL's configuration files, as text
_CONFIGS = (CONFIG, LLM_CONFIG, VIT_CONFIG)
_KEPT = (".json", ".txt", ".md", "")  # tokenizer, irg.json, model card, licence
MAX_KEPT_BYTES = 1 << 26


@dataclass(frozen=True)
class Conversion:
    """What to change; None keeps what the folder has."""

    layout: FolderLayout | None = None
    dtype: torch.dtype | None = None
    quantize: quantizing.Quantization | None = None
    lora: Path | None = None
    shard_bytes: int | None = None
    weights: str | None = None
    base: Path | None = None


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
        started, wrote: progress: all bytes to write, then the bytes of each tensor.
        say: gets lines about what comes from the source and what from its base.

    Raises:
        ValueError: the source is damaged, the conversion does not go with it, or ``out`` is there already.
        OSError: ``out`` can't be written.
    """
    if conversion.base is None:
        return _convert(check_folder(source, conversion.weights), source, out, conversion, overwrite, started, wrote)
    with completed(source, conversion.base, conversion.weights) as both:
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
    if (stored := quantizing.stored_quantization(checked.entries)) is not None:
        if conversion.lora is not None:
            raise ValueError(f"{checked.weights_file} is quantized: merge the adapter into the full weights first")
        if conversion.quantize not in (None, stored):
            raise ValueError(f"{checked.weights_file} is quantized to {stored} already: start from the full weights")
    if conversion.quantize is not None:
        quantizing.require_torchao()
    adapter = None if conversion.lora is None else read_adapter(conversion.lora, checked.entries)
    to_bagel = is_bagel_layout(source) if conversion.layout is None else conversion.layout == "bagel"
    weights = list(_weights(checked, conversion, adapter))
    autoencoder = [_copied(k, e, conversion.dtype) for k, e in checked.autoencoder_entries.items()]
    with new_model_folder(out, overwrite) as folder:
        started(sum(tensor.nbytes for tensor in (*weights, *autoencoder)))
        stored_name = set_name(checked.weights_file.name)
        name = WEIGHTS if not to_bagel else "ema" if stored_name == WEIGHTS else stored_name
        write_weights(folder, name, weights, conversion.shard_bytes, wrote, by_key=conversion.quantize is not None)
        write_weights(folder, AUTOENCODER, autoencoder, None, wrote)
        _write_configs(source, folder, to_bagel)
        for path in sorted(source.iterdir()):
            if _is_kept(path):
                shutil.copyfile(path, folder / path.name)


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


def _weights(checked: CheckedFolder, conversion: Conversion, adapter: Adapter | None) -> Iterator[Planned]:
    quantized: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    if conversion.quantize is not None:
        for name, module in checked.model.named_modules():
            if quantizing.is_quantizable(name, module):
                assert isinstance(module, torch.nn.Linear)
                shapes = quantizing.part_shapes(module.in_features, module.out_features, conversion.quantize)
                quantized |= {name: shapes} if shapes else {}
    for key, entry in checked.entries.items():
        module = key.removesuffix(".weight")
        adapted = adapter if adapter is not None and module in adapter.pairs and key != module else None
        if key == module or module not in quantized:
            yield _copied(key, entry, conversion.dtype, adapted, module)
        else:
            assert conversion.quantize is not None
            yield from _quantized(module, entry, quantized[module], conversion.quantize, adapted)


def _copied(
    key: str, entry: TensorEntry, dtype: torch.dtype | None, adapter: Adapter | None = None, module: str = ""
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
        if wanted == torch.float16 != entry.dtype and not tensor.isfinite().all():
            raise ValueError(f"{key} has numbers that float16 can't hold: convert to bfloat16 or float32 instead")
        return tensor

    return Planned(key, entry.shape, wanted, make)


def _quantized(
    module: str,
    entry: TensorEntry,
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    kind: quantizing.Quantization,
    adapter: Adapter | None,
) -> Iterator[Planned]:
    """A weight's quantized parts. It is quantized when the first part is made, and freed with the last."""
    made: dict[str, Tensor] = {}

    def make(part: str) -> Tensor:
        if not made:
            weight = TensorReader(map_files=False).read(entry)
            if adapter is not None:
                weight = adapter.merged(module, weight.to(torch.float32))
            made.update(quantizing.quantized_weight(weight, kind))
        return made.pop(part)

    for part, (shape, dtype) in shapes.items():
        yield Planned(f"{module}.{part}", shape, dtype, lambda part=part: make(part))  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------- other files


def _write_configs(source: Path, folder: Path, to_bagel: bool) -> None:
    """Configuration files of the layout: copied if it is the source's, else translated."""
    if to_bagel == is_bagel_layout(source):
        for name in _CONFIGS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    config = read_config(source)
    if not to_bagel:
        originals = {n: (source / n).read_text(encoding="utf-8") for n in _CONFIGS if (source / n).is_file()}
        files.write_json(folder / CONFIG, to_sections(config) | {ORIGINAL: originals})
        return
    originals = read_json(source / CONFIG).get(ORIGINAL, {})
    if isinstance(originals, dict) and _restored(originals, folder, config):
        return
    for name, sections in bagel_sections(config).items():
        files.write_json(folder / name, sections)


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
