"""What each side diverges from the mix of both, over every piece of every row.

d = (x - u) + odds                     # log2 of (1 - beta) p over beta q
share = min(d, 0) - log2(1 + exp2(-|d|))
(exp2(x) * (share + offset)).sum(-1), (exp2(u) * (share - d + other_offset)).sum(-1)
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import (
    COLUMNS,
    NUM_WARPS,
    apart_from_mix,
    capped,
    from_maxima,
    maxima_of,
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
from logitless.kernels.divergence.terms import TERMS
from logitless.kernels.jit import LOG2E, is_active
from logitless.kernels.launch import OPTIONS, Strides, device_of


@triton.jit(
    do_not_specialize=["rows_per_batch", "other_rows_per_batch", "pieces", "seed", "counters"]
)
def mix_kernel(
    records_ptr,  # [n, pieces, 2] float32, out
    logits_ptr,  # rows of `width` columns, and so the next
    other_ptr,
    terms_ptr,  # [n, TERMS] float32
    mask_ptr,  # [n] bool or None
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
    offset,
    other_offset,
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
        t_ptr = terms_ptr + row * TERMS
        x, u = from_maxima(maxima_of(t_ptr), y, z)
        own, others = apart_from_mix(t_ptr, x, u, offset, other_offset)
        record_ptr = records_ptr + program.to(tl.int64) * 2
        tl.store(record_ptr, tl.sum(own, 0))
        tl.store(record_ptr + 1, tl.sum(others, 0))


def mix(
    logits: Tensor,  # [n, width] or [b, t, width]
    other: Tensor,
    strides: Strides,
    other_strides: Strides,
    per_row: Tensor,  # [n, TERMS]
    student: RowArrays,
    teacher: RowArrays,
    *,
    beta: float,
    start: int,
    noise: Noise | None,
) -> Tensor:
    """[n, pieces, 2]. Those of masked rows are left as they come."""
    n, width = student.n, logits.shape[-1]
    count = programs(width, noise, start)
    records = torch.empty(n, count, 2, dtype=torch.float32, device=logits.device)
    if count == 0:
        return records
    with device_of(logits):
        mix_kernel[(n * count,)](
            records,
            logits,
            other,
            per_row,
            student.mask,
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
            -math.log1p(-beta) * LOG2E.value,
            -math.log(beta) * LOG2E.value,
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
