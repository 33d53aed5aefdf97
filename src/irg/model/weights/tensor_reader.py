"""One tensor's data from a safetensors file, mapped or read piece by piece."""

import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

from irg.model.weights.manifest import Encoding, TensorEntry

MAP_FROM_BYTES = 1 << 18  # smaller ones are read: a page that is touched brings its neighbors along
PIECE_BYTES = 16 << 20  # of a tensor that is converted while it is read
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name since 3.13


class TensorReader:
    """Reads tensors by their entries; each file is mapped at most once.

    A tensor that keeps its dtype and stays in host memory is a view of the (private, copy-on-write) mapping: nothing is
    copied, and pages are read when they are first used and may be dropped again, so a file may be larger than memory.
    Any other tensor is read piece by piece into its place: the peak is the target's size plus one piece, and no page of
    the file stays in this process. So is every tensor of a file that the system refuses to map. A
    tensor that is stored in another format is decoded in host memory, whole.
    """

    def __init__(self, map_files: bool = True) -> None:
        self.map_files = map_files
        self._maps: dict[Path, Tensor | None] = {}  # None: the system refused

    def read(self, entry: TensorEntry, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A tensor in ``dtype`` (None: as stored) on ``device``.

        Raises:
            ValueError: the file can't be read, or what is stored is damaged.
        """
        dtype = dtype or entry.dtype
        if entry.encoding is not None:
            return _decoded(entry.encoding, entry).to(device=device, dtype=dtype)
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=dtype, device=device)
        mappable = entry.start % entry.dtype.itemsize == 0 and entry.stop - entry.start >= MAP_FROM_BYTES
        try:
            unchanged = dtype == entry.dtype and torch.device(device).type == "cpu"
            if self.map_files and mappable and unchanged and (mapped := self._map(entry.file)) is not None:
                return mapped[entry.start : entry.stop].view(dtype).view(entry.shape)
            whole = torch.empty(entry.shape, dtype=dtype, device=device)
            self._read_into(whole.view(-1), entry)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{entry.file}: can't be read: {error}") from None
        return whole

    @staticmethod
    def _read_into(flat: Tensor, entry: TensorEntry) -> None:
        piece = max(1, PIECE_BYTES // entry.dtype.itemsize)
        buffer = bytearray(min(len(flat), piece) * entry.dtype.itemsize)
        numbers = torch.frombuffer(buffer, dtype=entry.dtype)
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for target in flat.split(piece):
                view, done = memoryview(buffer)[: len(target) * entry.dtype.itemsize], 0
                while done < len(view) and (n := file.readinto(view[done:])):
                    done += n
                if done != len(view):
                    raise ValueError(f"{entry.file} became shorter while it was read")
                target.copy_(numbers[: len(target)])

    def _map(self, path: Path) -> Tensor | None:
        if path not in self._maps:
            try:
                self._maps[path] = torch.frombuffer(_private_mapping(path), dtype=torch.uint8)
            except (OSError, MemoryError):  # a limit of the address space, or strict accounting of memory
                self._maps[path] = None
        return self._maps[path]


def _private_mapping(path: Path) -> mmap.mmap:
    """A file's bytes, copy-on-write: in-place changes of a tensor work and never reach the file.

    Linux counts such a mapping as memory that may be needed, and refuses files larger than the machine has, unless
    MAP_NORESERVE says that it won't be.
    """
    with path.open("rb") as file:
        if sys.platform != "linux":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flags = mmap.MAP_PRIVATE | _NORESERVE
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _decoded(encoding: Encoding, entry: TensorEntry) -> Tensor:
    tensor = encoding.decode()
    assert tensor.shape == entry.shape, (tensor.shape, entry)
    return tensor
