"""What each side diverges from the mix of both, over sets: see `divergence/mix.py`."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import apart_from_mix, from_maxima, maxima_of
from logitless.kernels.divergence.noise import Noise, noise_of_entries
from logitless.kernels.divergence.terms import TERMS, terms
from logitless.kernels.jit import LN2, LOG2E
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.sets.entries import (
    NUM_WARPS,
    Entries,
    block_of,
    ends_of,
    noise_arguments,
    y_of,
)


@triton.jit(do_not_specialize=["seed", "counters", "token"])
def set_pair_mix_kernel(
    sums_ptr,  # [n, 2] float64, out
    state_ptr,  # [n, 8] float64
    offsets_ptr,  # [n + 1] int64
    values_ptr,  # [entries] float32
    others_ptr,  # [entries] float32
    terms_ptr,  # [n, TERMS] float32
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
    token,  # of column 0; None: no noise
    columns_ptr,  # [entries] int32, or None without noise
    HAS_SOFTCAP: tl.constexpr,
    OTHER_HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, stop = ends_of(offsets_ptr, row)
    t_ptr = terms_ptr + row * TERMS
    own = tl.full((), 0.0, tl.float64)
    other = own
    if tl.load(t_ptr) != 0:
        # ahead of the loop, in which they cost registers
        maxima = maxima_of(t_ptr)
        for i in range(start, stop, BLOCK):
            at = i + tl.arange(0, BLOCK)
            inside = at < stop
            y = y_of(values_ptr, at, inside, slope, softcap, HAS_SOFTCAP)
            z = y_of(others_ptr, at, inside, other_slope, other_softcap, OTHER_HAS_SOFTCAP)
            if token is not None:
                z += noise_of_entries(
                    columns_ptr, at, inside, sizes_ptr, row_ids_ptr, row, seed, counters, token
                )
            x, u = from_maxima(maxima, y, z)
            mine, theirs = apart_from_mix(t_ptr, x, u, offset, other_offset)
            own += tl.sum(mine, 0).to(tl.float64)
            other += tl.sum(theirs, 0).to(tl.float64)
        own = own * LN2 / tl.load(state_ptr + row * 8 + 1)
        other = other * LN2 / tl.load(state_ptr + row * 8 + 5)
    tl.store(sums_ptr + row * 2, own)
    tl.store(sums_ptr + row * 2 + 1, other)


def set_pair_mix(
    student: RowArrays,
    teacher: RowArrays,
    noise: Noise | None,  # of the teacher's rows
    entries: Entries,
    others: Tensor,  # [entries] float32, the teacher's values
    state: Tensor,  # [n, 8] float64
    sums: Tensor,  # [n, 2] float64, out
    *,
    beta: float,
) -> None:
    """Write the sums."""
    entries.check(student, state, others)
    student.check("sums", sums, torch.float64, shape=(student.n, 2))
    if student.n == 0:
        return
    per_row = terms(state, None, student, teacher, kind="jsd", beta=beta)
    with device_of(state):
        set_pair_mix_kernel[(student.n,)](
            sums,
            state,
            entries.offsets,
            entries.values,
            others,
            per_row,
            -math.log1p(-beta) * LOG2E.value,
            -math.log(beta) * LOG2E.value,
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
