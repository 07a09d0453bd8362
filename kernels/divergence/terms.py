"""What the columns of a row need where its normalisers are known, once a row: float64, rounded at
the end. With x and u in bits, and p and q the student's and the teacher's probabilities,

    w = log2(p / q), or of jsd log2 of (1 - beta) p over mix
    d(y) = exp2(x) * (constant + linear * x + gap * w') + other * exp2(u)

where w' is w without what is the same in all columns.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import RowArrays
from logitless.kernels.jit import LN2, LOG2E
from logitless.kernels.launch import OPTIONS, device_of

# Floats a row: whether it is wanted at all, m, scale of both, odds, constant, linear, gap, other.
TERMS = tl.constexpr(12)
ROWS = 128
NUM_WARPS = 4
KINDS = {"reverse_kl": 0, "forward_kl": 1, "jsd": 2}


@triton.jit
def _upstream(g_ptr, row, inside, ROWS: tl.constexpr):
    if g_ptr is not None:
        g = tl.load(g_ptr + row, mask=inside, other=0.0).to(tl.float64)
    else:
        g = tl.full((ROWS,), 0.0, tl.float64)
    return g


@triton.jit
def _scale(row_scale_ptr, row, inside, scale, ROWS: tl.constexpr):
    if row_scale_ptr is not None:
        value = tl.load(row_scale_ptr + row, mask=inside, other=1.0)
    else:
        value = tl.full((ROWS,), scale, tl.float64)
    return value


@triton.jit(do_not_specialize=["n"])
def terms_kernel(
    terms_ptr,  # [n, TERMS] float32, out
    state_ptr,  # [n, 8] float64
    sums_ptr,  # [n, 2] float64 of jsd, or None
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    other_row_scale_ptr,
    g_divergence_ptr,  # [n] float32 or float64, or None
    g_entropy_ptr,
    n,
    scale: tl.float64,
    other_scale: tl.float64,
    pre: tl.float64,
    beta: tl.float64,
    odds: tl.float64,  # log2((1 - beta) / beta)
    offset: tl.float64,  # -log2(1 - beta)
    KIND: tl.constexpr,
    DIFFERENTIATED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    g = _upstream(g_divergence_ptr, row, inside, ROWS)
    g_entropy = _upstream(g_entropy_ptr, row, inside, ROWS)
    active = inside
    if DIFFERENTIATED:
        active &= (g != 0) | (g_entropy != 0)
    if mask_ptr is not None:
        active &= tl.load(mask_ptr + row, mask=inside, other=0) != 0
    scale = _scale(row_scale_ptr, row, inside, scale, ROWS)
    other_scale = _scale(other_row_scale_ptr, row, inside, other_scale, ROWS)
    s_ptr = state_ptr + row * 8
    m = tl.load(s_ptr, mask=active, other=0.0)
    s0 = tl.load(s_ptr + 1, mask=active, other=1.0)
    s1 = tl.load(s_ptr + 2, mask=active, other=0.0)
    other_m = tl.load(s_ptr + 4, mask=active, other=0.0)
    t0 = tl.load(s_ptr + 5, mask=active, other=1.0)
    log_s, log_t = tl.log(s0), tl.log(t0)
    apart = log_t - log_s

    a = -g_entropy * (log_s - s1 / s0)
    b = -g_entropy
    c = tl.zeros_like(g)
    t = c
    # What w' lacks, in bits.
    shift = apart * LOG2E
    if KIND == 0:
        gap = tl.load(s_ptr + 3, mask=active, other=0.0)
        kl = gap / s0 + apart
        c = g
        # By choice: a KL of inf is nothing to a row whose divergence has no gradient.
        a -= tl.where(g != 0, g * tl.where(kl < 0, 0.0, kl), 0.0)
    elif KIND == 1:
        a += g
        t = -g
    else:
        c = g * (1 - beta)
        shift = tl.full((ROWS,), offset, tl.float64)
        if sums_ptr is not None:
            a -= c * tl.load(sums_ptr + row * 2, mask=active, other=0.0)
    own = scale * pre / s0
    constant = a + LN2 * tl.where(c != 0, c * shift, 0.0) - b * log_s
    p_ptr = terms_ptr + row * TERMS
    tl.store(p_ptr, active.to(tl.float32), mask=inside)
    tl.store(p_ptr + 1, m.to(tl.float32), mask=inside)
    tl.store(p_ptr + 2, (scale * LOG2E).to(tl.float32), mask=inside)
    tl.store(p_ptr + 3, other_m.to(tl.float32), mask=inside)
    tl.store(p_ptr + 4, (other_scale * LOG2E).to(tl.float32), mask=inside)
    tl.store(p_ptr + 5, (apart * LOG2E + odds).to(tl.float32), mask=inside)
    tl.store(p_ptr + 6, (own * constant).to(tl.float32), mask=inside)
    tl.store(p_ptr + 7, (own * b * LN2).to(tl.float32), mask=inside)
    tl.store(p_ptr + 8, (own * c * LN2).to(tl.float32), mask=inside)
    tl.store(p_ptr + 9, (scale * pre / t0 * t).to(tl.float32), mask=inside)


def terms(
    state: Tensor,  # [n, 8] float64
    sums: Tensor | None,  # [n, 2] float64
    student: RowArrays,
    teacher: RowArrays,
    *,
    kind: str,
    beta: float,
    differentiated: bool = False,  # rows without gradients are not wanted
    g_divergence: Tensor | None = None,
    g_entropy: Tensor | None = None,
) -> Tensor:
    """[n, TERMS] float32."""
    n = student.n
    out = torch.empty(n, TERMS.value, dtype=torch.float32, device=state.device)
    with device_of(state):
        terms_kernel[(triton.cdiv(n, ROWS),)](
            out,
            state,
            sums,
            student.mask,
            student.row_scale,
            teacher.row_scale,
            g_divergence,
            g_entropy,
            n,
            student.scale,
            teacher.scale,
            student.chain.pre if student.chain.softcap else 1.0,
            beta,
            (math.log1p(-beta) - math.log(beta)) * LOG2E.value,
            -math.log1p(-beta) * LOG2E.value,
            KIND=KINDS[kind],
            DIFFERENTIATED=differentiated,
            ROWS=ROWS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return out
