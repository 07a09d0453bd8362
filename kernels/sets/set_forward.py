"""The states of rows over their sets.

Replaces, for y = softcap(values) of the entries of a row,

    m = y.max()
    x = (y - m) * scale
    s0, s1 = exp(x).sum(), (x * exp(x)).sum()
    s2, q0, q1 = (x**2 * exp(x)).sum(), exp(2 * x).sum(), (x * exp(2 * x)).sum()

Sums of a block are float32 and those of the row float64: a set may be the whole vocabulary.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import scale_in_bits
from logitless.kernels.jit import INF, LN2, LOG2E, LOWEST, is_active
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.sets.entries import BLOCK, NUM_WARPS, Entries, ends_of, y_of

# Behind every column.
NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def set_forward_kernel(
    state_ptr,  # [n, 8] float64, out
    offsets_ptr,  # [n + 1] int64
    columns_ptr,  # [entries] int32
    values_ptr,  # [entries] float32
    targets_ptr,  # [n] int64
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    scale,
    slope,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    EXTRAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, stop = ends_of(offsets_ptr, row)
    if is_active(mask_ptr, row) == 0:
        stop = start
    target = tl.load(targets_ptr + row)
    o = tl.arange(0, BLOCK)
    m = tl.full((), -INF, tl.float32)
    own = tl.full((), float("nan"), tl.float32)
    argmax = tl.full((), -1, tl.int32)
    for i in range(start, stop, BLOCK):
        inside = i + o < stop
        y = y_of(values_ptr, i + o, inside, slope, softcap, HAS_SOFTCAP)
        column = tl.load(columns_ptr + i + o, mask=inside, other=-1)
        top = tl.max(y, 0)
        if EXTRAS:
            # Columns ascend, so a tie keeps the first.
            at = tl.min(tl.where(inside & (y == top), column, NO_COLUMN), 0)
            argmax = tl.where(top > m, at, argmax)
        m = tl.maximum(m, top)
        hit = inside & (column == target)
        found = tl.sum(tl.where(hit, y, 0.0), 0)
        own = tl.where(tl.sum(hit.to(tl.int32), 0) > 0, found, own)

    # Without a finite logit everything is shifted by 0: -inf adds nothing and a NaN shows in s0.
    base = tl.where(m == -INF, 0.0, m)
    scale = scale_in_bits(row_scale_ptr, row, scale)
    s0 = tl.full((), 0.0, tl.float64)
    s1, s2, q0, q1 = s0, s0, s0, s0
    for i in range(start, stop, BLOCK):
        y = y_of(values_ptr, i + o, i + o < stop, slope, softcap, HAS_SOFTCAP)
        t = (y - base) * scale
        t = tl.maximum(t, LOWEST, propagate_nan=tl.PropagateNan.ALL)
        e = tl.exp2(t)
        te = t * e
        s0 += tl.sum(e, 0).to(tl.float64)
        s1 += tl.sum(te, 0).to(tl.float64)
        if EXTRAS:
            s2 += tl.sum(t * te, 0).to(tl.float64)
            q0 += tl.sum(e * e, 0).to(tl.float64)
            q1 += tl.sum(te * e, 0).to(tl.float64)
    state_ptr += row * 8
    tl.store(state_ptr, m.to(tl.float64))
    tl.store(state_ptr + 1, s0)
    tl.store(state_ptr + 2, s1 * LN2)
    tl.store(state_ptr + 3, s2 * (LN2 * LN2))
    tl.store(state_ptr + 4, q0)
    tl.store(state_ptr + 5, q1 * LN2)
    tl.store(state_ptr + 6, own.to(tl.float64))
    tl.store(state_ptr + 7, argmax.to(tl.float64))


def set_forward(
    rows: RowArrays,
    targets: Tensor,  # [n] int64, columns
    entries: Entries,
    state: Tensor,  # [n, 8] float64, out
    *,
    extras: bool,
) -> None:
    """Write the states. A target that is not in its row's set leaves NaN."""
    entries.check(rows, state)
    if rows.n == 0:
        return
    with device_of(state):
        set_forward_kernel[(rows.n,)](
            state,
            *entries,
            targets,
            rows.mask,
            rows.row_scale,
            rows.scale * LOG2E.value,
            rows.chain.slope,
            rows.chain.softcap,
            HAS_SOFTCAP=rows.chain.softcap != 0,
            EXTRAS=extras,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
