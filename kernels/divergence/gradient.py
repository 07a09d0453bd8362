"""d(logits) of a student's tile, into memory of its own or over the logits themselves.

Replaces, with the terms of `terms.py` and x and u of both sides in bits,

    d = exp2(x) * (constant + linear * x + gap * w) + other * exp2(u)
    gradient = d * tanh'(slope * (logits + bias))          # with a softcap

A row without a gradient (masked, or all its upstream gradients zero) is not read and gets zeros.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import (
    COLUMNS,
    capped,
    capped_slope,
    from_maxima,
    maxima_of,
    pair_slope,
    raw_columns,
)
from logitless.kernels.divergence.noise import (
    GROUP,
    Noise,
    arguments,
    columns_inside,
    noise_of_columns,
    programs,
)
from logitless.kernels.divergence.terms import KINDS, TERMS
from logitless.kernels.jit import row_offset
from logitless.kernels.launch import OPTIONS, Strides, device_of

NUM_WARPS = 4


@triton.jit(
    do_not_specialize=[
        "gradient_rows_per_batch",
        "rows_per_batch",
        "other_rows_per_batch",
        "blocks",
        "seed",
        "counters",
    ]
)
def gradient_kernel(
    gradient_ptr,  # rows of `width` columns, out; may be logits_ptr
    logits_ptr,  # rows of `width` columns, and so the next
    other_ptr,
    terms_ptr,  # [n, TERMS] float32
    bias_ptr,  # [width] float32 or None
    other_bias_ptr,
    gradient_stride_batch,
    gradient_stride_row,
    gradient_rows_per_batch,
    stride_batch,
    stride_row,
    rows_per_batch,
    other_stride_batch,
    other_stride_row,
    other_rows_per_batch,
    width,
    blocks,
    slope,
    softcap,
    other_slope,
    other_softcap,
    sizes_ptr,  # [n] float32 of noise, or None
    row_ids_ptr,  # [n] int64 of noise
    seed: tl.uint64,
    counters: tl.uint64,
    token,  # of the tile's first column; None: no noise
    GRADIENT_BATCHED: tl.constexpr,
    BATCHED: tl.constexpr,
    OTHER_BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    OTHER_HAS_SOFTCAP: tl.constexpr,
    KIND: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    row32 = program // blocks
    # What depends on the program stays in one int64 scalar; a lane's column fits into int32.
    first = (program % blocks).to(tl.int64) * COLUMNS
    o = tl.arange(0, COLUMNS)
    if token is not None:
        first -= token % GROUP
    inside = columns_inside(first, o, width, token)
    out_ptr = gradient_ptr + first
    out_ptr += row_offset(
        row32, gradient_stride_batch, gradient_stride_row, gradient_rows_per_batch,
        GRADIENT_BATCHED,
    )  # fmt: skip
    row = row32.to(tl.int64)
    t_ptr = terms_ptr + row * TERMS
    if tl.load(t_ptr) == 0:
        zeros = tl.full((COLUMNS,), 0.0, gradient_ptr.dtype.element_ty)
        tl.store(out_ptr + o, zeros, mask=inside)
    else:
        raw = raw_columns(
            logits_ptr, bias_ptr, row32, first, o, inside, stride_batch, stride_row,
            rows_per_batch, BATCHED,
        )  # fmt: skip
        z = raw_columns(
            other_ptr, other_bias_ptr, row32, first, o, inside, other_stride_batch,
            other_stride_row, other_rows_per_batch, OTHER_BATCHED,
        )  # fmt: skip
        y = capped(raw, inside, slope, softcap, HAS_SOFTCAP)
        z = capped(z, inside, other_slope, other_softcap, OTHER_HAS_SOFTCAP)
        if token is not None:
            z += noise_of_columns(
                sizes_ptr, row_ids_ptr, row, seed, counters, token + first.to(tl.int32), COLUMNS
            )
        x, u = from_maxima(maxima_of(t_ptr), y, z)
        d = pair_slope(t_ptr, x, u, KIND)
        if HAS_SOFTCAP:
            d *= capped_slope(raw, slope)
        tl.store(out_ptr + o, d.to(gradient_ptr.dtype.element_ty), mask=inside)


def gradient(
    logits: Tensor,  # [n, width] or [b, t, width]
    other: Tensor,
    out: Tensor,  # like logits; may be logits
    strides: Strides,
    other_strides: Strides,
    out_strides: Strides,
    per_row: Tensor,  # [n, TERMS]
    student: RowArrays,
    teacher: RowArrays,
    *,
    kind: str,
    start: int,
    noise: Noise | None,
) -> None:
    """Write the gradient of a tile whose first column is `start`."""
    width = logits.shape[-1]
    blocks = programs(width, noise, start)
    with device_of(logits):
        gradient_kernel[(student.n * blocks,)](
            out,
            logits,
            other,
            per_row,
            student.bias_of(width, start),
            teacher.bias_of(width, start),
            out_strides.batch,
            out_strides.row,
            out_strides.rows_per_batch,
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            other_strides.batch,
            other_strides.row,
            other_strides.rows_per_batch,
            width,
            blocks,
            student.chain.slope,
            student.chain.softcap,
            teacher.chain.slope,
            teacher.chain.softcap,
            *arguments(noise, start),
            GRADIENT_BATCHED=out_strides.batched,
            BATCHED=strides.batched,
            OTHER_BATCHED=other_strides.batched,
            HAS_SOFTCAP=student.chain.softcap != 0,
            OTHER_HAS_SOFTCAP=teacher.chain.softcap != 0,
            KIND=KINDS[kind],
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
