"""Weight-only quantization of the decoder's linear layers, applied to a built model from outside.

Quantized are the seven projections of both experts in every decoder layer: 13.05 of BAGEL's 14.6 B parameters. Left in
their own dtype are the embedding and the language head (a lookup, and the logits of a 152k vocabulary, whose small
differences decide a token), all norms and biases (tiny), the image heads, time embedder and connector (what every
latent or patch passes once; tiny too), the ViT and the autoencoder (0.5 B parameters together, whose errors are seen
in every image).

Int8 and int4 numbers come from torchao's affine quantization: int8 is symmetric with one float32 scale per output row,
int4 has one bfloat16 scale and one zero point per group of input values. fp8 (e4m3) has one float32 scale per output
row. The layer is our own, so that running quantized weights needs no torchao and one file format serves all devices;
how it computes is decided in :mod:`.quantized_product`.

Legend: N tokens; O outputs; I inputs; S groups of an output row.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from irg.model.weights.manifest import TensorEntry
from irg.model.weights.quantized_product import FP8, Quantization, fp8_rows, kind_of, product

GROUPS = (128, 64, 32)  # input values that share an int4 scale: the largest that divides a layer's inputs
PIECE_CPU, PIECE_GPU = 1 << 18, 1 << 24  # numbers of a weight that are quantized at a time
LAYERS = "language_model.model.layers."
PARTS = ("qdata", "scale", "zero")


class QuantizedLinear(nn.Module):
    """A linear layer with an int8, fp8 or int4 weight.

    Buffers: ``qdata`` int8 or float8_e4m3fn [O, I] or, of int4, uint8 [O, I / 2] (the even input in the high half of a
    byte); ``scale`` float32 [O, 1] or, of int4, bfloat16 [O, S]; ``zero`` uint8 [O, S] (int4 only).
    """

    qdata: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, qdata: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("qdata", qdata)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def kind(self) -> Quantization:
        return kind_of(self.qdata.dtype)

    def forward(self, x_NI: Tensor) -> Tensor:
        return product(x_NI, self.qdata, self.scale, self.zero, self.bias)


def quantized_weight(weight_OI: Tensor, kind: Quantization) -> dict[str, Tensor]:
    """``qdata``, ``scale`` and for int4 ``zero`` of a weight (shapes and dtypes: :class:`QuantizedLinear`).

    Raises:
        ValueError: torchao is missing (fp8 needs none), or no group size divides the inputs.
    """
    pieces = [parts for _, parts in _pieces(weight_OI, kind)]
    return {part: torch.cat([piece[part] for piece in pieces]) for part in pieces[0]}


def _pieces(weight_OI: Tensor, kind: Quantization) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """A weight's quantized parts some rows at a time (torchao works in float32, several copies at once)."""
    numbers = PIECE_CPU if weight_OI.device.type == "cpu" else PIECE_GPU
    start = 0
    for rows_OI in weight_OI.split(max(1, numbers // weight_OI.shape[1])):
        yield start, _quantized_rows(rows_OI, kind)
        start += len(rows_OI)


def _quantized_rows(weight_OI: Tensor, kind: Quantization) -> dict[str, Tensor]:
    if kind == "fp8":
        qdata, scale = fp8_rows(weight_OI)
        return {"qdata": qdata, "scale": scale}
    ops = _torchao()
    rows, inputs = weight_OI.shape
    if kind == "int8":
        block = (1, inputs)
        scale, zero = ops.choose_qparams_affine(
            weight_OI, ops.MappingType.SYMMETRIC, block, torch.int8, scale_dtype=torch.float32, eps=1e-12
        )
        qdata = ops.quantize_affine(weight_OI, block, scale, zero, torch.int8)
        return {"qdata": qdata, "scale": scale.view(rows, 1)}
    group = group_of(inputs)
    if group is None:
        raise ValueError(f"int4 needs a multiple of {GROUPS[-1]} inputs, this layer has {inputs}")
    block = (1, group)
    scale, zero = ops.choose_qparams_affine(
        weight_OI,
        ops.MappingType.ASYMMETRIC,
        block,
        torch.uint8,
        quant_min=0,
        quant_max=15,
        eps=1e-12,
        scale_dtype=torch.bfloat16,
        zero_point_dtype=torch.uint8,
    )
    levels = ops.quantize_affine(weight_OI, block, scale, zero, torch.uint8, quant_min=0, quant_max=15)
    packed = (levels[:, ::2] << 4) | levels[:, 1::2]
    return {"qdata": packed, "scale": scale.view(rows, -1), "zero": zero.view(rows, -1)}


def group_of(inputs: int) -> int | None:
    """Input values that share an int4 scale, or None if none of :data:`GROUPS` divides them."""
    return next((group for group in GROUPS if inputs % group == 0), None)


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Whether a module of the unified model is a linear layer of the decoder's layers."""
    return name.startswith(LAYERS) and isinstance(module, nn.Linear)


def part_shapes(inputs: int, outputs: int, kind: Quantization) -> dict[str, tuple[tuple[int, ...], torch.dtype]] | None:
    """Shape and dtype of a quantized weight's parts; None where ``kind`` can't hold it (too few inputs for int4)."""
    if kind != "int4":
        numbers = torch.int8 if kind == "int8" else FP8
        return {"qdata": ((outputs, inputs), numbers), "scale": ((outputs, 1), torch.float32)}
    group = group_of(inputs)
    if group is None:
        return None
    sides = (outputs, inputs // group)
    return {
        "qdata": ((outputs, inputs // 2), torch.uint8),
        "scale": (sides, torch.bfloat16),
        "zero": (sides, torch.uint8),
    }


def allocate_quantized(model: nn.Module, kind: Quantization, where: Callable[[str], torch.device]) -> None:
    """Replace the decoder's linear layers by quantized ones whose memory is allocated but not filled.

    All is allocated before the first weight is read: temporary tensors then can't fragment the memory between them.
    A layer that ``kind`` can't hold stays.

    Args:
        where: device of a module, by its name.
    """
    for name, module in list(model.named_modules()):
        if is_quantizable(name, module):
            assert isinstance(module, nn.Linear)
            _replace(model, name, module, kind, where(name))


def fill_quantized(layer: QuantizedLinear, weight_OI: Tensor) -> None:
    """Quantize a weight into an allocated layer.

    Raises:
        ValueError: torchao is missing.
    """
    for start, parts in _pieces(weight_OI, layer.kind):
        for part, tensor in parts.items():
            getattr(layer, part)[start : start + len(tensor)].copy_(tensor)


def quantize(model: nn.Module, kind: Quantization) -> None:
    """Quantize a unified model's decoder in place, layer by layer.

    Raises:
        ValueError: torchao is missing.
    """
    for name, module in list(model.named_modules()):
        if is_quantizable(name, module):
            assert isinstance(module, nn.Linear)
            layer = _replace(model, name, module, kind, module.weight.device)
            if layer is not None:
                fill_quantized(layer, module.weight.detach())


def _replace(
    model: nn.Module, name: str, linear: nn.Linear, kind: Quantization, device: torch.device
) -> QuantizedLinear | None:
    """Put an empty quantized layer in a linear one's place, if ``kind`` can hold it."""
    shapes = part_shapes(linear.in_features, linear.out_features, kind)
    if shapes is None:
        return None
    parts = {part: torch.empty(shape, dtype=dtype, device=device) for part, (shape, dtype) in shapes.items()}
    parent, _, child = name.rpartition(".")
    layer = QuantizedLinear(parts["qdata"], parts["scale"], parts.get("zero"), linear.bias)
    setattr(model.get_submodule(parent), child, layer)
    return layer


# -------------------------------------------------------------------------------------------------- quantized folders


def stored_quantization(entries: Mapping[str, TensorEntry]) -> Quantization | None:
    """What a folder's weights are quantized to, by their keys; None if they are not."""
    qdata = next((entry for key, entry in entries.items() if key.endswith(".qdata")), None)
    return None if qdata is None else kind_of(qdata.dtype)


def prepare_for(model: nn.Module, entries: Mapping[str, TensorEntry]) -> dict[str, torch.dtype]:
    """Give a network on the meta device the quantized layers that a checkpoint holds.

    Returns:
        The keys that must be stored in a dtype of their own, and which.
    """
    kind, exact = stored_quantization(entries), dict[str, torch.dtype]()
    for name, module in list(model.named_modules()):
        if kind is not None and is_quantizable(name, module) and f"{name}.qdata" in entries:
            assert isinstance(module, nn.Linear)
            if _replace(model, name, module, kind, torch.device("meta")) is not None:
                shapes = part_shapes(module.in_features, module.out_features, kind) or {}
                exact |= {f"{name}.{part}": dtype for part, (_, dtype) in shapes.items()}
    return exact


def available(kind: Quantization) -> bool:
    """Whether what quantizing needs is there: torchao, but for fp8 (it is not imported)."""
    return kind == "fp8" or importlib.util.find_spec("torchao") is not None


def require_library(kind: Quantization) -> None:
    """Import what quantizing needs, so that a missing torchao is noticed before anything is read.

    Raises:
        ValueError: it is not installed.
    """
    if kind != "fp8":
        _torchao()


def _torchao() -> Any:
    """torchao's affine primitives. Its import logs every optional kernel that it can't load; users need not see that.

    Raises:
        ValueError: it is not installed.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import quant_primitives
    except ImportError as error:
        raise ValueError(f"int8 and int4 need torchao: pip install 'irg[quant]' ({error})") from error
    finally:
        logging.disable(previous)
    return quant_primitives
