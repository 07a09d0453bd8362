"""What the gradient of a row needs, once per row: float64, rounded to float32 at the end.

With a = g_lse - g_logp - g_entropy * H and b = -g_entropy the gradient of a column is

    dz = p * (a + b * log(p)) + g_logp * (column == target)
       = exp2(t) * (constant + linear * t) + own * (column == target)

and t = (y - m) * scale * log2(e).

A kernel of its own, since in every program of the backward pass the divisions and the logarithm
in float64 would cost as much as 1000 columns do.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.jit import LN2, LOG2E, LOWEST
from logitless.kernels.launch import OPTIONS, Chain, device_of

# Floats a row: whether it has a gradient at all, m, scale * log2(e), constant, linear, own, 0, 0.
COEFFICIENTS = tl.constexpr(8)
ROWS = 128
NUM_WARPS = 4


@triton.jit
def slope_of(c_ptr, y):
    # d(y) of the columns of a row, without the target's own part.
    t = (y - tl.load(c_ptr + 1)) * tl.load(c_ptr + 2)
    t = tl.maximum(t, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(t) * (tl.load(c_ptr + 3) + tl.load(c_ptr + 4) * t)


@triton.jit
def _upstream(g_ptr, row, inside, ROWS: tl.constexpr):
    if g_ptr is not None:
        g = tl.load(g_ptr + row, mask=inside, other=0.0).to(tl.float64)
    else:
        g = tl.full((ROWS,), 0.0, tl.float64)
    return g


@triton.jit(do_not_specialize=["n"])
def coefficients_kernel(
    coefficients_ptr,  # [n, COEFFICIENTS] float32, out
    state_ptr,  # [n, 8] float64
    mask_ptr,  # [n] bool or None
    row_scale_ptr,  # [n] float64 or None
    g_logp_ptr,  # [n] float32 or float64, or None, and so the next two
    g_entropy_ptr,
    g_lse_ptr,
    n,
    scale: tl.float64,
    pre: tl.float64,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    g_logp = _upstream(g_logp_ptr, row, inside, ROWS)
    g_entropy = _upstream(g_entropy_ptr, row, inside, ROWS)
    g_lse = _upstream(g_lse_ptr, row, inside, ROWS)
    active = inside & ((g_logp != 0) | (g_entropy != 0) | (g_lse != 0))
    if mask_ptr is not None:
        active &= tl.load(mask_ptr + row, mask=inside, other=0) != 0
    if row_scale_ptr is not None:
        scale = tl.load(row_scale_ptr + row, mask=inside, other=1.0)
    else:
        scale = tl.full((ROWS,), scale, tl.float64)
    s_ptr = state_ptr + row * 8
    m = tl.load(s_ptr, mask=active, other=0.0)
    s0 = tl.load(s_ptr + 1, mask=active, other=1.0)
    s1 = tl.load(s_ptr + 2, mask=active, other=0.0)

    log_s0 = tl.log(s0)
    inv_s0 = 1.0 / s0
    entropy = log_s0 - s1 * inv_s0
    a = g_lse - g_logp - g_entropy * entropy
    b = -g_entropy
    # The chain back to the raw logits: scale, and what stands before the softcap.
    factor = scale * pre
    c_ptr = coefficients_ptr + row * COEFFICIENTS
    tl.store(c_ptr, active.to(tl.float32), mask=inside)
    tl.store(c_ptr + 1, m.to(tl.float32), mask=inside)
    tl.store(c_ptr + 2, (scale * LOG2E).to(tl.float32), mask=inside)
    tl.store(c_ptr + 3, (factor * inv_s0 * (a - b * log_s0)).to(tl.float32), mask=inside)
    tl.store(c_ptr + 4, (factor * inv_s0 * b * LN2).to(tl.float32), mask=inside)
    tl.store(c_ptr + 5, (g_logp * factor).to(tl.float32), mask=inside)


def coefficients(
    state: Tensor,  # [n, 8] float64
    mask: Tensor | None,
    row_scale: Tensor | None,
    g_logp: Tensor | None,
    g_entropy: Tensor | None,
    g_lse: Tensor | None,
    scale: float,
    chain: Chain,
) -> Tensor:
    """[n, COEFFICIENTS] float32."""
    n = len(state)
    out = torch.empty(n, COEFFICIENTS.value, dtype=torch.float32, device=state.device)
    with device_of(state):
        coefficients_kernel[(triton.cdiv(n, ROWS),)](
            out,
            state,
            mask,
            row_scale,
            g_logp,
            g_entropy,
            g_lse,
            n,
            scale,
            chain.pre,
            ROWS=ROWS,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return out
