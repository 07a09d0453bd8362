"""A row's records, merged into its running state: [n, 8] float64, in nats.

Records merge in chunks of fixed size in the order of their columns, so the bits depend on nothing
but the row's own logits.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.moments import RECORD
from logitless.kernels.jit import INF, LN2, LOG2E, is_active, row_scale_of
from logitless.kernels.launch import OPTIONS, device_of

# Records a step: 131,072 columns are 64 pieces. One warp a row needs no barriers.
CHUNK = 64
NUM_WARPS = 1


@triton.jit
def _records(records_ptr, o, inside):
    # m, s0, s1, gap of a side, in nats.
    ptr = records_ptr + o * RECORD
    m = tl.load(ptr, mask=inside, other=-INF).to(tl.float64)
    s0 = tl.load(ptr + 1, mask=inside, other=0.0).to(tl.float64)
    s1 = tl.load(ptr + 2, mask=inside, other=0.0).to(tl.float64) * LN2
    gap = tl.load(ptr + 3, mask=inside, other=0.0).to(tl.float64) * LN2
    return m, s0, s1, gap


@triton.jit
def _shift(m, s0, top, scale):
    # From a part's maximum to the whole's; of a part without any mass there is none to shift by.
    return tl.where(s0 == 0, 0.0, (m - top) * scale)


@triton.jit
def _shifted(s0, s1, gap, own, apart):
    # The factor needs no more than float32: one of 1 + 3e-8 to all three sums.
    d = tl.exp2((own * LOG2E).to(tl.float32)).to(tl.float64)
    mass = d * s0
    # By choice: a gap of inf may have no mass left.
    gap = tl.where(mass != 0, d * (gap + apart * s0), 0.0)
    return mass, d * (s1 + own * s0), gap


@triton.jit(do_not_specialize=["pieces"])
def combine_kernel(
    state_ptr,  # [n, 8] float64, in and out
    records_ptr,  # [n, pieces, RECORD] float32
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    other_row_scale_ptr,
    pieces,
    scale: tl.float64,
    other_scale: tl.float64,
    FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state_ptr += row * 8
    m = tl.full((), -INF, tl.float64)
    s0 = tl.full((), 0.0, tl.float64)
    s1, gap, t0, t1, back = s0, s0, s0, s0, s0
    other_m = m
    if not FIRST:
        m = tl.load(state_ptr)
        s0 = tl.load(state_ptr + 1)
        s1 = tl.load(state_ptr + 2)
        gap = tl.load(state_ptr + 3)
        other_m = tl.load(state_ptr + 4)
        t0 = tl.load(state_ptr + 5)
        t1 = tl.load(state_ptr + 6)
        back = tl.load(state_ptr + 7)
    if is_active(mask_ptr, row):
        scale = row_scale_of(row_scale_ptr, row, scale)
        other_scale = row_scale_of(other_row_scale_ptr, row, other_scale)
        records_ptr += row * pieces * RECORD
        for first in range(0, pieces, CHUNK):
            o = first + tl.arange(0, CHUNK)
            inside = o < pieces
            p_m, p_s0, p_s1, p_gap = _records(records_ptr, o, inside)
            q_m, q_s0, q_s1, q_gap = _records(records_ptr + 4, o, inside)
            top = tl.maximum(m, tl.max(p_m, 0))
            other_top = tl.maximum(other_m, tl.max(q_m, 0))
            own = _shift(m, s0, top, scale)
            other = _shift(other_m, t0, other_top, other_scale)
            s0, s1, gap = _shifted(s0, s1, gap, own, own - other)
            t0, t1, back = _shifted(t0, t1, back, other, other - own)
            p_own = _shift(p_m, p_s0, top, scale)
            q_own = _shift(q_m, q_s0, other_top, other_scale)
            p_s0, p_s1, p_gap = _shifted(p_s0, p_s1, p_gap, p_own, p_own - q_own)
            q_s0, q_s1, q_gap = _shifted(q_s0, q_s1, q_gap, q_own, q_own - p_own)
            s0 += tl.sum(p_s0, 0)
            s1 += tl.sum(p_s1, 0)
            gap += tl.sum(p_gap, 0)
            t0 += tl.sum(q_s0, 0)
            t1 += tl.sum(q_s1, 0)
            back += tl.sum(q_gap, 0)
            m = top
            other_m = other_top
    tl.store(state_ptr, m)
    tl.store(state_ptr + 1, s0)
    tl.store(state_ptr + 2, s1)
    tl.store(state_ptr + 3, gap)
    tl.store(state_ptr + 4, other_m)
    tl.store(state_ptr + 5, t0)
    tl.store(state_ptr + 6, t1)
    tl.store(state_ptr + 7, back)


def combine(
    records: Tensor,  # [n, pieces, RECORD]
    state: Tensor,  # [n, 8] float64
    student: RowArrays,
    teacher: RowArrays,
    *,
    first: bool,
) -> None:
    """Merge a tile's records into the state; with `first`, the state is started afresh."""
    n, count, _ = records.shape
    with device_of(state):
        combine_kernel[(n,)](
            state,
            records,
            student.mask,
            student.row_scale,
            teacher.row_scale,
            count,
            student.scale,
            teacher.scale,
            FIRST=first,
            CHUNK=CHUNK,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
