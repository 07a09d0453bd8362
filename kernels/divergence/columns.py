"""What the kernels of two softmaxes share: the columns of a program, and their formulas."""

import triton
import triton.language as tl

from logitless.kernels.jit import INF, LOG2E, LOWEST, row_offset, tanh, tanh_slope

# Columns of a program, in its registers: 32 floats of either side a lane.
COLUMNS = 2048
NUM_WARPS = 2
# Below this a softmax has no mass, on every backend: float32's smallest normal number.
NOTHING = tl.constexpr(-126.0)


@triton.jit
def raw_columns(
    tile_ptr, bias_ptr, row, first, o, inside, stride_batch, stride_row, rows_per_batch,
    BATCHED: tl.constexpr,
):  # fmt: skip
    # Logits plus bias; columns past the end are -inf.
    tile_ptr += first + row_offset(row, stride_batch, stride_row, rows_per_batch, BATCHED)
    y = tl.load(tile_ptr + o, mask=inside, other=-INF).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + first + o, mask=inside, other=0.0)
    return y


@triton.jit
def capped(raw, inside, slope, softcap, HAS_SOFTCAP: tl.constexpr):
    # y. A softcap makes -softcap of -inf, so columns past the end are taken out after it.
    if HAS_SOFTCAP:
        raw = tl.where(inside, softcap * tanh(raw * slope), -INF)
    return raw


@triton.jit
def capped_slope(raw, slope):
    # dy / d(raw) over `pre`.
    u = raw * slope
    return tanh_slope(u, tanh(u))


@triton.jit
def scale_in_bits(row_scale_ptr, row, scale):
    # `scale` is in bits already.
    if row_scale_ptr is not None:
        scale = (tl.load(row_scale_ptr + row) * LOG2E).to(tl.float32)
    return scale


@triton.jit
def with_mass(x):
    # x of bits as exp2 takes it: where there is no mass, what gives exactly 0. A NaN stays.
    return tl.where(x < NOTHING, LOWEST, x)


@triton.jit
def maxima_of(t_ptr):
    # Of a row's terms: maximum and bits of both sides.
    return tl.load(t_ptr + 1), tl.load(t_ptr + 2), tl.load(t_ptr + 3), tl.load(t_ptr + 4)


@triton.jit
def from_maxima(maxima, y, z):
    # x and u: bits of both sides from their maxima.
    return (y - maxima[0]) * maxima[1], (z - maxima[2]) * maxima[3]


@triton.jit
def log2_1p(e):
    # log2(1 + e) of e in [0, 1], as in csrc/core/divergence.h.
    s = e / (e + 2.0)
    q = s * s
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13))
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return s * series * (2.0 * LOG2E)


@triton.jit
def mix_share(d):
    # With d = log2 of (1 - beta) p over beta q: log2 of (1 - beta) p over mix. Where q has no mass
    # d is +inf, and this 0.
    apart = with_mass(-tl.abs(d))
    return tl.where(d > 0, 0.0, d) - log2_1p(tl.exp2(apart))


@triton.jit
def mass_of(x, apart):
    # What columns add to a side's s0, s1 and gap: x bits from its maximum, `apart` from the other.
    low = with_mass(x)
    p = tl.exp2(low)
    # By choice: both sides may be -inf there, and the other one where this has mass.
    return p, low * p, tl.where(p > 0, apart * p, 0.0)


@triton.jit
def apart_from_mix(t_ptr, x, u, offset, other_offset):
    # What columns add to the sums of a mix, of either side.
    d = (x - u) + tl.load(t_ptr + 5)
    share = mix_share(d)
    # Where p has no mass both of these are -inf, and it is 0.
    rest = tl.where(d > -INF, share - d, 0.0)
    p = tl.exp2(with_mass(x))
    q = tl.exp2(with_mass(u))
    own = tl.where(p > 0, (share + offset) * p, 0.0)
    return own, tl.where(q > 0, (rest + other_offset) * q, 0.0)


@triton.jit
def pair_slope(t_ptr, x, u, KIND: tl.constexpr):
    # d(y) of columns by the terms of their row.
    low = with_mass(x)
    p = tl.exp2(low)
    factor = tl.load(t_ptr + 6) + tl.load(t_ptr + 7) * low
    gap = tl.load(t_ptr + 8)
    if KIND == 0:
        # Only where the row's divergence has a gradient: a gap may be infinite.
        factor += tl.where(gap != 0, gap * (x - u), 0.0)
    if KIND == 2:
        factor += gap * mix_share((x - u) + tl.load(t_ptr + 5))
    # By choice: a gap may be anything where p has no mass, and a bad row's p is NaN.
    d = tl.where(p == 0, 0.0, factor * p)
    if KIND == 1:
        d += tl.load(t_ptr + 9) * tl.exp2(with_mass(u))
    return d
