"""The sums of every piece of every row under both softmaxes.

Replaces, for y and z of the two sides cut into pieces of COLUMNS columns,

    x, u = ((v - v.max(-1)) * scale * log2(e) for v in (y, z))     # in base 2 until folded
    s0, s1, gap = exp2(x).sum(-1), (x * exp2(x)).sum(-1), ((x - u) * exp2(x)).sum(-1)

and the same of u, without any [N, V] intermediate: both are read once, 32 bytes a piece written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import (
    COLUMNS,
    NUM_WARPS,
    capped,
    mass_of,
    raw_columns,
    scale_in_bits,
)
from logitless.kernels.divergence.noise import (
    GROUP,
    Noise,
    arguments,
    columns_inside,
    noise_of_columns,
    programs,
)
from logitless.kernels.jit import INF, LOG2E, is_active
from logitless.kernels.launch import OPTIONS, Strides, device_of

# Floats of a record: m, s0, s1, gap of the student, and of the teacher.
RECORD = tl.constexpr(8)


@triton.jit
def _from_maximum(y, scale):
    m = tl.max(y, 0)
    # Of a piece without any mass from 0: -inf - -inf would be NaN.
    return m, (y - tl.where(m == -INF, 0.0, m)) * scale


@triton.jit
def _store_sums(record_ptr, m, x, apart):
    s0, s1, gap = mass_of(x, apart)
    tl.store(record_ptr, m)
    tl.store(record_ptr + 1, tl.sum(s0, 0))
    tl.store(record_ptr + 2, tl.sum(s1, 0))
    tl.store(record_ptr + 3, tl.sum(gap, 0))


@triton.jit(
    do_not_specialize=["rows_per_batch", "other_rows_per_batch", "pieces", "seed", "counters"]
)
def moments_kernel(
    records_ptr,  # [n, pieces, RECORD] float32, out
    logits_ptr,  # rows of `width` columns, and so the next
    other_ptr,
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    other_row_scale_ptr,
    bias_ptr,  # [width] float32 or None
    other_bias_ptr,
    stride_batch,
    stride_row,
    rows_per_batch,
    other_stride_batch,
    other_stride_row,
    other_rows_per_batch,
    width,
    pieces,
    scale,
    other_scale,
    slope,
    softcap,
    other_slope,
    other_softcap,
    sizes_ptr,  # [n] float32 of noise, or None
    row_ids_ptr,  # [n] int64 of noise
    seed: tl.uint64,
    counters: tl.uint64,
    token,  # of the tile's first column; None: no noise
    BATCHED: tl.constexpr,
    OTHER_BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    OTHER_HAS_SOFTCAP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    row32 = program // pieces
    row = row32.to(tl.int64)
    if is_active(mask_ptr, row):
        # What depends on the program stays in one int64 scalar; a lane's column fits into int32.
        first = (program % pieces).to(tl.int64) * COLUMNS
        o = tl.arange(0, COLUMNS)
        if token is not None:
            first -= token % GROUP
        inside = columns_inside(first, o, width, token)
        y = raw_columns(
            logits_ptr, bias_ptr, row32, first, o, inside, stride_batch, stride_row,
            rows_per_batch, BATCHED,
        )  # fmt: skip
        z = raw_columns(
            other_ptr, other_bias_ptr, row32, first, o, inside, other_stride_batch,
            other_stride_row, other_rows_per_batch, OTHER_BATCHED,
        )  # fmt: skip
        y = capped(y, inside, slope, softcap, HAS_SOFTCAP)
        z = capped(z, inside, other_slope, other_softcap, OTHER_HAS_SOFTCAP)
        if token is not None:
            z += noise_of_columns(
                sizes_ptr, row_ids_ptr, row, seed, counters, token + first.to(tl.int32), COLUMNS
            )
        m, x = _from_maximum(y, scale_in_bits(row_scale_ptr, row, scale))
        other_m, u = _from_maximum(z, scale_in_bits(other_row_scale_ptr, row, other_scale))
        record_ptr = records_ptr + program.to(tl.int64) * RECORD
        _store_sums(record_ptr, m, x, x - u)
        _store_sums(record_ptr + 4, other_m, u, u - x)


def moments(
    logits: Tensor,  # [n, width] or [b, t, width]
    other: Tensor,
    strides: Strides,
    other_strides: Strides,
    student: RowArrays,
    teacher: RowArrays,
    *,
    start: int,
    noise: Noise | None,
) -> Tensor:
    """The records [n, pieces, RECORD]. Those of masked rows are left as they come."""
    n, width = student.n, logits.shape[-1]
    count = programs(width, noise, start)
    records = torch.empty(n, count, RECORD.value, dtype=torch.float32, device=logits.device)
    if count == 0:
        return records
    with device_of(logits):
        moments_kernel[(n * count,)](
            records,
            logits,
            other,
            student.mask,
            student.row_scale,
            teacher.row_scale,
            student.bias_of(width, start),
            teacher.bias_of(width, start),
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            other_strides.batch,
            other_strides.row,
            other_strides.rows_per_batch,
            width,
            count,
            student.scale * LOG2E.value,
            teacher.scale * LOG2E.value,
            student.chain.slope,
            student.chain.softcap,
            teacher.chain.slope,
            teacher.chain.softcap,
            *arguments(noise, start),
            BATCHED=strides.batched,
            OTHER_BATCHED=other_strides.batched,
            HAS_SOFTCAP=student.chain.softcap != 0,
            OTHER_HAS_SOFTCAP=teacher.chain.softcap != 0,
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return records
