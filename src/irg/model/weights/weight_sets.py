"""The sets of weights in a folder: ``ema.safetensors`` beside ``model.safetensors``, shards with an index or without.

A set is asked for by its name, ``ema`` for ``ema.safetensors``. Shards without an index are ``ema-00001-of-00002`` or
``ema.00000-of-00002``; their first one stands for all.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from irg.model.weights.config_files import how_to_complete
from irg.model.weights.manifest import PICKLES, SHARD, missing_shards

WEIGHTS, AUTOENCODER = "weights", "ae"
BAGELS = ("ema", "model")  # BAGEL's averaged and plain ones
USUAL = (WEIGHTS, *BAGELS)  # taken without asking, the first that is there
SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"


@dataclass(frozen=True)
class WeightSet:
    """One set of weights: its file, its index, or the first of its shards."""

    name: str
    file: str
    shards: tuple[str, ...] = ()  # all of them, where there is no index


def set_name(file: str) -> str:
    """``ema`` of ``ema.safetensors``, ``ema.safetensors.index.json`` and ``ema-00001-of-00002.safetensors``."""
    if match := SHARD.fullmatch(file):
        return match[1]
    return re.sub(r"\.(safetensors(\.index\.json)?|gguf)$", "", file)


def weight_sets(files: Iterable[str]) -> dict[str, WeightSet]:
    """Name -> set, of all weight files among a folder's. A file wins over an index, an index over shards."""
    names = sorted(name for name in files if "/" not in name)
    sets: dict[str, WeightSet] = {}
    for name in names:
        if name.endswith(SUFFIX) and (match := SHARD.fullmatch(name)):
            before = sets.get(match[1])
            shards = (*(before.shards if before else ()), name)
            sets[match[1]] = WeightSet(match[1], shards[0], shards)
    for ending in (".gguf", INDEX, SUFFIX):
        for name in names:
            if name.endswith(ending) and not SHARD.fullmatch(name):
                sets[set_name(name)] = WeightSet(set_name(name), name)
    return sets


def choose_set(files: Iterable[str], wanted: str | None, folder: str) -> WeightSet:
    """The set that is asked for by name; for None the first of :data:`USUAL`, or the only one there is.

    Args:
        files: names of a folder's files.
        folder: how messages call it.

    Raises:
        ValueError: it is not there, or a shard of it is not, or there are several and none is asked for.
    """
    files = list(files)
    sets = weight_sets(files)
    others = [name for name in sets if name != AUTOENCODER]
    if wanted is not None:
        name = set_name(wanted)
        if name not in others:
            there = f"it has {', '.join(others)}" if others else "it has none"
            raise ValueError(f"{folder} has no weights called {wanted!r}: {there}")
    elif usual := [name for name in USUAL if name in sets]:
        name = usual[0]
    elif len(others) == 1:
        name = others[0]
    elif others:
        raise ValueError(f"{folder} has several sets of weights: choose one with --weights: {', '.join(others)}")
    else:
        usual_files = " or ".join(name + SUFFIX for name in USUAL)
        raise ValueError(f"{folder} has no weights: {usual_files} is missing{_advice(files)}")
    chosen = sets[name]
    if lost := missing_shards(chosen.shards):
        raise ValueError(f"{folder}: {lost} is missing, a part of the weights {name}")
    return chosen


def _advice(files: Iterable[str]) -> str:
    pickles = sorted(name for name in files if Path(name).suffix in PICKLES)
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle, which can run code when it is opened, so it is not read: convert it to "
        f"{WEIGHTS}{SUFFIX} (torch.load with weights_only=True, then safetensors.torch.save_file)"
    )


def find_weights(folder: Path, wanted: str | None = None) -> Path:
    """The file, index or first shard of a folder's weights (:func:`choose_set`).

    Raises:
        ValueError: they are not there, or not all of them.
    """
    names = [path.name for path in folder.iterdir()]
    path = folder / choose_set(names, wanted, str(folder)).file
    if not path.is_file():
        raise ValueError(f"{path} is {_no_file(path)}")
    return path


def find_autoencoder(folder: Path) -> Path:
    """The folder's ``ae.safetensors``, or its index.

    Raises:
        ValueError: it is not there.
    """
    sets = weight_sets(path.name for path in folder.iterdir())
    if AUTOENCODER not in sets:
        raise ValueError(
            f"{folder} has no autoencoder: {AUTOENCODER}{SUFFIX} is missing{_advice(p.name for p in folder.iterdir())}"
            f"; {how_to_complete(folder)}"
        )
    path = folder / sets[AUTOENCODER].file
    if not path.is_file():
        raise ValueError(f"{path} is {_no_file(path)}")
    return path


def _no_file(path: Path) -> str:
    return f"a link to a file that is not there ({path.readlink()})" if path.is_symlink() else "no file"
