"""The product with a quantized weight, and the one place that decides how it is computed.

A method for each device, kind of weight and number of tokens:

* ``stored``: the weight is read once, in its stored form (:mod:`.stored_matmul`). For few tokens, whose products take
  as long as the weight's way from memory.
* ``fp8``: fp8 tensor cores; the tokens are rounded to fp8 too, each with a scale of its own. For many tokens and fp8
  weights.
* ``dequantized``: one compiled kernel dequantizes the weight, then comes the ordinary product. For many tokens, whose
  arithmetic hides the bytes of that. fp8 on GPUs without fp8 arithmetic, and all that gradients flow through, come here
  too.
* ``plain``: ordinary operations. Without CUDA, Triton or a C compiler, and in float32 or float16.

Legend: N tokens; O outputs; I inputs; S groups of an output row.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Quantization = Literal["int8", "int4", "fp8"]
Method = Literal["stored", "fp8", "dequantized", "plain"]
FP8 = torch.float8_e4m3fn
LARGEST_FP8 = torch.finfo(FP8).max
FEW_TOKENS = 128
"""On an H100 64 tokens take a quarter to a half of the time of 300 with a dequantized weight, and twice as many at most
twice that (``bench/quantized.py``)."""

FP8_MULTIPLE = 16
"""Inputs and outputs of a product in fp8 must be multiples of this."""


def product(x_NI: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None) -> Tensor:
    """x W^T + bias, [N, O] in the dtype of ``x_NI``; the weight's parts are those of ``QuantizedLinear``."""
    kind, (tokens, inputs), outputs = kind_of(qdata.dtype), x_NI.shape, qdata.shape[0]
    differentiable = x_NI.requires_grad and torch.is_grad_enabled()
    bias = None if bias is None else bias.to(x_NI.dtype)
    method = choose_method(kind, tokens, inputs, outputs, x_NI.dtype, differentiable, _capability(x_NI.device))
    if method == "stored":
        from irg.model.weights.stored_matmul import stored_matmul  # needs Triton

        return stored_matmul(x_NI, qdata, scale, zero, bias)
    if method == "fp8":
        return fp8_product(x_NI, qdata, scale, bias)
    if method == "dequantized":
        return F.linear(x_NI, _fused(dequantized, qdata, scale, zero, x_NI.dtype), bias)
    if zero is None:  # scaling the result is cheaper than scaling the weight
        y_NO = F.linear(x_NI, qdata.to(x_NI.dtype)) * scale[:, 0].to(x_NI.dtype)
        return y_NO if bias is None else y_NO + bias
    return F.linear(x_NI, dequantized(qdata, scale, zero, x_NI.dtype), bias)


def choose_method(
    kind: Quantization,
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    differentiable: bool,
    capability: int,
) -> Method:
    """How a product is computed.

    Args:
        capability: of the NVIDIA GPU, such as 89; 0 where kernels can't be compiled, or there is no such GPU.
    """
    if capability < 80 or dtype != torch.bfloat16:
        return "plain"
    if differentiable or (kind == "fp8" and capability < 89):
        return "dequantized"
    if tokens <= FEW_TOKENS:
        return "stored"
    fits = inputs % FP8_MULTIPLE == 0 and outputs % FP8_MULTIPLE == 0
    return "fp8" if kind == "fp8" and fits else "dequantized"


def kind_of(qdata: torch.dtype) -> Quantization:
    """What a weight is quantized to, by the dtype of its numbers."""
    return "int8" if qdata == torch.int8 else "fp8" if qdata == FP8 else "int4"


def dequantized(qdata: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A weight [O, I] from its quantized parts."""
    if zero is None:
        return (qdata.to(torch.float32) * scale).to(dtype)
    outputs, groups = scale.shape
    weight_OSI = torch.stack([qdata >> 4, qdata & 15], dim=-1).view(outputs, groups, -1).to(dtype)
    return weight_OSI.sub_(zero[..., None].to(dtype)).mul_(scale[..., None].to(dtype)).view(outputs, -1)


def fp8_rows(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows rounded to fp8 (e4m3), a row's largest number to 448, and what to multiply each with, float32 [N, 1]."""
    x_NI = x_NI.to(torch.float32)
    scale_N1 = (x_NI.abs().amax(dim=1, keepdim=True) / LARGEST_FP8).clamp(min=1e-12)
    return (x_NI / scale_N1).clamp(-LARGEST_FP8, LARGEST_FP8).to(FP8), scale_N1


def fp8_product(x_NI: Tensor, qdata_OI: Tensor, scale_O1: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias in bfloat16, of fp8 numbers on both sides."""
    rounded_NI, scale_N1 = _fused(fp8_rows, x_NI)
    return torch._scaled_mm(
        rounded_NI, qdata_OI.t(), scale_N1, scale_O1.t(), bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _fused(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function, compiled; within a compiled network it is part of that."""
    return function(*args) if torch.compiler.is_compiling() else _compiled(function)(*args)


def _capability(device: torch.device) -> int:
    """See :func:`choose_method`."""
    return _cuda_capability(device) if device.type == "cuda" else 0


# A constant in compiled networks: what torch.compiler.assume_constant_result sets, which takes two seconds to import.
_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _cuda_capability(device: torch.device) -> int:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None or not compiler:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
