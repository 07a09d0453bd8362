"""d(values) of the entries of sets, by the coefficients of their rows: see `coefficients.py`."""

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.coefficients import COEFFICIENTS, coefficients, slope_of
from logitless.kernels.divergence.columns import capped, capped_slope
from logitless.kernels.jit import INF
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.sets.entries import BLOCK, NUM_WARPS, Entries, ends_of


@triton.jit
def set_gradient_kernel(
    gradient_ptr,  # [entries] float32, out
    offsets_ptr,  # [n + 1] int64
    columns_ptr,  # [entries] int32
    values_ptr,  # [entries] float32
    targets_ptr,  # [n] int64
    coefficients_ptr,  # [n, COEFFICIENTS] float32
    slope,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, stop = ends_of(offsets_ptr, row)
    c_ptr = coefficients_ptr + row * COEFFICIENTS
    wanted = tl.load(c_ptr) != 0
    target = tl.load(targets_ptr + row)
    for i in range(start, stop, BLOCK):
        at = i + tl.arange(0, BLOCK)
        inside = at < stop
        d = tl.full((BLOCK,), 0.0, tl.float32)
        if wanted:
            raw = tl.load(values_ptr + at, mask=inside, other=-INF)
            d = slope_of(c_ptr, capped(raw, inside, slope, softcap, HAS_SOFTCAP))
            column = tl.load(columns_ptr + at, mask=inside, other=-1)
            d += tl.where(column == target, tl.load(c_ptr + 5), 0.0)
            if HAS_SOFTCAP:
                d *= capped_slope(raw, slope)
        tl.store(gradient_ptr + at, d, mask=inside)


def set_gradient(
    rows: RowArrays,
    targets: Tensor,  # [n] int64, columns
    entries: Entries,
    state: Tensor,  # [n, 8] float64
    gradient: Tensor,  # [entries] float32, out
    *,
    g_logp: Tensor | None = None,  # [n] float32 or float64, and so the next two
    g_entropy: Tensor | None = None,
    g_lse: Tensor | None = None,
) -> None:
    """Write d(values); entries of rows without a gradient are not read and get zeros."""
    entries.check(rows, state, gradient)
    if rows.n == 0:
        return
    per_row = coefficients(
        state, rows.mask, rows.row_scale, g_logp, g_entropy, g_lse, rows.scale, rows.chain
    )
    with device_of(state):
        set_gradient_kernel[(rows.n,)](
            gradient,
            *entries,
            targets,
            per_row,
            rows.chain.slope,
            rows.chain.softcap,
            HAS_SOFTCAP=rows.chain.softcap != 0,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
