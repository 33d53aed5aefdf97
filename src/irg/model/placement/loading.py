"""Load a model folder by its memory plan: quantized, offloaded, or spread over several devices."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from irg.model.placement.devices import add_device_hooks, device_map, free_memory, layer_devices
from irg.model.placement.memory_plan import (
    Memory,
    MemoryPlan,
    RequestShape,
    plan_memory,
    quantization_of,
    weight_bytes,
)
from irg.model.placement.offload import offload_layers
from irg.model.placement.processes import Processes
from irg.model.placement.tensor_parallel import check_heads, split_layers
from irg.model.weights.adapter_files import LoraSource, read_adapters
from irg.model.weights.checkpoint import CheckedFolder, LoadedModel, check_folder, load_model
from irg.model.weights.quantize import stored_quantization


def load_with_plan(
    folder: Path,
    memory: Memory = "auto",
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    shape: RequestShape | None = None,
    lora: Sequence[LoraSource] = (),
    processes: Processes | None = None,
) -> tuple[LoadedModel, MemoryPlan]:
    """Load a model folder in the memory mode that was asked for, or that fits.

    Args:
        devices: the first has everything but layers; layers are spread over all in proportion to their free memory.
        dtype: of the activations and of what is not quantized; None: float32 in the mode of that name, else bfloat16.
            With ``auto`` a dtype stands for its mode: nothing is quantized or offloaded.
        weights: the name of the set of weights to take (default: :func:`irg.model.weights.weight_sets.choose_set`).
        shape: of the requests that have to fit.
        lora: low-rank adapters to add to the weights.
        processes: that run the model together (:mod:`.processes`), this one on its own device, not on ``devices``.

    Raises:
        ValueError: the folder is incomplete or damaged, or the mode goes against it, the devices or the processes.
    """
    if processes is not None:
        if processes.kind == "tensor":
            return _load_split(folder, processes, memory, dtype, weights, shape, lora)
        devices = [processes.device]
    checked = check_folder(folder, weights)
    adapters = read_adapters(lora, checked.entries, checked.weights_file)
    plan = plan_memory(checked, memory, devices, shape, dtype)
    dtype = dtype or (torch.float32 if plan.mode == "float32" else torch.bfloat16)
    layers = checked.config.decoder.num_hidden_layers
    if plan.mode == "offload":
        loaded = load_model(checked, dtype, device_map([torch.device("cpu")] * layers, devices[0]), adapters=adapters)
        offload_layers(loaded.model, devices[0], plan.resident_layers)
        return loaded, plan
    quantize = quantization_of(plan.mode)
    if len(devices) == 1:
        return load_model(checked, dtype, devices[0], quantize=quantize, adapters=adapters), plan
    by_layer = layer_devices(layers, devices, layer_shares(checked, plan, devices))
    loaded = load_model(checked, dtype, device_map(by_layer, devices[0]), quantize=quantize, adapters=adapters)
    add_device_hooks(loaded.model)
    return loaded, plan


def _load_split(
    folder: Path,
    processes: Processes,
    memory: Memory,
    dtype: torch.dtype | None,
    weights: str | None,
    shape: RequestShape | None,
    lora: Sequence[LoraSource],
) -> tuple[LoadedModel, MemoryPlan]:
    """This process's part of every layer, and the whole of the rest."""
    if memory not in ("auto", "bf16"):
        raise ValueError(f"parallel tensor splits weights that are neither quantized nor offloaded, not {memory}")
    checked, device = check_folder(folder, weights), processes.device
    check_heads(checked.config.decoder, processes.world)
    if (stored := stored_quantization(checked.entries)) is not None:
        raise ValueError(f"{checked.weights_file} is quantized to {stored}, which parallel tensor does not split")
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" and memory == "auto" else torch.bfloat16
    plan = plan_memory(checked, "auto", [device], shape, dtype)
    adapters = read_adapters(lora, checked.entries, checked.weights_file)
    on_host = [torch.device("cpu")] * checked.config.decoder.num_hidden_layers
    loaded = load_model(checked, dtype, device_map(on_host, device), adapters=adapters)
    split_layers(loaded.model, processes)
    return loaded, replace(plan, reason=f"{plan.precision}, every layer split among {processes.world} processes")


def layer_shares(checked: CheckedFolder, plan: MemoryPlan, devices: Sequence[torch.device]) -> list[float]:
    """Memory for layers on each device: what is free, on the first without what is not layers."""
    free, needs = [float(free_memory(device)) for device in devices], plan.estimate
    other = weight_bytes(checked, plan.mode)["other"] + max(needs.activations, needs.autoencoder) + needs.reserve
    return [max(free[0] - other, 0.1 * free[0]), *free[1:]]
