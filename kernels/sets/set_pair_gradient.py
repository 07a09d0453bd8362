"""d(values) of a student's entries beside a teacher's: see `divergence/gradient.py`."""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.divergence.columns import (
    capped,
    capped_slope,
    from_maxima,
    maxima_of,
    pair_slope,
)
from logitless.kernels.divergence.noise import Noise, noise_of_entries
from logitless.kernels.divergence.terms import KINDS, TERMS, terms
from logitless.kernels.jit import INF
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
def set_pair_gradient_kernel(
    gradient_ptr,  # [entries] float32, out
    offsets_ptr,  # [n + 1] int64
    values_ptr,  # [entries] float32
    others_ptr,  # [entries] float32
    terms_ptr,  # [n, TERMS] float32
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
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, stop = ends_of(offsets_ptr, row)
    t_ptr = terms_ptr + row * TERMS
    wanted = tl.load(t_ptr) != 0
    for i in range(start, stop, BLOCK):
        at = i + tl.arange(0, BLOCK)
        inside = at < stop
        d = tl.full((BLOCK,), 0.0, tl.float32)
        if wanted:
            raw = tl.load(values_ptr + at, mask=inside, other=-INF)
            y = capped(raw, inside, slope, softcap, HAS_SOFTCAP)
            z = y_of(others_ptr, at, inside, other_slope, other_softcap, OTHER_HAS_SOFTCAP)
            if token is not None:
                z += noise_of_entries(
                    columns_ptr, at, inside, sizes_ptr, row_ids_ptr, row, seed, counters, token
                )
            x, u = from_maxima(maxima_of(t_ptr), y, z)
            d = pair_slope(t_ptr, x, u, KIND)
            if HAS_SOFTCAP:
                d *= capped_slope(raw, slope)
        tl.store(gradient_ptr + at, d, mask=inside)


def set_pair_gradient(
    student: RowArrays,
    teacher: RowArrays,
    noise: Noise | None,  # of the teacher's rows
    entries: Entries,
    others: Tensor,  # [entries] float32, the teacher's values
    state: Tensor,  # [n, 8] float64
    gradient: Tensor,  # [entries] float32, out
    *,
    kind: str,
    beta: float,
    sums: Tensor | None,  # [n, 2] float64, of jsd
    g_divergence: Tensor | None,  # [n] float32 or float64, and so the next
    g_entropy: Tensor | None,
) -> None:
    """Write d(values); entries of rows without a gradient are not read and get zeros."""
    entries.check(student, state, others, gradient)
    if student.n == 0:
        return
    per_row = terms(
        state, sums, student, teacher, kind=kind, beta=beta, differentiated=True,
        g_divergence=g_divergence, g_entropy=g_entropy,
    )  # fmt: skip
    with device_of(state):
        set_pair_gradient_kernel[(student.n,)](
            gradient,
            entries.offsets,
            entries.values,
            others,
            per_row,
            student.chain.slope,
            student.chain.softcap,
            teacher.chain.slope,
            teacher.chain.softcap,
            *noise_arguments(noise, entries),
            HAS_SOFTCAP=student.chain.softcap != 0,
            OTHER_HAS_SOFTCAP=teacher.chain.softcap != 0,
            KIND=KINDS[kind],
            BLOCK=block_of(noise),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
