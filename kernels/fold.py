"""Second half of the forward pass: a row's records, merged into its running state.

The state is what csrc/core calls RowState: m, s0, s1, s2, q0, q1, y of the target, argmax, all
float64 and in nats. Records merge in chunks of fixed size in the order of their columns, so the
bits depend on nothing but the row's own logits.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF, LN2, is_active, row_scale_of, shifted
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.pieces import RECORD, piece_width

# Records a step: 262,144 columns of bfloat16 are 64 pieces. One warp a row needs no barriers.
CHUNK = 64
NUM_WARPS = 1


@triton.jit(do_not_specialize=["width", "pieces", "start"])
def fold_kernel(
    state_ptr,  # [n, 8] float64, in and out
    records_ptr,  # [n, pieces, RECORD] float32
    targets_ptr,  # [n] int64
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    width,
    pieces,
    start,
    scale: tl.float64,
    FIRST: tl.constexpr,
    EXTRAS: tl.constexpr,
    PIECE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state_ptr += row * 8
    m = tl.full((), -INF, tl.float64)
    s0 = tl.full((), 0.0, tl.float64)
    s1, s2, q0, q1 = s0, s0, s0, s0
    target_y = tl.full((), float("nan"), tl.float64)
    argmax = tl.full((), -1.0, tl.float64)
    if not FIRST:
        m = tl.load(state_ptr)
        s0 = tl.load(state_ptr + 1)
        s1 = tl.load(state_ptr + 2)
        s2 = tl.load(state_ptr + 3)
        q0 = tl.load(state_ptr + 4)
        q1 = tl.load(state_ptr + 5)
        target_y = tl.load(state_ptr + 6)
        argmax = tl.load(state_ptr + 7)
    if is_active(mask_ptr, row):
        scale = row_scale_of(row_scale_ptr, row, scale)
        records_ptr += row * pieces * RECORD
        for first in range(0, pieces, CHUNK):
            o = first + tl.arange(0, CHUNK)
            inside = o < pieces
            p_ptr = records_ptr + o * RECORD
            p_m = tl.load(p_ptr, mask=inside, other=-INF).to(tl.float64)
            p_s0 = tl.load(p_ptr + 1, mask=inside, other=0.0).to(tl.float64)
            p_s1 = tl.load(p_ptr + 2, mask=inside, other=0.0).to(tl.float64) * LN2
            p_s2, p_q0, p_q1 = p_s0, p_s0, p_s0
            top = tl.maximum(m, tl.max(p_m, 0))
            if EXTRAS:
                p_s2 = tl.load(p_ptr + 3, mask=inside, other=0.0).to(tl.float64) * (LN2 * LN2)
                p_q0 = tl.load(p_ptr + 4, mask=inside, other=0.0).to(tl.float64)
                p_q1 = tl.load(p_ptr + 5, mask=inside, other=0.0).to(tl.float64) * LN2
                # A tie keeps the earlier column, of a piece and of the state.
                if top > m:
                    best = tl.min(tl.where(p_m == top, o, pieces), 0)
                    bits = tl.load(records_ptr + best * RECORD + 7).to(tl.int32, bitcast=True)
                    argmax = (bits + start).to(tl.float64)
            s0, s1, s2, q0, q1 = shifted(m, s0, s1, s2, q0, q1, top, scale, EXTRAS)
            p_s0, p_s1, p_s2, p_q0, p_q1 = shifted(
                p_m, p_s0, p_s1, p_s2, p_q0, p_q1, top, scale, EXTRAS
            )
            s0 += tl.sum(p_s0, 0)
            s1 += tl.sum(p_s1, 0)
            if EXTRAS:
                s2 += tl.sum(p_s2, 0)
                q0 += tl.sum(p_q0, 0)
                q1 += tl.sum(p_q1, 0)
            m = top
        column = tl.load(targets_ptr + row) - start
        if (column >= 0) & (column < width):
            target_y = tl.load(records_ptr + column // PIECE * RECORD + 6).to(tl.float64)
    tl.store(state_ptr, m)
    tl.store(state_ptr + 1, s0)
    tl.store(state_ptr + 2, s1)
    tl.store(state_ptr + 3, s2)
    tl.store(state_ptr + 4, q0)
    tl.store(state_ptr + 5, q1)
    tl.store(state_ptr + 6, target_y)
    tl.store(state_ptr + 7, argmax)


def fold(
    records: Tensor,  # [n, pieces, RECORD]
    state: Tensor,  # [n, 8] float64
    logits: Tensor,  # the tile the records are of
    targets: Tensor,
    mask: Tensor | None,
    row_scale: Tensor | None,
    scale: float,
    *,
    start: int,
    first: bool,
    extras: bool,
) -> None:
    """Merge a tile's records into the state; with `first`, the state is started afresh."""
    n, count, _ = records.shape
    with device_of(state):
        fold_kernel[(n,)](
            state,
            records,
            targets,
            mask,
            row_scale,
            logits.shape[-1],
            count,
            start,
            scale,
            FIRST=first,
            EXTRAS=extras,
            PIECE=piece_width(logits.dtype),
            CHUNK=CHUNK,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
