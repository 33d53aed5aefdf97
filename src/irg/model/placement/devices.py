"""Devices: their names, their free memory, and one model on several of them, by decoder layers, applied from outside.

Of several devices the first has everything that is not a decoder layer; hidden states are moved where the layers'
device changes, and back for the final norms. Each layer's keys and values are on its device.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irg.model.network.unified import UnifiedModel

_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)(?:\.|$)")


def parse_devices(text: str | torch.device | Sequence[str | torch.device] | None) -> list[torch.device]:
    """``"cuda"``, ``"cuda:0,cuda:1"`` or devices; None: CUDA if there is one, else the CPU.

    Raises:
        ValueError: a device is unknown, not there, or given twice.
    """
    if text is None:
        text = "cuda" if torch.cuda.is_available() else "cpu"
    words = text.split(",") if isinstance(text, str) else [text] if isinstance(text, torch.device) else list(text)
    devices = []
    for word in words:
        try:
            device = torch.device(word.strip() if isinstance(word, str) else word)
        except RuntimeError:
            raise ValueError(f"device {word!r} is unknown: give cpu, cuda, or cuda:0,cuda:1 for several") from None
        if device.type == "cuda":
            device, count = torch.device("cuda", device.index or 0), torch.cuda.device_count()
            if (device.index or 0) >= count:
                raise ValueError(f"device {device} is not there: PyTorch sees {count} CUDA devices here")
        devices.append(device)
    if unknown := next((device for device in devices if device.type not in ("cpu", "cuda")), None):
        raise ValueError(f"device {str(unknown)!r} is not supported: models run on cpu or cuda")
    if len(set(devices)) != len(devices) or not devices:
        raise ValueError(f"devices must be different ones, got {', '.join(map(str, devices)) or 'none'}")
    return devices


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device now; of the CPU: what the system, and a container's limit, still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 1 << 62
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    if free == 1 << 62:
        with suppress(OSError, ValueError, AttributeError):
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return free


def layer_devices(layers: int, devices: Sequence[torch.device], shares: Sequence[float]) -> list[torch.device]:
    """A device for each layer: contiguous runs in proportion to ``shares``."""
    total, ends, seen = sum(shares), list[int](), 0.0
    for share in shares:
        seen += share
        ends.append(round(layers * seen / total))
    return [devices[next(d for d, end in enumerate(ends) if layer < end)] for layer in range(layers)]


def device_map(layers: Sequence[torch.device], rest: torch.device) -> Callable[[str], torch.device]:
    """Where a module or parameter of the unified model belongs, by its name."""

    def where(name: str) -> torch.device:
        match = _LAYER.match(name)
        return layers[int(match[1])] if match else rest

    return where


def add_device_hooks(model: UnifiedModel) -> None:
    """Let hidden states go to the device of each decoder layer, and come back to the model's for the final norms.

    The layers are where they should be already: ``load_model(..., device=device_map(...))`` reads them there.
    """
    decoder, hooks = model.language_model.model, dict[torch.device, _MoveInputs]()
    for layer in decoder.layers:
        device = next(layer.parameters()).device
        layer.register_forward_pre_hook(hooks.setdefault(device, _MoveInputs(device)))
    for norm in (decoder.norm, decoder.norm_moe_gen):
        norm.register_forward_pre_hook(_MoveInputs(model.device))


class _MoveInputs:
    """Moves the tensor arguments of a device's modules there. Rotary tables, a pair that all layers get, are moved
    once a forward."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pair: tuple[Any, ...] = ()  # the last one
        self.moved: tuple[Any, ...] = ()

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._to(value) for value in args)

    def _to(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        if not isinstance(value, tuple):
            return value
        if value is not self.pair:
            self.pair, self.moved = value, tuple(self._to(each) for each in value)
        return self.moved


def device_name(device: torch.device) -> str:
    """``cpu``, or ``cuda:0 (NVIDIA H100 80GB HBM3)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point type, by itself or by its name, such as ``bfloat16``.

    Raises:
        ValueError: it is none that weights are computed in.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    assert isinstance(found, torch.dtype)
    return found
