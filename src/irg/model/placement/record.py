"""What a result's record says of the model that made it, and how it was held."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from irg.model.placement.devices import device_name
from irg.model.placement.memory_plan import MemoryPlan
from irg.model.placement.processes import Processes
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.fingerprint import weights_fingerprint
from irg.model.weights.weight_sets import set_name
from irg.version import library_versions


def loaded_record(
    folder: Path,
    loaded: LoadedModel,
    plan: MemoryPlan,
    lora: Sequence[tuple[Path, float]],
    devices: Sequence[torch.device],
    processes: Processes | None = None,
) -> dict[str, Any]:
    """As plain JSON values: ``fingerprint`` (of the folder and the adapters), ``weights`` (the set's name),
    ``precision`` of the weights, ``dtype`` that is computed in, ``memory`` mode, ``lora`` (``PATH:SCALE``),
    ``device``, ``parallel`` where several processes share the model, ``versions`` of libraries."""
    assert loaded.weights_file is not None
    shared = {} if processes is None else {"parallel": f"{processes.kind} {processes.world}"}
    return {
        "fingerprint": weights_fingerprint(folder, *(path for path, _ in lora)),
        "weights": set_name(loaded.weights_file.name),
        "precision": plan.precision,
        "dtype": str(next(loaded.autoencoder.parameters()).dtype).removeprefix("torch."),
        "memory": plan.mode,
        "lora": [f"{path}:{scale:g}" for path, scale in lora],
        "device": ", ".join(map(device_name, [processes.device] if processes else devices)),
        **shared,
        "versions": library_versions(),
    }
