"""What the row kernels share: where a row lies, the chain of a logit, the shift of moments."""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# Below this a power of two is zero in float32, so clamping to it changes nothing but makes
# t * 2^t = 0 for t = -inf, where -inf * 0 would be NaN.
LOWEST = tl.constexpr(-150.0)


@triton.jit
def row_offset(row, stride_batch, stride_row, rows_per_batch, BATCHED: tl.constexpr):
    # Elements before a row, in int64: row * stride passes 2^31 at 14,134 rows of 151,936.
    # A [B, T, V] view has two strides; one that is a plain [N, V] is spared the division.
    if BATCHED:
        batch = row // rows_per_batch
        offset = batch.to(tl.int64) * stride_batch
        offset += (row % rows_per_batch).to(tl.int64) * stride_row
    else:
        offset = row.to(tl.int64) * stride_row
    return offset


@triton.jit
def is_active(mask_ptr, row):
    active = True
    if mask_ptr is not None:
        active = tl.load(mask_ptr + row) != 0
    return active


@triton.jit
def row_scale_of(row_scale_ptr, row, scale):
    # float64. `scale` may be a Python number (Triton's interpreter), which has no .to().
    if row_scale_ptr is not None:
        value = tl.load(row_scale_ptr + row)
    else:
        value = tl.full((), scale, tl.float64)
    return value


@triton.jit
def tanh(u):
    # From one exp tanh loses digits near 0, where 1 - 2 / (1 + e) cancels, so small arguments take
    # the odd series: at 0.25 its next term is below 1e-8.
    a = tl.abs(u)
    far = 1.0 - 2.0 / (1.0 + tl.exp2(a * (2.0 * LOG2E)))
    far = tl.where(u < 0, -far, far)
    u2 = u * u
    near = u + u * u2 * (-1 / 3 + u2 * (2 / 15 + u2 * (-17 / 315 + u2 * (62 / 2835))))
    return tl.where(a < 0.25, near, far)


@triton.jit
def softcapped(x, slope, softcap):
    # softcap * tanh(x * slope)
    return softcap * tanh(x * slope)


@triton.jit
def tanh_slope(u, t):
    # tanh'(u) for t = tanh(u): 1 - t * t would cancel far from 0.
    once = 1.0 + tl.abs(t)
    return tl.exp2(tl.abs(u) * (-2.0 * LOG2E)) * once * once


@triton.jit
def shifted(m, s0, s1, s2, q0, q1, to, scale, EXTRAS: tl.constexpr):
    # The moments (float64, x in nats) seen from a larger maximum. s0 == 0 means nothing was seen:
    # the identity, taken out before inf - inf can be formed from its maximum of -inf.
    # The factor needs no more than float32: its error is |dm| e^dm 2^-24, below 3e-8 of the sum.
    empty = s0 == 0
    dm = tl.where(empty, 0.0, (m - to) * scale)
    d = tl.where(empty, 0.0, tl.exp2((dm * LOG2E).to(tl.float32)).to(tl.float64))
    if EXTRAS:
        s2 = d * (s2 + dm * (2 * s1 + dm * s0))
        q1 = d * d * (q1 + dm * q0)
        q0 = d * d * q0
    s1 = d * (s1 + dm * s0)
    s0 = d * s0
    return s0, s1, s2, q0, q1
