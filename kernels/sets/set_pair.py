"""The states of rows under two softmaxes over their sets.

Replaces, for y and z of the two sides of the entries of a row,

    x, u = ((v - v.max()) * scale * log2(e) for v in (y, z))       # in base 2 until the end
    s0, s1, gap = exp2(x).sum(), (x * exp2(x)).sum(), ((x - u) * exp2(x)).sum()

and the same of u. Sums of a block are float32 and those of the row float64.
"""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import mass_of, scale_in_bits
from logitless.kernels.divergence.noise import Noise, noise_of_entries
from logitless.kernels.jit import INF, LN2, LOG2E, is_active
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.sets.entries import (
    NUM_WARPS,
    Entries,
    block_of,
    ends_of,
    noise_arguments,
    y_of,
)


@triton.jit
def _add(s0, s1, gap, x, apart):
    mass, first, away = mass_of(x, apart)
    s0 += tl.sum(mass, 0).to(tl.float64)
    s1 += tl.sum(first, 0).to(tl.float64)
    gap += tl.sum(away, 0).to(tl.float64)
    return s0, s1, gap


@triton.jit
def _store(state_ptr, m, s0, s1, gap):
    tl.store(state_ptr, m.to(tl.float64))
    tl.store(state_ptr + 1, s0)
    tl.store(state_ptr + 2, s1 * LN2)
    tl.store(state_ptr + 3, gap * LN2)


@triton.jit(do_not_specialize=["seed", "counters", "token"])
def set_pair_kernel(
    state_ptr,  # [n, 8] float64, out
    offsets_ptr,  # [n + 1] int64
    values_ptr,  # [entries] float32
    others_ptr,  # [entries] float32
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    other_row_scale_ptr,
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
    token,  # of column 0; None: no noise
    columns_ptr,  # [entries] int32, or None without noise
    HAS_SOFTCAP: tl.constexpr,
    OTHER_HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, stop = ends_of(offsets_ptr, row)
    if is_active(mask_ptr, row) == 0:
        stop = start
    o = tl.arange(0, BLOCK)
    m = tl.full((), -INF, tl.float32)
    other_m = m
    for i in range(start, stop, BLOCK):
        at = i + o
        inside = at < stop
        y = y_of(values_ptr, at, inside, slope, softcap, HAS_SOFTCAP)
        z = y_of(others_ptr, at, inside, other_slope, other_softcap, OTHER_HAS_SOFTCAP)
        if token is not None:
            z += noise_of_entries(
                columns_ptr, at, inside, sizes_ptr, row_ids_ptr, row, seed, counters, token
            )
        m = tl.maximum(m, tl.max(y, 0))
        other_m = tl.maximum(other_m, tl.max(z, 0))
    # Of a row without any mass from 0: -inf - -inf would be NaN.
    base = tl.where(m == -INF, 0.0, m)
    other_base = tl.where(other_m == -INF, 0.0, other_m)
    scale = scale_in_bits(row_scale_ptr, row, scale)
    other_scale = scale_in_bits(other_row_scale_ptr, row, other_scale)
    s0 = tl.full((), 0.0, tl.float64)
    s1, gap, t0, t1, back = s0, s0, s0, s0, s0
    for i in range(start, stop, BLOCK):
        at = i + o
        inside = at < stop
        y = y_of(values_ptr, at, inside, slope, softcap, HAS_SOFTCAP)
        z = y_of(others_ptr, at, inside, other_slope, other_softcap, OTHER_HAS_SOFTCAP)
        if token is not None:
            z += noise_of_entries(
                columns_ptr, at, inside, sizes_ptr, row_ids_ptr, row, seed, counters, token
            )
        x = (y - base) * scale
        u = (z - other_base) * other_scale
        s0, s1, gap = _add(s0, s1, gap, x, x - u)
        t0, t1, back = _add(t0, t1, back, u, u - x)
    state_ptr += row * 8
    _store(state_ptr, m, s0, s1, gap)
    _store(state_ptr + 4, other_m, t0, t1, back)


def set_pair(
    student: RowArrays,
    teacher: RowArrays,
    noise: Noise | None,  # of the teacher's rows
    entries: Entries,
    others: Tensor,  # [entries] float32, the teacher's values
    state: Tensor,  # [n, 8] float64, out
) -> None:
    """Write the states."""
    entries.check(student, state, others)
    if student.n == 0:
        return
    with device_of(state):
        set_pair_kernel[(student.n,)](
            state,
            entries.offsets,
            entries.values,
            others,
            student.mask,
            student.row_scale,
            teacher.row_scale,
            student.scale * LOG2E.value,
            teacher.scale * LOG2E.value,
            student.chain.slope,
            student.chain.softcap,
            teacher.chain.slope,
            teacher.chain.softcap,
            *noise_arguments(noise, entries),
            HAS_SOFTCAP=student.chain.softcap != 0,
            OTHER_HAS_SOFTCAP=teacher.chain.softcap != 0,
            BLOCK=block_of(noise),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
