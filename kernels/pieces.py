"""First half of the forward pass: the moments of every piece of every row.

Replaces, for y = softcap(pre * (logits + bias)) cut into pieces of `piece_width` columns,

    m = y.max(-1)
    t = (y - m) * scale * log2(e)
    s0, s1 = exp2(t).sum(-1), (t * exp2(t)).sum(-1)            # in base 2 until they are folded
    s2, q0, q1 = (t**2 * exp2(t)).sum(-1), exp2(2 * t).sum(-1), (t * exp2(2 * t)).sum(-1)

without any [N, V] intermediate: the logits are read once, 32 bytes a piece are written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF, LOG2E, LOWEST, is_active, row_offset, softcapped
from logitless.kernels.launch import OPTIONS, Chain, Strides, device_of

# Floats of a record: m, s0, s1, s2, q0, q1, y of the target, column of the maximum (int32 bits).
RECORD = tl.constexpr(8)
# A piece sits in the registers of one program, so that its maximum and its sums take one read.
# 8 KiB over two warps of 32 lanes are 64 bfloat16 a lane: 12.3 instructions an element on sm_90,
# where an H200's memory leaves 14; four warps take 14.8, since reductions and scalars cost each
# warp the same. 96 registers let 10 programs share a multiprocessor: up to 80 KiB of loads.
PIECE_BYTES = 8192


def num_warps(extras: bool) -> int:
    """Six reductions over 64 elements a lane take all 255 registers; half of it 128."""
    return 4 if extras else 2


def piece_width(dtype: torch.dtype) -> int:
    return PIECE_BYTES // dtype.itemsize


@triton.jit(do_not_specialize=["rows_per_batch", "pieces", "start"])
def pieces_kernel(
    records_ptr,  # [n, pieces, RECORD] float32, out
    logits_ptr,  # rows of `width` columns
    targets_ptr,  # [n] int64
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    bias_ptr,  # [width] float32 or None
    stride_batch,
    stride_row,
    rows_per_batch,
    width,
    pieces,
    start,
    scale,
    slope,
    softcap,
    BATCHED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    EXTRAS: tl.constexpr,
    PIECE: tl.constexpr,
):
    program = tl.program_id(0)
    row32 = program // pieces
    row = row32.to(tl.int64)
    if is_active(mask_ptr, row):
        # What depends on the program stays in one int64 scalar; a lane's column fits into int32.
        first = (program % pieces).to(tl.int64) * PIECE
        tile_ptr = logits_ptr + first
        tile_ptr += row_offset(row32, stride_batch, stride_row, rows_per_batch, BATCHED)
        o = tl.arange(0, PIECE)
        inside = o < width - first.to(tl.int32)
        y = tl.load(tile_ptr + o, mask=inside, other=-INF).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + first + o, mask=inside, other=0.0)
        if HAS_SOFTCAP:
            # A softcap makes -softcap of -inf, so columns past the end are taken out after it.
            y = tl.where(inside, softcapped(y, slope, softcap), -INF)
        if row_scale_ptr is not None:
            scale = (tl.load(row_scale_ptr + row) * LOG2E).to(tl.float32)

        # An empty piece shifts by 0: -inf - -inf would be NaN.
        m = tl.max(y, 0)
        t = (y - tl.where(m == -INF, 0.0, m)) * scale
        t = tl.maximum(t, LOWEST, propagate_nan=tl.PropagateNan.ALL)
        e = tl.exp2(t)
        te = t * e
        record_ptr = records_ptr + program.to(tl.int64) * RECORD
        tl.store(record_ptr, m)
        tl.store(record_ptr + 1, tl.sum(e, 0))
        tl.store(record_ptr + 2, tl.sum(te, 0))
        if EXTRAS:
            tl.store(record_ptr + 3, tl.sum(t * te, 0))
            tl.store(record_ptr + 4, tl.sum(e * e, 0))
            tl.store(record_ptr + 5, tl.sum(te * e, 0))
            # A tie keeps the first column, as torch.argmax does on a CPU.
            at = tl.min(tl.where(y == m, o, PIECE), 0) + first.to(tl.int32)
            tl.store(record_ptr + 7, at.to(tl.float32, bitcast=True))

        # The target's y by the same arithmetic as in the sums, never above the maximum: logp <= 0.
        column = tl.load(targets_ptr + row) - start
        own = (column >= first) & (column < first + PIECE) & (column < width)
        own_y = tl.load(tile_ptr - first + column, mask=own, other=float("nan")).to(tl.float32)
        if bias_ptr is not None:
            own_y += tl.load(bias_ptr + column, mask=own, other=0.0)
        if HAS_SOFTCAP:
            own_y = softcapped(own_y, slope, softcap)
        own_y = tl.minimum(own_y, m, propagate_nan=tl.PropagateNan.ALL)
        tl.store(record_ptr + 6, own_y, mask=own)


def pieces(
    logits: Tensor,  # [n, width] or [b, t, width]
    strides: Strides,
    targets: Tensor,
    mask: Tensor | None,
    row_scale: Tensor | None,
    bias: Tensor | None,  # [width]
    scale: float,
    chain: Chain,
    *,
    start: int,
    extras: bool,
) -> Tensor:
    """The records [n, pieces, RECORD]. Those of masked rows are left as they come."""
    n, width = len(targets), logits.shape[-1]
    block = piece_width(logits.dtype)
    count = triton.cdiv(width, block)
    records = torch.empty(n, count, RECORD.value, dtype=torch.float32, device=logits.device)
    if count == 0:
        return records
    with device_of(logits):
        pieces_kernel[(n * count,)](
            records,
            logits,
            targets,
            mask,
            row_scale,
            bias,
            strides.batch,
            strides.row,
            strides.rows_per_batch,
            width,
            count,
            start,
            scale * LOG2E.value,
            chain.slope,
            chain.softcap,
            BATCHED=strides.batched,
            HAS_SOFTCAP=chain.softcap != 0,
            EXTRAS=extras,
            PIECE=block,
            num_warps=num_warps(extras),
            **OPTIONS,
        )
    return records
