"""Which weights they are: a digest that reads megabytes of a folder of gigabytes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from irg.model.weights.manifest import read_header

_ENDS = 1 << 20
_AROUND = 4096
_ENDINGS = (".safetensors", ".gguf", ".json")


def weights_fingerprint(*places: Path) -> str:
    """A sha256 over each weight and configuration file of some folders (or files), in order: its name, its size, its
    first and last MiB, and 4 KiB on either side of where each tensor of a safetensors file begins.

    Whatever trains a tensor changes it everywhere, so two trainings of a model never share one, whatever they froze.
    """
    digest = hashlib.sha256()
    for path in (file for place in places for file in _files(place)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start, length in [(0, _ENDS), *_around_tensors(path), (max(0, size - _ENDS), _ENDS)]:
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [path for ending in _ENDINGS for path in sorted(place.glob(f"*{ending}"))]


def _around_tensors(path: Path) -> Iterator[tuple[int, int]]:
    try:
        entries = read_header(path).values() if path.suffix == ".safetensors" else ()
    except ValueError:  # of a form that another library reads
        entries = ()
    for start in sorted(entry.start for entry in entries):
        yield max(0, start - _AROUND), 2 * _AROUND
