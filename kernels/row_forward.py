"""Row forward: logp, entropy and log-sum-exp of each row of logits in one pass.

Replaces

    z = softcap(logit_scale * (logits + bias)) / temperature      # softcap(x) = c * tanh(x / c)
    log_p = z.float().log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    lse = z.float().logsumexp(-1)

without any [N, V] intermediate: the logits are read once and five numbers a row are written.
One program walks one row, so N below the number of multiprocessors leaves some of them idle.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_V = 4096
NUM_WARPS = 8


class RowForward(NamedTuple):
    """Per row, float32 [N]. A masked row is all zeros, a bad row all NaN."""

    logp: Tensor
    entropy: Tensor
    lse: Tensor
    # A backward pass needs these two: exp(z - lse) would be off by 5e-4 at |z| = 1e4.
    row_max: Tensor
    log_sum: Tensor


@triton.jit
def _softcapped(x, softcap):
    # tanh from one exp loses digits near 0 (1 - t cancels), so small arguments take the odd series;
    # at |y| = 0.25 its next term is below 1e-8 of y.
    y = x / softcap
    t = tl.exp(-2.0 * tl.abs(y))
    far = tl.where(y < 0, -1.0, 1.0) * (1.0 - t) / (1.0 + t)
    y2 = y * y
    near = y * (1.0 + y2 * (-1 / 3 + y2 * (2 / 15 + y2 * (-17 / 315 + y2 * (62 / 2835)))))
    return softcap * tl.where(tl.abs(y) < 0.25, near, far)


@triton.jit
def _tile_moments(b_z):
    # The moments (m, s0, s1) of one tile: m = max z, s0 = sum e^(z-m), s1 = sum (z-m) e^(z-m).
    # A tile without a finite logit is the empty piece (-inf, 0, 0): shifting it by its own maximum
    # would make NaN of -inf - -inf, so it shifts by 0. A NaN or +inf logit still ends as NaN.
    m = tl.max(b_z, 0)
    b_x = b_z - tl.where(m == float("-inf"), 0.0, m)
    b_e = tl.exp(b_x)
    s1 = tl.sum(tl.where(b_z == float("-inf"), 0.0, b_x * b_e), 0)
    return m, tl.sum(b_e, 0).to(tl.float64), s1.to(tl.float64)


@triton.jit
def _shift(m, s0, s1, to):
    # Re-base the moments on a larger maximum; the empty piece stays as it is.
    d = tl.where(m == float("-inf"), 0.0, m - to)
    scale = tl.exp(d).to(tl.float64)
    return scale * s0, scale * (s1 + d.to(tl.float64) * s0)


@triton.jit
def _merge(m_a, s0_a, s1_a, m_b, s0_b, s1_b):
    m = tl.maximum(m_a, m_b)
    s0_a, s1_a = _shift(m_a, s0_a, s1_a, m)
    s0_b, s1_b = _shift(m_b, s0_b, s1_b, m)
    return m, s0_a + s0_b, s1_a + s1_b


@triton.jit
def row_forward_kernel(
    logp_ptr, entropy_ptr, lse_ptr, row_max_ptr, log_sum_ptr,  # out, [N] float32
    logits_ptr,  # [N, V], rows `logits_stride` elements apart
    targets_ptr,  # [N] int64
    mask_ptr,  # [N] bool or None
    bias_ptr,  # [V] or None
    temperature_ptr,  # [N] float32, or None: `temperature` holds for all
    logits_stride,
    vocab,
    temperature,
    logit_scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    # int64: row * stride passes 2^31 at 14,134 rows of 151,936.
    i_n = tl.program_id(0).to(tl.int64)
    if mask_ptr is not None:
        if tl.load(mask_ptr + i_n) == 0:
            tl.store(logp_ptr + i_n, 0.0)
            tl.store(entropy_ptr + i_n, 0.0)
            tl.store(lse_ptr + i_n, 0.0)
            tl.store(row_max_ptr + i_n, 0.0)
            tl.store(log_sum_ptr + i_n, 0.0)
            return
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + i_n)
    target = tl.load(targets_ptr + i_n)
    row_ptr = logits_ptr + i_n * logits_stride

    m = tl.full((), float("-inf"), tl.float32)
    s0 = tl.full((), 0.0, tl.float64)
    s1 = tl.full((), 0.0, tl.float64)
    # The target's logit is picked from the very tiles that are summed, lane by lane, so that
    # logp <= 0 holds to the bit and no extra reduction is paid per tile.
    b_target = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    for v in range(0, vocab, BLOCK_V):
        o_v = v + tl.arange(0, BLOCK_V)
        m_v = o_v < vocab
        b_z = tl.load(row_ptr + o_v, mask=m_v, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            b_z += tl.load(bias_ptr + o_v, mask=m_v, other=0.0).to(tl.float32)
        b_z *= logit_scale
        if HAS_SOFTCAP:
            b_z = _softcapped(b_z, softcap)
        b_z = tl.where(m_v, tl.div_rn(b_z, temperature), float("-inf"))
        b_target = tl.where(o_v == target, b_z, b_target)
        # Sums are float32 within a tile and float64 across tiles.
        m_b, s0_b, s1_b = _tile_moments(b_z)
        m, s0, s1 = _merge(m, s0, s1, m_b, s0_b, s1_b)

    log_sum = tl.log(s0.to(tl.float32))
    # No finite logit, or a target outside the vocabulary: NaN, never a plausible number.
    good = (s0 > 0) & (target >= 0) & (target < vocab)
    bad = float("nan")
    tl.store(logp_ptr + i_n, tl.where(good, tl.max(b_target, 0) - m - log_sum, bad))
    tl.store(entropy_ptr + i_n, tl.where(good, log_sum - (s1 / s0).to(tl.float32), bad))
    tl.store(lse_ptr + i_n, tl.where(good, m + log_sum, bad))
    tl.store(row_max_ptr + i_n, tl.where(good, m, bad))
    tl.store(log_sum_ptr + i_n, tl.where(good, log_sum, bad))


def row_forward(
    logits: Tensor,  # [N, >= V], float32, bfloat16 or float16; unit stride along V
    targets: Tensor,  # [N] int64
    *,
    vocab: int | None = None,  # V where the rows are padded beyond it; None: all columns
    mask: Tensor | None = None,  # [N] bool; a false row is neither read nor counted
    temperature: float | Tensor = 1.0,  # or [N] float32
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Tensor | None = None,  # [V]
) -> RowForward:
    """Launch the kernel. Arguments are taken as checked: the public ops do that, once.

    Values of temperature, softcap and logit_scale never recompile. Dtypes do, and which of the
    optional arguments are given, and whether V and the row stride divide by 16 (for wide loads).
    """
    n, columns = logits.shape
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"logits must be float32, bfloat16 or float16, got {logits.dtype}")
    if columns > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits must have unit stride along V, got strides {logits.stride()}")
    per_row = temperature if isinstance(temperature, Tensor) else None
    out = RowForward(
        *(torch.empty(n, dtype=torch.float32, device=logits.device) for _ in RowForward._fields)
    )
    if n == 0:
        return out
    with torch.cuda.device_of(logits):
        row_forward_kernel[(n,)](
            *out,
            logits,
            targets,
            mask,
            bias,
            per_row,
            logits.stride(0),
            columns if vocab is None else vocab,
            1.0 if per_row is not None else float(temperature),
            float(logit_scale),
            1.0 if softcap is None else float(softcap),
            HAS_SOFTCAP=softcap is not None,
            BLOCK_V=BLOCK_V,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return out
