"""A matrix product of few tokens that reads an int8, fp8 or int4 weight once, as it is stored (Triton, CUDA).

With few tokens a product takes as long as its weight's way from memory, so the weight is dequantized on the chip,
behind the load. Integers and fp8 numbers are exact in bfloat16 and products are added in float32: only the result is
rounded. Where there are few blocks of outputs, several programs share the inputs of each, and their sums are added
afterwards.

Legend: N tokens; O outputs; I inputs; J bytes of a row, two inputs each (int4); S programs that share a block's inputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_O = 32
PROGRAMS = 512  # to keep every multiprocessor of a large GPU loading


def stored_matmul(x_NI: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None) -> Tensor:
    """x W^T + bias, in the dtype of ``x_NI`` [N, O]; the weight's parts are those of ``QuantizedLinear``."""
    if torch.compiler.is_compiling():
        return _product(x_NI, qdata, scale, zero, bias)
    with torch.cuda.device_of(x_NI):  # Triton launches on the current device
        return _product(x_NI, qdata, scale, zero, bias)


def _product(x_NI: Tensor, qdata: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None) -> Tensor:
    (tokens, inputs), outputs = x_NI.shape, qdata.shape[0]
    group = 0 if zero is None else inputs // scale.shape[1]
    # int4: the even inputs, which are in the high halves of the bytes, then the odd ones
    x_NI = x_NI.contiguous() if zero is None else x_NI.unflatten(1, (-1, 2)).mT.contiguous()
    block_n = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    block_i = group or (256 if block_n == 16 else 128)
    steps, blocks = -(-inputs // block_i), -(-outputs // BLOCK_O) * -(-tokens // block_n)
    splits = max(1, min(steps, PROGRAMS // blocks))
    y_SNO = x_NI.new_empty(splits, tokens, outputs, dtype=x_NI.dtype if splits == 1 else torch.float32)
    _stored_matmul[(-(-tokens // block_n), -(-outputs // BLOCK_O), splits)](
        x_NI,
        qdata,
        scale,
        qdata if zero is None else zero,
        scale if bias is None else bias,
        y_SNO,
        tokens,
        outputs,
        inputs,
        qdata.shape[1],
        splits,
        GROUP=group,
        HAS_BIAS=bias is not None,
        BLOCK_N=block_n,
        BLOCK_O=BLOCK_O,
        BLOCK_I=block_i,
        num_warps=4,
        num_stages=4 if block_n == 16 else 3,
    )
    return y_SNO[0] if splits == 1 else y_SNO.sum(0).to(x_NI.dtype)


@triton.jit(do_not_specialize=["tokens", "splits"])  # or each number would be compiled anew
def _stored_matmul(  # type: ignore[no-untyped-def]  # torch.compile copies the text of a kernel
    x,
    qdata,
    scale,
    zero,
    bias,
    y,
    tokens,
    outputs,
    inputs,
    row_bytes,
    splits,
    GROUP: tl.constexpr,  # inputs that share a scale and zero point; 0: one scale for a row of bytes
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    n_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_O = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(2)
    in_N, in_O = n_N < tokens, o_O < outputs
    sum_NO = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for step in range(split, tl.cdiv(inputs, BLOCK_I), splits):
        if GROUP == 0:
            i_I = step * BLOCK_I + tl.arange(0, BLOCK_I)
            in_I = i_I < inputs
            x_NI = tl.load(x + n_N[:, None] * inputs + i_I[None, :], mask=in_N[:, None] & in_I[None, :], other=0.0)
            q_OI = qdata + o_O[:, None] * row_bytes + i_I[None, :]
            w_OI = tl.load(q_OI, mask=in_O[:, None] & in_I[None, :], other=0.0).to(tl.float32).to(x_NI.dtype)
            sum_NO = tl.dot(x_NI, w_OI.T, sum_NO)
        else:
            j_J = step * (GROUP // 2) + tl.arange(0, GROUP // 2)
            x_NJ = x + n_N[:, None] * inputs + j_J[None, :]
            even_NJ = tl.load(x_NJ, mask=in_N[:, None], other=0.0)
            odd_NJ = tl.load(x_NJ + row_bytes, mask=in_N[:, None], other=0.0)
            q_OJ = tl.load(qdata + o_O[:, None] * row_bytes + j_J[None, :], mask=in_O[:, None], other=0).to(tl.int32)
            at_O = o_O * (inputs // GROUP) + step
            zero_O = tl.load(zero + at_O, mask=in_O, other=0).to(tl.int32)
            scale_O = tl.load(scale + at_O, mask=in_O, other=0.0).to(tl.float32)
            group_NO = tl.dot(even_NJ, ((q_OJ >> 4) - zero_O[:, None]).to(even_NJ.dtype).T)
            group_NO = tl.dot(odd_NJ, ((q_OJ & 15) - zero_O[:, None]).to(odd_NJ.dtype).T, group_NO)
            sum_NO += group_NO * scale_O[None, :]
    if GROUP == 0:
        sum_NO *= tl.load(scale + o_O, mask=in_O, other=0.0)[None, :]
    if HAS_BIAS:
        sum_NO += tl.load(bias + o_O, mask=in_O & (split == 0), other=0.0).to(tl.float32)[None, :]
    y_NO = y + (split * tokens + n_N[:, None]) * outputs + o_O[None, :]
    tl.store(y_NO, sum_NO.to(y.dtype.element_ty), mask=in_N[:, None] & in_O[None, :])
