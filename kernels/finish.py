"""The state of every row turned into what the caller asked for.

    logp = (target_y - m) * scale - log(s0)
    entropy = log(s0) - s1 / s0
    lse = m * scale + log(s0)
    varentropy = s2 / s0 - (s1 / s0)**2;  sum_p2 = q0 / s0**2
    log_sum_p2 = log(q0) - 2 log(s0);  mean_logit = m * scale + s1 / s0
    entropy_change = (q1 - q0 * s1 / s0) / s0**2 - exp(logp) * (logp + entropy)

A masked row is 0 (argmax -1). A bad row is NaN (argmax -1) and lowers the error flag to
row_id * 8 + kind: 1 a +inf, 2 a NaN, 3 no finite logit, 4 a target outside [0, vocab) or
without a logit, 5 an lse beyond float32.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import INF
from logitless.kernels.launch import OPTIONS, device_of

ROWS = 128
NUM_WARPS = 4
# In the order of the kernel's arguments.
OUTPUTS = (
    "logp", "entropy", "lse", "varentropy", "sum_p2", "log_sum_p2", "mean_logit", "entropy_change",
    "argmax",
)  # fmt: skip
NO_ERROR = tl.constexpr(2**63 - 1)


@triton.jit
def _store(out_ptr, row, value, active, bad, inside):
    if out_ptr is not None:
        value = tl.where(active, tl.where(bad, float("nan"), value), 0.0)
        tl.store(out_ptr + row, value.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n", "vocab"])
def finish_kernel(
    state_ptr,  # [n, 8] float64
    targets_ptr,  # [n] int64
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    row_ids_ptr,  # [n] int64 or None: a row's index
    error_ptr,  # [1] int64
    logp_ptr,  # [n] float32 or None, and so the next seven
    entropy_ptr,
    lse_ptr,
    varentropy_ptr,
    sum_p2_ptr,
    log_sum_p2_ptr,
    mean_logit_ptr,
    entropy_change_ptr,
    argmax_ptr,  # [n] int64 or None
    n,
    vocab,
    scale: tl.float64,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    active = inside
    if mask_ptr is not None:
        active = tl.load(mask_ptr + row, mask=inside, other=0) != 0
    if row_scale_ptr is not None:
        scale = tl.load(row_scale_ptr + row, mask=inside, other=1.0)
    else:
        scale = tl.full((ROWS,), scale, tl.float64)
    s_ptr = state_ptr + row * 8
    m = tl.load(s_ptr, mask=inside, other=0.0)
    s0 = tl.load(s_ptr + 1, mask=inside, other=1.0)
    s1 = tl.load(s_ptr + 2, mask=inside, other=0.0)
    target_y = tl.load(s_ptr + 6, mask=inside, other=0.0)
    target = tl.load(targets_ptr + row, mask=inside, other=0)

    # log(s0) >= 0 and s1 <= 0: the entropy is a sum of two non-negative terms.
    log_s0 = tl.log(s0)
    inv_s0 = 1.0 / s0
    mean = s1 * inv_s0
    lse = m * scale + log_s0

    kind = tl.where(tl.abs(lse.to(tl.float32)) == INF, 5, 0)
    # A row over a set has seen no logit of a target outside of it.
    kind = tl.where((target < 0) | (target >= vocab) | (target_y != target_y), 4, kind)
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

    logp = (target_y - m) * scale - log_s0
    entropy = log_s0 - mean
    _store(logp_ptr, row, logp, active, bad, inside)
    _store(entropy_ptr, row, entropy, active, bad, inside)
    _store(lse_ptr, row, lse, active, bad, inside)
    if varentropy_ptr is not None:
        s2 = tl.load(s_ptr + 3, mask=inside, other=0.0)
        _store(varentropy_ptr, row, s2 * inv_s0 - mean * mean, active, bad, inside)
    if sum_p2_ptr is not None:
        q0 = tl.load(s_ptr + 4, mask=inside, other=0.0)
        _store(sum_p2_ptr, row, q0 * inv_s0 * inv_s0, active, bad, inside)
    if log_sum_p2_ptr is not None:
        q0 = tl.load(s_ptr + 4, mask=inside, other=1.0)
        _store(log_sum_p2_ptr, row, tl.log(q0) - 2 * log_s0, active, bad, inside)
    _store(mean_logit_ptr, row, lse - entropy, active, bad, inside)
    if entropy_change_ptr is not None:
        q0 = tl.load(s_ptr + 4, mask=inside, other=0.0)
        q1 = tl.load(s_ptr + 5, mask=inside, other=0.0)
        own = tl.where(logp == -INF, 0.0, tl.exp(logp) * (logp + entropy))
        _store(
            entropy_change_ptr, row, (q1 - q0 * mean) * inv_s0 * inv_s0 - own, active, bad, inside
        )
    if argmax_ptr is not None:
        argmax = tl.load(s_ptr + 7, mask=inside, other=-1.0)
        argmax = tl.where(active & (bad == 0), argmax, -1.0)
        tl.store(argmax_ptr + row, argmax.to(tl.int64), mask=inside)


def finish(
    state: Tensor,  # [n, 8] float64
    vocab: int,
    error: Tensor,  # [1] int64
    targets: Tensor,
    mask: Tensor | None,
    row_scale: Tensor | None,
    row_ids: Tensor | None,
    scale: float,
    outputs: Mapping[str, Tensor | None],  # by the names of OUTPUTS
) -> None:
    """Write the outputs that are given."""
    n = len(state)
    with device_of(state):
        finish_kernel[(triton.cdiv(n, ROWS),)](
            state,
            targets,
            mask,
            row_scale,
            row_ids,
            error,
            *(outputs.get(name) for name in OUTPUTS),
            n,
            vocab,
            scale,
            ROWS=ROWS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
