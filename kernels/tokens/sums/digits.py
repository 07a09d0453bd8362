"""Sums without rounding, in digits that add up in any order: csrc/core/tokens/exact_sum.h.

A sum is digit[0] + digit[1] 2^32 + digit[2] 2^64 + ... in units of 2^LOWEST. Its mean rounds once.
"""

import triton
import triton.language as tl

from logitless.kernels.tokens.shared import power_of_two

DIGITS = tl.constexpr(67)
LOWEST = tl.constexpr(-1088)
LOW = tl.constexpr(2**32 - 1)
FRACTION = tl.constexpr(2**52 - 1)
HIDDEN = tl.constexpr(2**52)
# Numbers from 2^-76 to 2^20 have their lowest bit in one of three digits, of which this is the
# first; so a program adds five digits, whatever the number of its tokens.
USUAL = tl.constexpr(30)
# Lanes for the digits of a sum.
PLACES = tl.constexpr(128)
# Bits of a quotient before it is rounded: the last of them is 1 where anything is below it.
KEPT = tl.constexpr(62)


@triton.jit
def rows_of(words_ptr, ROWS: tl.constexpr):
    # Where the digits of each sum begin; there may be more rows than sums.
    row = tl.arange(0, ROWS)
    return row, words_ptr + row * DIGITS


@triton.jit
def add_values(words_ptr, values, counted, SUMS: tl.constexpr, ROWS: tl.constexpr):
    # [ROWS, LANES]: those of a program that are counted, which are finite.
    bits = values.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) & 0x7FF
    mantissa = tl.where(exponent > 0, (bits & FRACTION) | HIDDEN, bits & FRACTION)
    mantissa = tl.where(counted, mantissa, 0)
    place = tl.where(exponent > 0, exponent, 1) - 1075 - LOWEST
    shift = place & 31
    digit = place >> 5
    # Of up to 85 bits; a shift that overflows keeps its low bits.
    sign = tl.where(bits < 0, -1, 1)
    low = ((mantissa << shift) & LOW) * sign
    middle = ((mantissa >> (32 - shift)) & LOW) * sign
    high = ((mantissa >> 32) >> (32 - shift)) * sign
    row, digits_ptr = rows_of(words_ptr, ROWS)
    first = digit - USUAL
    for i in tl.static_range(5):
        part = tl.zeros_like(low)
        if i < 3:
            part += tl.where(first == i, low, 0)
        if 0 < i and i < 4:
            part += tl.where(first == i - 1, middle, 0)
        if i > 1:
            part += tl.where(first == i - 2, high, 0)
        tl.atomic_add(digits_ptr + USUAL + i, tl.sum(part, 1), mask=row < SUMS)
    rare = (mantissa != 0) & ((first < 0) | (first > 2))
    if tl.max(tl.max(rare.to(tl.int32), 1), 0) != 0:
        own_ptr = digits_ptr[:, None] + digit
        tl.atomic_add(own_ptr, low, mask=rare)
        tl.atomic_add(own_ptr + 1, middle, mask=rare)
        tl.atomic_add(own_ptr + 2, high, mask=rare)


@triton.jit
def _digit(digits_ptr, place, there):
    return tl.load(digits_ptr + place, mask=there & (place >= 0) & (place < DIGITS), other=0)


@triton.jit
def _over(digit, place):
    # What a digit leaves to the next; the last keeps all.
    return tl.where(place < DIGITS - 1, (digit + 2**31) >> 32, 0)


@triton.jit
def _carried(digit, below, place):
    return digit - (_over(digit, place) << 32) + _over(below, place - 1)


@triton.jit
def _at(digits, place, where):
    # The digit of a place; those below 0 are taken for 0.
    return tl.sum(tl.where(place == where[:, None], digits, 0), 1)


@triton.jit
def _topmost(digits, place):
    # The place of the first from the top that is not 0; -1: all are.
    return tl.max(tl.where(digits != 0, place, -1), 1)


@triton.jit
def _sign(digit):
    return (digit > 0).to(tl.int32) - (digit < 0).to(tl.int32)


@triton.jit
def _divided(left, digit, count):
    # A step of long division: a digit of the quotient, rounded down, and what is left.
    number = (left << 32) + digit
    quotient = number // count
    rest = number - quotient * count
    short = rest < 0
    return tl.where(short, quotient - 1, quotient), tl.where(short, rest + count, rest)


@triton.jit
def _rounded(q0, q1, q2, q3, q4, left, unit):
    # The quotient, its first digit that is not 0 among the first three, in units of 2^unit: at most
    # 53 bits, and the exponent of their unit.
    lead = tl.where(q0 > 0, 0, tl.where(q1 > 0, 1, 2))
    first = tl.where(lead == 0, q0, tl.where(lead == 1, q1, q2))
    second = tl.where(lead == 0, q1, tl.where(lead == 1, q2, q3))
    third = tl.where(lead == 0, q2, tl.where(lead == 1, q3, q4))
    more = left | tl.where(lead == 0, q3 | q4, tl.where(lead == 1, q4, 0))
    # first has 32 - spare bits, as the exponent of float64 tells; it is 0 of no sum alone
    first = tl.where(first > 0, first, 1)
    spare = 32 - ((first.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1022)
    high = (first << 30) | (second >> 2)
    low = ((second & 3) << 32) | third
    below = 34 - spare
    one = tl.full((1,), 1, tl.int64)
    kept = (high << spare) | (low >> below)
    more = more | (low & ((one << below) - 1))
    kept = tl.where(more != 0, kept | 1, kept)
    exponent = unit + 32 * (4 - lead) + (32 - spare) - KEPT
    # to the nearest, and to an even one of two; the least number is 2^-1074
    lowest = exponent + (KEPT - 53)
    lowest = tl.where(lowest > -1074, lowest, -1074)
    cut = lowest - exponent
    cut = tl.where(cut < 63, cut, 63)
    whole = kept >> cut
    rest = kept - (whole << cut)
    half = one << (cut - 1)
    up = (rest > half) | ((rest == half) & ((whole & 1) != 0))
    return tl.where(up, whole + 1, whole), lowest


@triton.jit
def means_of(words_ptr, count, SUMS: tl.constexpr, ROWS: tl.constexpr):
    # [ROWS] float64: each sum over the count, rounded once; 0 of none. What it cannot hold is
    # infinite.
    row, own_ptr = rows_of(words_ptr, ROWS)
    place, there = tl.arange(0, PLACES)[None, :], (row < SUMS)[:, None]
    digits_ptr = own_ptr[:, None]
    digit = _digit(digits_ptr, place, there)
    below = _digit(digits_ptr, place - 1, there)
    # Carried twice, digits are between -2^31 - 1 and 2^31 + 1: what is below one is less than a
    # unit of it.
    once = _carried(digit, below, place)
    once_below = _carried(below, _digit(digits_ptr, place - 2, there), place - 1)
    digits = _carried(once, once_below, place)
    top = _topmost(digits, place)
    sign = _sign(_at(digits, place, top))
    digits = digits * sign[:, None]
    count = tl.where(count > 0, count, 1)
    # Four digits from the topmost on tell a quotient by fewer than 2^31 tokens to 64 bits; of those
    # below them the sign is enough.
    lower = tl.where(place <= top[:, None] - 4, digits, 0)
    q0, left = _divided(tl.zeros((ROWS,), tl.int64), _at(digits, place, top), count)
    q1, left = _divided(left, _at(digits, place, top - 1), count)
    q2, left = _divided(left, _at(digits, place, top - 2), count)
    q3, left = _divided(left, _at(digits, place, top - 3), count)
    q4, left = _divided(left, _sign(_at(lower, place, _topmost(lower, place))), count)
    # a digit of the sum may be negative, and then one of the quotient
    q3 += q4 >> 32
    q2 += q3 >> 32
    q1 += q2 >> 32
    q0 += q1 >> 32
    unit = 32 * (top - 4) + LOWEST
    whole, exponent = _rounded(q0, q1 & LOW, q2 & LOW, q3 & LOW, q4 & LOW, left, unit)
    # by two factors, each a normal number; only the last product may leave the range of those
    half = exponent >> 1
    mean = whole.to(tl.float64) * power_of_two(half) * power_of_two(exponent - half)
    return tl.where(top >= 0, sign.to(tl.float64) * mean, 0.0)


@triton.jit
def mean_at(means, ROWS: tl.constexpr, which: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, ROWS) == which, means, 0.0), 0)
