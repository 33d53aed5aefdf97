"""One tensor's data from a safetensors file, mapped or read piece by piece."""

from pathlib import Path

import torch
from torch import Tensor

from irg.model.weights.manifest import TensorEntry

MAP_FROM_BYTES = 1 << 18  # smaller ones are read: a page that is touched brings its neighbors along
PIECE_BYTES = 16 << 20  # of a tensor that is converted while it is read


class TensorReader:
    """Reads tensors by their entries; each file is mapped at most once.

    A tensor that keeps its dtype and stays in host memory is a view of the (private, copy-on-write) mapping: nothing is
    copied, and pages are read when they are first used. Any other tensor is read piece by piece into its place: the
    peak is the target's size plus one piece, and no page of the file stays in this process.
    """

    def __init__(self, map_files: bool = True) -> None:
        self.map_files = map_files
        self._maps: dict[Path, Tensor] = {}

    def read(self, entry: TensorEntry, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A tensor in ``dtype`` (None: as stored) on ``device``.

        Raises:
            ValueError: the file can't be read.
        """
        dtype = dtype or entry.dtype
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=dtype, device=device)
        mappable = entry.start % entry.dtype.itemsize == 0 and entry.stop - entry.start >= MAP_FROM_BYTES
        try:
            if self.map_files and mappable and dtype == entry.dtype and torch.device(device).type == "cpu":
                return self._map(entry.file)[entry.start : entry.stop].view(dtype).view(entry.shape)
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

    def _map(self, path: Path) -> Tensor:
        if path not in self._maps:
            size = path.stat().st_size
            self._maps[path] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        return self._maps[path]
