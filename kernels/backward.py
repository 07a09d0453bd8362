"""d(logits) of a tile, into memory of its own or over the logits themselves.

Replaces, with the coefficients of `coefficients.py`,

    t = (y - m) * scale * log2(e)                          # y = softcap(pre * (logits + bias))
    d = exp2(t) * (constant + linear * t) + own * (column == target)
    gradient = d * tanh'(slope * (logits + bias))          # with a softcap

A row without a gradient (masked, or all its upstream gradients zero) is not read and gets zeros.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.coefficients import COEFFICIENTS, slope_of
from logitless.kernels.jit import INF, row_offset, tanh, tanh_slope
from logitless.kernels.launch import OPTIONS, Chain, Strides, device_of, same_batches

# 8 KiB over four warps: 53 registers and 15 instructions a bfloat16 element on sm_90, where reading
# and writing it leave an H200 twice the 14 of the forward pass; 9 programs share a multiprocessor.
BLOCK_BYTES = 8192
NUM_WARPS = 4


@triton.jit(do_not_specialize=["rows_per_batch", "blocks", "start"])
def backward_kernel(
    gradient_ptr,  # rows of `width` columns, out; may be logits_ptr
    logits_ptr,  # rows of `width` columns
    coefficients_ptr,  # [n, COEFFICIENTS] float32
    targets_ptr,  # [n] int64
    bias_ptr,  # [width] float32 or None
    gradient_stride_batch,
    gradient_stride_row,
    stride_batch,
    stride_row,
    rows_per_batch,
    width,
    blocks,
    start,
    slope,
    softcap,
    BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row32 = program // blocks
    # What depends on the program stays in one int64 scalar; a lane's column fits into int32.
    first = (program % blocks).to(tl.int64) * BLOCK
    o = tl.arange(0, BLOCK)
    inside = o < width - first.to(tl.int32)
    out_ptr = gradient_ptr + first
    out_ptr += row_offset(
        row32, gradient_stride_batch, gradient_stride_row, rows_per_batch, BATCHED
    )
    row = row32.to(tl.int64)
    c_ptr = coefficients_ptr + row * COEFFICIENTS
    if tl.load(c_ptr) == 0:
        zeros = tl.full((BLOCK,), 0.0, gradient_ptr.dtype.element_ty)
        tl.store(out_ptr + o, zeros, mask=inside)
    else:
        tile_ptr = logits_ptr + first
        tile_ptr += row_offset(row32, stride_batch, stride_row, rows_per_batch, BATCHED)
        y = tl.load(tile_ptr + o, mask=inside, other=-INF).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + first + o, mask=inside, other=0.0)
        if HAS_SOFTCAP:
            u = y * slope
            capped = tanh(u)
            steepness = tanh_slope(u, capped)
            y = softcap * capped
        d = slope_of(c_ptr, y)
        # Lane of the target; int32 once it is known to lie in this block.
        lane = tl.load(targets_ptr + row) - start - first
        lane = tl.where((lane >= 0) & (lane < BLOCK), lane, -1).to(tl.int32)
        d += tl.where(o == lane, tl.load(c_ptr + 5), 0.0)
        if HAS_SOFTCAP:
            d *= steepness
        tl.store(out_ptr + o, d.to(gradient_ptr.dtype.element_ty), mask=inside)


def backward(
    logits: Tensor,  # [n, width] or [b, t, width]
    strides: Strides,
    gradient: Tensor,  # the same shape and dtype; may be logits
    gradient_strides: Strides,
    coefficients: Tensor,  # [n, COEFFICIENTS]
    targets: Tensor,
    bias: Tensor | None,  # [width]
    chain: Chain,
    *,
    start: int,
) -> None:
    """Write the gradient of a tile whose first column is `start`."""
    width = logits.shape[-1]
    strides, gradient_strides = same_batches(strides, gradient_strides)
    block = BLOCK_BYTES // logits.element_size()
    blocks = triton.cdiv(width, block)
    with device_of(logits):
        backward_kernel[(len(targets) * blocks,)](
            gradient,
            logits,
            coefficients,
            targets,
            bias,
            gradient_strides.batch,
            gradient_strides.row,
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            width,
            blocks,
            start,
            chain.slope,
            chain.softcap,
            BATCHED=strides.batched,
            HAS_SOFTCAP=chain.softcap != 0,
            BLOCK=block,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
