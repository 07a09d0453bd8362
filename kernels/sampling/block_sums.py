"""The largest y of each block of 2,048 columns, and the sum of e^((y - m) scale) over it.

Replaces, for y = softcap(pre * (logits + bias)) cut into blocks,

    m = y.max(-1)
    s0 = ((y - m) * scale).exp().sum(-1)

in float32: a sum is that of csrc/cuda/sampling/blocks.cuh up to roundings.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF, LOG2E, LOWEST, row_offset, row_scale_of, softcapped
from logitless.kernels.launch import OPTIONS, Chain, Strides, device_of

BLOCK = tl.constexpr(2048)
NUM_WARPS = 2


@triton.jit
def block_of(logits_ptr, bias_ptr, first, width, slope, softcap, HAS_SOFTCAP: tl.constexpr):
    # y of the block of a row that begins at column `first`, int64; -inf beyond the row.
    o = tl.arange(0, BLOCK)
    inside = o < width - first.to(tl.int32)
    logits_ptr += first
    y = tl.load(logits_ptr + o, mask=inside, other=-INF).to(tl.float32)
    if bias_ptr is not None:
        bias_ptr += first
        y += tl.load(bias_ptr + o, mask=inside, other=0.0)
    if HAS_SOFTCAP:
        y = tl.where(inside, softcapped(y, slope, softcap), -INF)
    return y


@triton.jit
def weights_of(y, m, scale):
    # e^((y - m) scale); where nothing is finite everything is shifted by 0: -inf weighs nothing.
    t = (y - tl.where(m == -INF, 0.0, m)) * (scale * LOG2E).to(tl.float32)
    return tl.exp2(tl.maximum(t, LOWEST, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(do_not_specialize=["rows_per_batch", "width", "blocks"])
def block_sums_kernel(
    sums_ptr,  # [n, blocks, 2] float64, out: m and s0
    logits_ptr,  # rows of `width` columns
    row_scale_ptr,  # [n] float64 or None
    bias_ptr,  # [width] float32 or None
    stride_batch,
    stride_row,
    rows_per_batch,
    width,
    blocks,
    scale: tl.float64,
    slope,
    softcap,
    BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    program = tl.program_id(0)
    row32 = program // blocks
    first = (program % blocks).to(tl.int64) * BLOCK
    tile_ptr = logits_ptr + row_offset(row32, stride_batch, stride_row, rows_per_batch, BATCHED)
    y = block_of(tile_ptr, bias_ptr, first, width, slope, softcap, HAS_SOFTCAP)
    m = tl.max(y, 0)
    scale = row_scale_of(row_scale_ptr, row32.to(tl.int64), scale)
    s0 = tl.sum(weights_of(y, m, scale), 0)
    sums_ptr += program.to(tl.int64) * 2
    tl.store(sums_ptr, m.to(tl.float64))
    tl.store(sums_ptr + 1, s0.to(tl.float64))


def block_sums(
    logits: Tensor,  # [n, width] or [b, t, width]
    strides: Strides,
    n: int,
    row_scale: Tensor | None,
    bias: Tensor | None,  # [width]
    scale: float,
    chain: Chain,
) -> Tensor:  # [n, blocks, 2]
    width = logits.shape[-1]
    blocks = triton.cdiv(width, BLOCK.value)
    sums = torch.empty(n, blocks, 2, dtype=torch.float64, device=logits.device)
    with device_of(logits):
        block_sums_kernel[(n * blocks,)](
            sums,
            logits,
            row_scale,
            bias,
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            width,
            blocks,
            scale,
            chain.slope,
            chain.softcap,
            BATCHED=strides.batched,
            HAS_SOFTCAP=chain.softcap != 0,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return sums
