"""Which way a product with a quantized weight goes, and that all of them give the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irg.model.weights import quantized_product
from irg.model.weights.quantize import QuantizedLinear
from irg.model.weights.quantized_product import FP8, Quantization, choose_method, dequantized, fp8_product, fp8_rows

KINDS: tuple[Quantization, ...] = ("int8", "fp8", "int4")
GROUP = 32


def random_layer(kind: Quantization, inputs: int, outputs: int, bias: bool = True) -> QuantizedLinear:
    """Of any numbers; int4 with groups of 32."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(outputs, generator=generator) if bias else None
    if kind == "int4":
        packed, zero = (
            torch.randint(0, high, (outputs, inputs // per), generator=generator, dtype=torch.uint8)
            for high, per in ((256, 2), (16, GROUP))
        )
        scale = torch.rand(outputs, inputs // GROUP, generator=generator).bfloat16()
        return QuantizedLinear(packed, scale, zero, given)
    weight = 100 * torch.randn(outputs, inputs, generator=generator)
    qdata = weight.clamp(-128, 127).to(torch.int8) if kind == "int8" else weight.clamp(-448, 448).to(FP8)
    return QuantizedLinear(qdata, torch.rand(outputs, 1, generator=generator), None, given)


def tokens(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1))


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def reference(layer: QuantizedLinear, x_NI: Tensor) -> Tensor:
    """The product in float32 with the numbers that a layer holds."""
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x_NI.float(), dequantized(layer.qdata, layer.scale, layer.zero, torch.float32), bias)


def test_methods() -> None:
    """Few tokens read the stored weight, many dequantize it or use fp8 arithmetic; what can't be compiled is plain."""

    def methods(tokens: int, capability: int = 90, **other: object) -> list[str]:
        given = {"inputs": 3584, "outputs": 512, "dtype": torch.bfloat16, "differentiable": False} | other
        return [choose_method(kind, tokens, capability=capability, **given) for kind in KINDS]  # type: ignore[arg-type]

    assert methods(1) == methods(128) == ["stored", "stored", "stored"]
    assert methods(129) == ["dequantized", "fp8", "dequantized"]
    assert methods(9, capability=86) == ["stored", "dequantized", "stored"]  # no fp8 arithmetic before Ada
    assert methods(9, differentiable=True) == methods(129, capability=80) == ["dequantized"] * 3
    assert methods(129, outputs=40) == ["dequantized"] * 3
    assert methods(1, capability=75) == methods(1, capability=0) == methods(129, dtype=torch.float32) == ["plain"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_plain_is_the_dequantized_product(kind: Quantization) -> None:
    layer, x_NI = random_layer(kind, 64, 24), tokens(5, 64)
    torch.testing.assert_close(layer(x_NI), reference(layer, x_NI), rtol=1e-5, atol=1e-2)
    assert layer(x_NI.bfloat16()).dtype == torch.bfloat16
    x_NI.requires_grad_()
    layer(x_NI).sum().backward()
    assert x_NI.grad is not None and x_NI.grad.abs().min() > 0


def test_fp8_rows_of_known_numbers() -> None:
    """A row's largest number becomes 448; e4m3 has three bits behind the leading one; zeros stay zeros."""
    rounded, scale = fp8_rows(torch.tensor([[448.0, -1.0, 17.0, 19.0], [0.0, 0.875, -0.001, 0.21], [0.0] * 4]))
    assert scale[:, 0].tolist() == [1.0, pytest.approx(0.875 / 448), pytest.approx(1e-12)]
    assert rounded.dtype == torch.float8_e4m3fn
    assert rounded.float().tolist() == [[448, -1, 16, 20], [0, 448, -0.5, 104], [0] * 4]


@pytest.mark.parametrize("bias", [False, True])
def test_fp8_arithmetic(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    """The product of what both sides were rounded to: PyTorch computes it on a CPU, too."""
    monkeypatch.setattr(quantized_product, "_fused", lambda function, *args: function(*args))
    layer, x_NI = random_layer("fp8", 64, 32, bias), tokens(70, 64).bfloat16()
    given = None if layer.bias is None else layer.bias.bfloat16()
    got = fp8_product(x_NI, layer.qdata, layer.scale, given)
    rounded, scale = fp8_rows(x_NI)
    assert got.dtype == torch.bfloat16 and apart(got, reference(layer, rounded.float() * scale)) < 4e-3
    assert 0.01 < apart(got, reference(layer, x_NI)) < 0.04  # what rounding the activations costs


def at_capability(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    """Pretend a GPU."""

    def pretended(device: torch.device) -> int:
        return capability

    monkeypatch.setattr(quantized_product, "_capability", torch.compiler.assume_constant_result(pretended))


@pytest.mark.parametrize(("kind", "capability"), [("int8", 0), ("int8", 90), ("int4", 90), ("fp8", 90)])
def test_one_graph(monkeypatch: pytest.MonkeyPatch, kind: Quantization, capability: int) -> None:
    """torch.compile takes a layer as a whole, whatever is decided."""
    if capability:
        at_capability(monkeypatch, capability)
    layer = random_layer(kind, 64, 32)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for count in (140, 160):
        x_NI = tokens(count, 64).bfloat16()
        assert apart(compiled(x_NI), reference(layer, x_NI)) < (0.04 if kind == "fp8" else 0.01)


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 9, 100, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_products_on_a_gpu(kind: Quantization, count: int) -> None:
    """Every kind and number of tokens, with sizes that fill whole blocks and such that do not, compiled or not."""
    bound = 0.04 if kind == "fp8" and count > quantized_product.FEW_TOKENS else 0.006
    for inputs, outputs, bias in ((1024, 512, True), (96, 48, False), (4096, 16, True)):
        layer = random_layer(kind, inputs, outputs, bias).cuda()
        x_NI = tokens(count, inputs).bfloat16().cuda()
        with torch.no_grad():
            wanted = reference(layer, x_NI)
            assert apart(layer(x_NI), wanted) < bound
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):  # the third is a graph's replay
            assert apart(compiled(x_NI), wanted) < bound


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_on_a_gpu(kind: Quantization) -> None:
    layer = random_layer(kind, 64, 32).cuda()
    x_NI = tokens(9, 64).bfloat16().cuda().requires_grad_()
    layer(x_NI).sum().backward()
    weight = dequantized(layer.qdata, layer.scale, layer.zero, torch.float32)
    assert x_NI.grad is not None and apart(x_NI.grad, weight.sum(0).expand(9, -1)) < 0.02
    assert isinstance(layer, nn.Module) and not any(p.requires_grad for p in layer.parameters())
