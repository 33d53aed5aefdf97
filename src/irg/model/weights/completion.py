"""A fine-tune completed from its base: what its folder lacks (tensors, configuration, tokenizer, autoencoder) is taken
from the folder that it was trained from.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from irg.model.weights.checkpoint import PATCH_EMBEDDING, CheckedFolder, check_weights
from irg.model.weights.config_files import (
    CONFIG,
    LLM_CONFIG,
    VIT_CONFIG,
    has_own_sections,
    is_bagel_layout,
    read_config,
)
from irg.model.weights.formats.dfloat11 import reshaped
from irg.model.weights.formats.recognition import read_weights
from irg.model.weights.key_names import lacking_parts
from irg.model.weights.manifest import TensorEntry
from irg.model.weights.profile import FILE as PROFILE
from irg.model.weights.quantize import stored_quantization
from irg.model.weights.tokenizer import FILES as TOKENIZER_FILES
from irg.model.weights.tokenizer import MERGES, TOKENIZER, VOCAB
from irg.model.weights.weight_sets import AUTOENCODER, find_autoencoder, find_weights, weight_sets

RECORD = "completed_from.json"


@dataclass(frozen=True)
class Completed:
    """A checked model of two folders.

    Attributes:
        folder: a temporary one with the configuration, tokenizer and other small files of both.
        record: what came from where; a new folder keeps it as :data:`RECORD`.
        lines: the same in words.
    """

    checked: CheckedFolder
    folder: Path
    record: dict[str, Any]
    lines: tuple[str, str]


@contextmanager
def completed(fine: Path, base: Path, weights: str | None = None, file: Path | None = None) -> Iterator[Completed]:
    """Hold a fine-tune and its base together, by their headers alone.

    Args:
        file: the fine-tune's weights, where they do not lie in its folder.
        weights: the set of weights to take of the fine-tune's folder; of the base's folder its usual one.

    Raises:
        ValueError: a file is damaged, both folders lack the same, a tensor has another shape in each, or weights are
            quantized.
    """
    path, base_path = file or find_weights(fine, weights), find_weights(base)
    (weight_format, own), (_, lent) = read_weights(path), read_weights(base_path)
    _check_together(path, own, base_path, lent)
    added = {key: entry for key, entry in lent.items() if key not in own}
    has_autoencoder = AUTOENCODER in weight_sets(p.name for p in fine.iterdir())
    ae_path = find_autoencoder(fine if has_autoencoder else base)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources = _small_files(fine, base, folder)
        try:
            config = read_config(folder)
        except ValueError as error:
            raise ValueError(_with_real_paths(str(error), folder, sources)) from None
        checked = check_weights(config, path, (weight_format, own | added), ae_path)
        own_files, base_files = _by_owner([*sources.values(), ae_path], fine)
        record = {
            "fine_tune": {"folder": str(file or fine), "weights": path.name, "tensors": len(own), "files": own_files},
            "base": {"folder": str(base), "weights": base_path.name, "tensors": sorted(added), "files": base_files},
        }
        lines = (_line(file or fine, path, own, own_files), _line(base, base_path, added, base_files))
        yield Completed(checked, folder, record, lines)


def _check_together(
    path: Path, own: Mapping[str, TensorEntry], base_path: Path, lent: Mapping[str, TensorEntry]
) -> None:
    for file, entries in ((path, own), (base_path, lent)):
        if (kind := stored_quantization(entries)) is not None:
            raise ValueError(f"{file} is quantized to {kind}: complete the full weights, then quantize them")
    for key in own.keys() & lent.keys() - {PATCH_EMBEDDING}:  # which has two forms
        if reshaped(own[key], lent[key].shape).shape != lent[key].shape:
            raise ValueError(
                f"{path} and {base_path} do not go together: {key} is {list(own[key].shape)} in the first, "
                f"{list(lent[key].shape)} in the second"
            )
    if lacking := lacking_parts({*own, *lent}):
        raise ValueError(f"neither {path} nor {base_path} has {', '.join(lacking)}")


def _small_files(fine: Path, base: Path, folder: Path) -> dict[str, Path]:
    """Fill a folder with the files beside the weights; returns where each came from."""
    sources = {path.name: path for path in _json_and_text(fine) if path.name not in (CONFIG, *TOKENIZER_FILES)}
    if is_bagel_layout(fine):
        # a config.json without sections of ours says nothing
        owner = fine if has_own_sections(fine / CONFIG) or not is_bagel_layout(base) else base
        sources |= _those_of(owner, [CONFIG])
        if VIT_CONFIG not in sources:
            sources |= _those_of(base, [VIT_CONFIG])
            if VIT_CONFIG not in sources:  # the base has another layout
                raise ValueError(f"neither {fine} nor {base} has {VIT_CONFIG}")
    elif has_own_sections(fine / CONFIG):
        sources[CONFIG] = fine / CONFIG
    else:
        sources.pop(VIT_CONFIG, None)
        sources |= _those_of(base, [CONFIG, LLM_CONFIG, VIT_CONFIG])
    sources |= _those_of(fine if _has_tokenizer(fine) else base, TOKENIZER_FILES)
    if PROFILE not in sources:
        sources |= _those_of(base, [PROFILE])
    for name, source in sources.items():
        shutil.copyfile(source, folder / name)
    return sources


def _json_and_text(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in (".json", ".txt", ".jinja")]


def _those_of(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_file()}


def _has_tokenizer(folder: Path) -> bool:
    return (folder / TOKENIZER).is_file() or ((folder / VOCAB).is_file() and (folder / MERGES).is_file())


def _by_owner(sources: Iterable[Path], fine: Path) -> tuple[list[str], list[str]]:
    """Names of the files that are the fine-tune's, and of those that are its base's."""
    paths = sorted(path for path in sources if not path.name.endswith(".index.json"))
    return [p.name for p in paths if p.parent == fine], [p.name for p in paths if p.parent != fine]


def _with_real_paths(message: str, folder: Path, sources: Mapping[str, Path]) -> str:
    for name, source in sources.items():
        message = message.replace(str(folder / name), str(source))
    return message


def _line(folder: Path, path: Path, entries: Mapping[str, TensorEntry], names: list[str]) -> str:
    """``From FOLDER: 432 tensors of ema.safetensors (vit_model 428, connector 4); ae.safetensors, tokenizer.json``."""
    parts = Counter(key.partition(".")[0] for key in entries)
    counts = ", ".join(f"{part} {count}" for part, count in parts.items())
    taken = [f"{len(entries)} tensors of {path.name} ({counts})"] if entries else []
    return f"From {folder}: {'; '.join([*taken, *([', '.join(names)] if names else [])]) or 'nothing'}"
