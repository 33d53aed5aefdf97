"""How much memory IRG needs, which rung of the memory ladder fits, and a model loaded on that rung.

The estimate counts what PyTorch holds at the worst moment of one request: weights, the cache of three guidance
branches, and the larger of the network's and the autoencoder's activations. Formulas stand in :func:`estimate`; a
reserve for the CUDA context and cuBLAS is added on GPUs. GB are 1e9 bytes.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from irg.engine.cache import grown
from irg.model.network.autoencoder import FluxConfig
from irg.model.network.config import ModelConfig
from irg.model.placement.devices import device_of, follow_layers, layer_devices
from irg.model.placement.offload import LayerOffload, offload_layers
from irg.model.weights import quantize as quantizing
from irg.model.weights.checkpoint import CheckedFolder, LoadedModel, check_folder, load_model
from irg.model.weights.manifest import format_size

Memory = Literal["auto", "bf16", "int8", "int4", "offload"]
Rung = Literal["float32", "bf16", "int8", "int4", "offload"]
ROWS, FIRST_SLOTS = 3, 512  # of the cache: main, text-free and image-free branch
CUDA_RESERVE = 700_000_000
SYSTEM_TOKENS, PROMPT_TOKENS = 120, 80


@dataclass(frozen=True)
class Load:
    """What the estimate is for. ``thought_tokens`` are those of every thought; ``requests`` run together."""

    height: int = 1024
    width: int = 1024
    thought_tokens: int = 300
    rounds: int = 1
    requests: int = 1


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device, by what they are for; ``host`` are weights that wait in host memory."""

    weights: int
    cache: int
    activations: int
    autoencoder: int
    reserve: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes needed on the device at the worst moment: the network and the autoencoder never run together."""
        return self.weights + self.cache + max(self.activations, self.autoencoder) + self.reserve


# ------------------------------------------------------------------------------------------------------- the estimate


def weight_bytes(checked: CheckedFolder, rung: Rung) -> dict[str, int]:
    """Bytes of the weights on a rung: ``layers`` of the decoder, ``largest`` of these layers, ``other``.

    What a folder has quantized keeps its size.
    """
    item, kind = (4 if rung == "float32" else 2), kind_of(rung)
    layers: dict[str, int] = {}
    other = sum(tensor.numel() for tensor in checked.autoencoder.parameters()) * item
    for name, module in checked.model.named_modules():
        size = _quantized_bytes(name, module, kind)
        size += sum(
            tensor.numel() * (item if tensor.is_floating_point() and leaf != "scale" else tensor.itemsize)
            for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if not (leaf == "weight" and size)
        )
        if name.startswith(quantizing.LAYERS):
            layer = name.removeprefix(quantizing.LAYERS).partition(".")[0]
            layers[layer] = layers.get(layer, 0) + size
        else:
            other += size
    return {"layers": sum(layers.values()), "largest": max(layers.values()), "other": other}


def _quantized_bytes(name: str, module: torch.nn.Module, kind: quantizing.Quantization | None) -> int:
    """Bytes of a linear layer's weight once it is quantized; 0 if it is not."""
    if kind is None or not quantizing.wanted(name, module):
        return 0
    assert isinstance(module, torch.nn.Linear)
    shapes = quantizing.part_shapes(module.in_features, module.out_features, kind) or {}
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


def kind_of(rung: Rung) -> quantizing.Quantization | None:
    """What a rung quantizes to."""
    return rung if rung == "int8" or rung == "int4" else None


def estimate(checked: CheckedFolder, rung: Rung, load: Load, device: str = "cuda", resident: int = 0) -> Estimate:
    """What a request needs on a rung.

    * Cache: keys and values of all layers for 3 rows (main, text-free, image-free) a request, as many slots as the
      longest sequence takes when its rows grow as the engine grows them.
    * Activations: a denoising step of all three branches, N tokens. At its peak, in an MLP, a layer holds three
      tensors of the intermediate size (gate, up, product) and five of the hidden size; on int8 and int4 also one
      widened weight, on int4 half as much again while it is unpacked.
    * Autoencoder: four tensors of its widest full-resolution stage while it decodes; convolution workspaces are not
      known.
    * Offload: two layers' room on the device, and the layers that stay there.
    """
    config = checked.config
    decoder, item = config.decoder, 4 if rung == "float32" else 2
    weights = weight_bytes(checked, rung)
    host = 0
    on_device = sum(weights[part] for part in ("layers", "other"))
    if rung == "offload":
        streamed = decoder.num_hidden_layers - resident
        host = weights["layers"] * streamed // decoder.num_hidden_layers
        on_device += min(2, streamed) * weights["largest"] - host
    slots = cache_slots(config, load)
    per_slot = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * item
    tokens = 3 * load.requests * (_latents(config, load) + 2)
    activations = tokens * (3 * decoder.intermediate_size + 5 * decoder.hidden_size) * item
    if (kind := kind_of(rung) or quantizing.stored_quantization(checked.entries)) is not None:
        widened = decoder.intermediate_size * decoder.hidden_size * item
        activations += widened if kind == "int8" else widened * 3 // 2
    return Estimate(
        weights=on_device,
        cache=ROWS * load.requests * slots * per_slot,
        activations=activations,
        autoencoder=load.requests * _autoencoder_bytes(config, load, item),
        reserve=CUDA_RESERVE if device.startswith("cuda") else 0,
        host=host,
    )


def cache_slots(config: ModelConfig, load: Load) -> int:
    """Slots of a row at the end of a request: the engine's growth, step by step."""
    patch = config.vit.patch_size
    width, height = config.vit_resize.size(load.width, load.height)
    thought = [1] * (load.thought_tokens + 2)
    target = _latents(config, load) + 2
    steps = [SYSTEM_TOKENS, PROMPT_TOKENS, *thought]
    look = target + (width // patch) * (height // patch) + 2
    for _ in range(load.rounds):
        steps += [look, *thought]
    length, slots = 0, FIRST_SLOTS
    for step in steps:
        length += step
        slots = slots if length <= slots else grown(slots, length)
    return slots if length + target <= slots else grown(slots, length + target)


def _latents(config: ModelConfig, load: Load) -> int:
    return (load.height // config.image_stride) * (load.width // config.image_stride)


def _autoencoder_bytes(config: ModelConfig, load: Load, item: int) -> int:
    ae, pixels = config.autoencoder, load.height * load.width
    if isinstance(ae, FluxConfig):
        return 4 * ae.ch * ae.ch_mult[min(1, len(ae.ch_mult) - 1)] * pixels * item
    half, quarter, eighth = ae.decoder_widths
    return 4 * max(half * pixels // 4, 4 * quarter * pixels // 64, eighth * pixels // 64) * item


# ---------------------------------------------------------------------------------------------------------- the choice


@dataclass(frozen=True)
class Choice:
    """A rung, and why it was taken: one line."""

    rung: Rung
    estimate: Estimate
    reason: str
    resident: int = 0  # layers that stay on the device when the others are streamed
    together: int = 1  # requests that fit the free memory beside each other
    precision: str = ""  # of the weights: what two results must share to be comparable


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


def choose(
    checked: CheckedFolder,
    asked: Memory = "auto",
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    load: Load | None = None,
    free: int | None = None,
) -> Choice:
    """The rung that was asked for; for ``auto`` the first that fits the free memory of the devices.

    The order is float32 (CPU only), bf16, int8, int4, offload. What a folder has quantized stays as it is. Offload that
    was chosen keeps as many layers on the device as fit; offload that was asked for keeps none.

    Raises:
        ValueError: ``asked`` is unknown, or goes against the folder or the devices.
    """
    load = load or Load()
    if asked not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}, got {asked!r}")
    kind, where = devices[0].type, " + ".join(map(str, devices))
    free = sum(map(free_memory, devices)) if free is None else free
    stored = quantizing.stored_quantization(checked.entries)
    if stored is not None and asked not in ("auto", "offload", stored):
        raise ValueError(f"{checked.weights_file} is quantized to {stored}: memory must be auto, {stored} or offload")
    if len(devices) > 1 and asked == "offload":
        raise ValueError("memory offload needs one device, not several")

    if asked != "auto":
        return _described(checked, asked, load, kind, free, where, 0, f"{asked} as asked: ")
    passed: list[str] = []
    for rung in _rungs(stored, kind):
        if kind_of(rung) and not stored and not quantizing.available():
            passed.append(f"{rung} needs pip install 'irg[quant]'")
            continue
        wanted = estimate(checked, rung, load, kind)
        if wanted.total <= free:
            return _described(checked, rung, load, kind, free, where, 0, after=passed)
        passed.append(f"{rung} needs {format_size(wanted.total)}")
    if len(devices) > 1:
        raise ValueError(
            f"{checked.weights_file} fits {where} on no rung: {'; '.join(passed)}; {format_size(free)} is free"
        )
    resident = _resident(checked, load, kind, free)
    return _described(checked, "offload", load, kind, free, where, resident, after=passed)


def _rungs(stored: quantizing.Quantization | None, kind: str) -> list[Rung]:
    """What ``auto`` tries before it streams layers."""
    if stored is not None:
        return [stored]
    return ["float32", "bf16", "int8", "int4"] if kind == "cpu" else ["bf16", "int8", "int4"]


def _described(
    checked: CheckedFolder,
    rung: Rung,
    load: Load,
    kind: str,
    free: int,
    where: str,
    resident: int,
    before: str = "",
    after: Sequence[str] = (),
) -> Choice:
    wanted = estimate(checked, rung, load, kind, resident)
    note = "" if wanted.total <= free else ", which may not be enough"
    why = f" ({'; '.join(after)})" if after else ""
    needs = f"needs {_told(wanted, resident)} at {load.width}x{load.height}"
    reason = f"{before or f'{rung} '}{needs}; {where} has {format_size(free)} free{note}{why}"
    together = 1 if rung == "offload" else requests_that_fit(checked, rung, load, kind, free)
    precision = kind_of(rung) or quantizing.stored_quantization(checked.entries) or rung.replace("offload", "bf16")
    return Choice(rung, wanted, reason, resident, together, precision)


def requests_that_fit(checked: CheckedFolder, rung: Rung, load: Load, device: str, free: int) -> int:
    """How many requests may run beside each other in ``free`` bytes: at least one."""
    one, two = (estimate(checked, rung, replace(load, requests=n), device).total for n in (1, 2))
    return 1 + max(0, (free - one) // max(1, two - one))


def _resident(checked: CheckedFolder, load: Load, kind: str, free: int) -> int:
    """How many layers fit the device beside all else, with a twentieth of it left free."""
    layers, room = checked.config.decoder.num_hidden_layers, 0.95 * free
    none, one = (estimate(checked, "offload", load, kind, n).total for n in (0, 1))
    return int(min(max(0, (room - none) / max(1, one - none)), max(0, layers - 2)))


def _told(wanted: Estimate, resident: int = 0) -> str:
    host = (
        f" and {format_size(wanted.host)} of host memory ({resident} layers stay on the device)" if wanted.host else ""
    )
    return f"about {format_size(wanted.total)}{host}"


# ---------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class Placed:
    """A model on its rung."""

    loaded: LoadedModel
    choice: Choice
    offload: LayerOffload | None = None


def load_on_rung(
    folder: Path,
    asked: Memory = "auto",
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    dtype: torch.dtype | None = None,
    prefer: Literal["ema", "model"] = "ema",
    load: Load | None = None,
) -> Placed:
    """Load a model folder on the rung that was asked for, or that fits.

    Args:
        dtype: of the activations and of what is not quantized; None: float32 on the rung of that name, else bfloat16.
            With ``auto`` a dtype stands for its rung: nothing is quantized or streamed.
        devices: the first has everything but layers; layers are spread over all in proportion to their free memory.

    Raises:
        ValueError: the folder is incomplete or damaged, or the rung goes against it or the devices.
    """
    checked = check_folder(folder, prefer)
    if dtype is not None and asked == "auto":
        rung: Rung = "float32" if dtype.itemsize >= 4 else "bf16"
        load, kind, free = load or Load(), devices[0].type, sum(map(free_memory, devices))
        wanted = estimate(checked, rung, load, kind)
        told = f"{str(dtype).removeprefix('torch.')} as asked: needs {_told(wanted)}"
        choice = Choice(rung, wanted, told, together=requests_that_fit(checked, rung, load, kind, free))
        precision = quantizing.stored_quantization(checked.entries) or str(dtype).removeprefix("torch.").replace(
            "bfloat", "bf"
        )
        choice = replace(choice, precision=precision)
    else:
        choice = choose(checked, asked, devices, load)
        dtype = dtype or (torch.float32 if choice.rung == "float32" else torch.bfloat16)
    layers = checked.config.decoder.num_hidden_layers
    if choice.rung == "offload":
        where = device_of([torch.device("cpu")] * layers, devices[0])
        loaded = load_model(checked, dtype, where)
        return Placed(loaded, choice, offload_layers(loaded.model, devices[0], choice.resident))
    spread = layer_devices(layers, devices, _shares(checked, choice, devices)) if len(devices) > 1 else []
    place = device_of(spread, devices[0]) if spread else devices[0]
    loaded = load_model(checked, dtype, place, quantize=kind_of(choice.rung))
    if spread:
        follow_layers(loaded.model)
    return Placed(loaded, choice)


def _shares(checked: CheckedFolder, choice: Choice, devices: Sequence[torch.device]) -> list[float]:
    """Room for layers on each device: free memory, on the first without what is not layers."""
    free, needs = [float(free_memory(device)) for device in devices], choice.estimate
    beside = weight_bytes(checked, choice.rung)["other"] + max(needs.activations, needs.autoencoder) + needs.reserve
    return [max(free[0] - beside, 0.1 * free[0]), *free[1:]]


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
