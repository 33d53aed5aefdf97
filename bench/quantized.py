"""Products with bf16, int8, fp8 and int4 weights of BAGEL-7B's layers: ``python bench/quantized.py`` (CUDA).

Decoding multiplies 1 token or 9 (eight drafted), drawing at 1024 x 1024 some thousands. Weights are random; the error
is that of the result, against float32 with the same stored weight. Caches are cleared before every run.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from irg.model.weights import quantized_product
from irg.model.weights.quantize import QuantizedLinear, part_shapes
from irg.model.weights.quantized_product import Quantization, dequantized
from work import product_bytes

KINDS: tuple[Quantization | None, ...] = (None, "int8", "fp8", "int4")


@dataclass
class Options:
    """Time products with quantized weights."""

    shapes: tuple[tuple[int, int], ...] = ((3584, 3584), (3584, 512), (3584, 18944), (18944, 3584))
    """Inputs and outputs of the layers."""
    tokens: tuple[int, ...] = (1, 9, 64, 300, 4096, 8192)
    """That are multiplied at a time."""
    few_tokens: int = quantized_product.FEW_TOKENS
    """Up to so many tokens the stored weight is read as it is."""
    device: str = "cuda"
    """cuda, cuda:1 or cpu."""
    dry: bool = False
    """A tiny layer on the CPU, to try the script itself."""
    json: Path | None = None
    """Write all numbers to this file."""


@dataclass(frozen=True)
class Row:
    """One product: microseconds, and the same divided by bf16's; bytes moved a second; relative error."""

    inputs: int
    outputs: int
    tokens: int
    kind: str
    microseconds: float
    to_bf16: float
    bandwidth: float
    error: float


def random_layer(kind: Quantization, inputs: int, outputs: int, device: torch.device) -> QuantizedLinear:
    """A layer whose weight has a norm of about one a row."""
    shapes = part_shapes(inputs, outputs, kind)
    assert shapes is not None
    parts = {}
    for part, (shape, dtype) in shapes.items():
        if dtype.is_floating_point:
            parts[part] = torch.randn(shape, device=device).to(dtype)
        else:  # zero points lie between the 16 levels
            low, high = (-128, 128) if dtype == torch.int8 else (0, 16) if part == "zero" else (0, 256)
            parts[part] = torch.randint(low, high, shape, device=device).to(dtype)
    spread = {"int8": 74.0, "fp8": 1.0, "int4": 6.5}[kind]
    scale = torch.full(shapes["scale"][0], inputs**-0.5 / spread, device=device).to(shapes["scale"][1])
    return QuantizedLinear(parts["qdata"], scale, parts.get("zero"), None).eval()


def microseconds(call: object, device: torch.device) -> float:
    """The median of several runs."""
    if device.type == "cuda":
        from triton.testing import do_bench

        call()  # type: ignore[operator]  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # what the host does is left out, as decoding's graphs do
            call()  # type: ignore[operator]
        return 1000 * float(do_bench(graph.replay, warmup=5, rep=30, return_mode="median"))
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return 1e6 * (time.perf_counter() - started)


@torch.inference_mode()
def measure(inputs: int, outputs: int, tokens: tuple[int, ...], device: torch.device) -> list[Row]:
    """Every kind of weight with every number of tokens."""
    rows, bf16 = list[Row](), dict[int, float]()
    for kind in KINDS:
        if kind is None:
            weight = torch.randn(outputs, inputs, device=device).mul_(inputs**-0.5).bfloat16()
            stored = weight.float()
        else:
            layer = random_layer(kind, inputs, outputs, device)
            stored = dequantized(layer.qdata, layer.scale, layer.zero, torch.float32)
        for n in tokens:
            x_NI = torch.randn(n, inputs, device=device).bfloat16()
            wanted_NO = x_NI.float() @ stored.T

            def call(x: Tensor = x_NI) -> Tensor:
                return F.linear(x, weight) if kind is None else layer(x)  # noqa: B023 - called in this round only

            error = float((call().float() - wanted_NO).norm() / wanted_NO.norm())
            took = microseconds(call, device)
            bf16.setdefault(n, took)
            rate = product_bytes(kind, n, inputs, outputs) / took * 1e6
            rows.append(Row(inputs, outputs, n, kind or "bf16", took, took / bf16[n], rate, error))
    return rows


def main(options: Options) -> int:
    """Print the table."""
    device, shapes, tokens = torch.device(options.device), options.shapes, options.tokens
    if options.dry:
        device, shapes, tokens = torch.device("cpu"), ((64, 32),), (1, 9, 80)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: --dry tries the script without one", file=sys.stderr)
        return 2
    quantized_product.FEW_TOKENS = options.few_tokens
    torch.manual_seed(0)
    rows = [row for inputs, outputs in shapes for row in measure(inputs, outputs, tokens, device)]
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    print("| inputs x outputs | tokens | weight | us | to bf16 | GB/s | error |\n|---|---:|---|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: (shapes.index((row.inputs, row.outputs)), row.tokens)):
        print(
            f"| {row.inputs} x {row.outputs} | {row.tokens} | {row.kind} | {row.microseconds:.1f} | {row.to_bf16:.2f} "
            f"| {row.bandwidth / 1e9:.0f} | {row.error:.1e} |"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
