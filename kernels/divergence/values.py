"""The state of every row turned into entropies and both KL.

    entropy = log(s0) - s1 / s0
    reverse_kl = gap / s0 + log(t0) - log(s0), and forward_kl with the sides exchanged

A masked row is 0. A bad row is NaN and lowers the error flag to row_id * 8 + kind: 1 a +inf, 2 a
NaN, 3 no finite logit of the student's, 6 any of these of the teacher's.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.jit import INF
from logitless.kernels.launch import OPTIONS, device_of

ROWS = 128
NUM_WARPS = 4
# In the order of the kernel's arguments.
OUTPUTS = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
NO_ERROR = tl.constexpr(2**63 - 1)


@triton.jit
def _store(out_ptr, row, value, active, bad, inside):
    value = tl.where(active, tl.where(bad, float("nan"), value), 0.0)
    tl.store(out_ptr + row, value.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n"])
def values_kernel(
    state_ptr,  # [n, 8] float64
    mask_ptr,  # [n] bool or None
    row_ids_ptr,  # [n] int64 or None: a row's index
    error_ptr,  # [1] int64
    entropy_ptr,  # [n] float32, and so the next three
    teacher_entropy_ptr,
    reverse_kl_ptr,
    forward_kl_ptr,
    n,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    active = inside
    if mask_ptr is not None:
        active = tl.load(mask_ptr + row, mask=inside, other=0) != 0
    s_ptr = state_ptr + row * 8
    m = tl.load(s_ptr, mask=inside, other=0.0)
    s0 = tl.load(s_ptr + 1, mask=inside, other=1.0)
    s1 = tl.load(s_ptr + 2, mask=inside, other=0.0)
    gap = tl.load(s_ptr + 3, mask=inside, other=0.0)
    other_m = tl.load(s_ptr + 4, mask=inside, other=0.0)
    t0 = tl.load(s_ptr + 5, mask=inside, other=1.0)
    t1 = tl.load(s_ptr + 6, mask=inside, other=0.0)
    back = tl.load(s_ptr + 7, mask=inside, other=0.0)

    kind = tl.where((other_m == INF) | (t0 != t0) | (t0 == 0), 6, 0)
    kind = tl.where(s0 == 0, 3, kind)
    kind = tl.where(s0 != s0, 2, kind)
    kind = tl.where(m == INF, 1, kind)
    bad = kind != 0
    row_id = row
    if row_ids_ptr is not None:
        row_id = tl.load(row_ids_ptr + row, mask=inside, other=0)
    error = tl.min(tl.where(active & bad, row_id * 8 + kind, NO_ERROR), 0)
    if error != NO_ERROR:
        tl.atomic_min(error_ptr, error)

    log_s, log_t = tl.log(s0), tl.log(t0)
    reverse = gap / s0 + (log_t - log_s)
    forward = back / t0 + (log_s - log_t)
    # A sum of rounded terms may fall below 0, which no divergence does.
    _store(entropy_ptr, row, log_s - s1 / s0, active, bad, inside)
    _store(teacher_entropy_ptr, row, log_t - t1 / t0, active, bad, inside)
    _store(reverse_kl_ptr, row, tl.where(reverse < 0, 0.0, reverse), active, bad, inside)
    _store(forward_kl_ptr, row, tl.where(forward < 0, 0.0, forward), active, bad, inside)


def values(
    state: Tensor,  # [n, 8] float64
    error: Tensor,  # [1] int64
    student: RowArrays,
    row_ids: Tensor | None,
    outputs: Mapping[str, Tensor],  # all of OUTPUTS
) -> None:
    n = student.n
    with device_of(state):
        values_kernel[(triton.cdiv(n, ROWS),)](
            state,
            student.mask,
            row_ids,
            error,
            *(outputs[name] for name in OUTPUTS),
            n,
            ROWS=ROWS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
