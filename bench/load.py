"""How much host memory loading a BAGEL folder takes: ``python bench/load.py``.

Writes a random BAGEL-7B folder with every width divided (by 8, unless told otherwise), loads it in a fresh process for
each target, touches every weight, and holds the peak of resident memory, above what the process had before (after
loading a tiny model, so with all libraries awake), against the weights' own size in the target dtype. Linux only.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

Target = Literal["bf16", "float32", "int8", "int4"]
TARGETS: tuple[Target, ...] = ("bf16", "float32", "int8", "int4")
AIM = 1.10


@dataclass
class Options:
    """Measure the peak of host memory while a BAGEL-layout folder is loaded."""

    narrow: int = 8
    """Every width and the vocabulary of BAGEL-7B are divided by this; 1 writes 29 GB."""
    folder: Path | None = None
    """Load this folder instead."""
    targets: tuple[Target, ...] = TARGETS
    """What the weights become."""
    child: Target | None = None
    """Measure one target in this process (used by the script itself)."""


def measure(folder: Path, target: Target) -> dict[str, float]:
    """Load ``folder`` in this process; bytes of the weights and of memory's peak, seconds."""
    import torch

    from irg.model.network.config import CONFIGS
    from irg.model.weights.checkpoint import load_model
    from irg.model.weights.initialize import write_folder

    torch.set_num_threads(1)
    dtype = torch.float32 if target == "float32" else torch.bfloat16
    kind: Any = target if target in ("int8", "int4") else None
    with tempfile.TemporaryDirectory() as small:  # what loading imports and wakes up is not the weights'
        write_folder(Path(small), CONFIGS["tiny"]())
        load_model(small, dtype, quantize=kind)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    loaded = load_model(folder, dtype, quantize=kind)
    seconds = time.perf_counter() - started
    tensors = [t for net in (loaded.model, loaded.autoencoder) for t in net.state_dict().values()]
    for tensor in tensors:
        for piece in tensor.view(-1).split(1 << 20):  # so that mapped pages count, and nothing big is made for it
            piece.sum()
    return {
        "weights": sum(t.nbytes for t in tensors),
        "peak": _memory("VmHWM") - before,
        "seconds": seconds,
    }


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def measured_apart(folder: Path, target: Target) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--child", target]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(options: Options) -> int:
    """Print a Markdown table; the exit code is 1 if a target takes more than the aim."""
    if options.child is not None:
        assert options.folder is not None
        print(json.dumps(measure(options.folder, options.child)))
        return 0
    scratch = Path(tempfile.mkdtemp(prefix="irg-load-"))
    try:
        folder = options.folder or scratch
        if options.folder is None:
            from irg.model.network.config import CONFIGS
            from irg.model.weights.initialize import narrower, write_folder

            write_folder(scratch, narrower(CONFIGS["bagel_7b"](), options.narrow))
        print(f"BAGEL-7B at 1/{options.narrow} width, stored in bf16" if options.folder is None else str(folder))
        print("| loaded as | weights MB | peak MB | ratio | seconds |\n|---|---:|---:|---:|---:|")
        worst = 0.0
        for target in options.targets:
            row = measured_apart(folder, target)
            ratio = row["peak"] / row["weights"]
            worst = max(worst, ratio)
            sizes = f"{row['weights'] / 1e6:.0f} | {row['peak'] / 1e6:.0f}"
            print(f"| {target} | {sizes} | {ratio:.3f} | {row['seconds']:.1f} |")
        print(f"aim: at most {AIM:.2f}: {'kept' if worst <= AIM else 'MISSED'}")
    finally:
        shutil.rmtree(scratch)
    return 0 if worst <= AIM else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
