"""exp and expm1 of float64 by additions and multiplications: csrc/core/exp.h has the same."""

import triton
import triton.language as tl

from logitless.kernels.tokens.shared import power_of_two

# Where 2^k is a normal number; the numbers inside have the bits of the core.
LIMIT = tl.constexpr(700.0)
# Beyond, exp is infinite or 0.
FAR = tl.constexpr(1000.0)
# Rounds what it is added to, and leaves 2^51 + 1023 + k in the low bits of the sum.
ROUND = tl.constexpr(1.5 * 2**52 + 1023)
LN2_HIGH = tl.constexpr(float.fromhex("0x1.62e42fefa0000p-1"))
LN2_LOW = tl.constexpr(float.fromhex("0x1.cf79abc9e3b3ap-40"))


@triton.jit
def _parts(x):
    # exp(x) = (1 + high - rest + curve) * 2^k, and f is high - rest rounded.
    shifted = x * 1.4426950408889634074 + ROUND
    k = shifted - ROUND
    high = x - k * LN2_HIGH
    rest = k * LN2_LOW
    f = high - rest
    f2 = f * f
    f4 = f2 * f2
    q0 = (0.5 + f * (1.0 / 6)) + f2 * (1.0 / 24 + f * (1.0 / 120))
    q4 = (1.0 / 720 + f * (1.0 / 5040)) + f2 * (1.0 / 40320 + f * (1.0 / 362880))
    q8 = (1.0 / 3628800 + f * (1.0 / 39916800)) + f2 * (1.0 / 479001600 + f * (1.0 / 6227020800))
    q = q0 + f4 * (q4 + f4 * q8)
    exponent = (shifted.to(tl.int64, bitcast=True) & (2**52 - 1)) - (2**51 + 1023)
    return f, high, rest, f2 * q, exponent


@triton.jit
def exp_of(x):
    # To an ulp. By two powers, each a normal number: the first product is exact, and so is the
    # second where the result is a normal number.
    near = tl.where(x > FAR, FAR, tl.where(x < -FAR, -FAR, x))
    f, _, _, curve, exponent = _parts(near)
    half = exponent >> 1
    return (curve + f + 1) * power_of_two(half) * power_of_two(exponent - half)


@triton.jit
def expm1_of(x):
    # exp(x) - 1, near 0 as well.
    inside = tl.abs(x) < LIMIT
    f, high, rest, curve, exponent = _parts(tl.where(inside, x, 0.0))
    power = power_of_two(exponent)
    whole = power - 1
    part = power * f
    total = whole + part
    lost = part - (total - whole)
    low = high - f - rest
    near = total + (power * (curve + (low + low * f)) + lost)
    return tl.where(inside, near, exp_of(x) - 1)
