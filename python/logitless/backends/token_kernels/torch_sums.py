"""Exact sums over tokens in torch's operations: csrc/core/tokens/exact_sum.h has the digits.

A sum is digit[0] + digit[1] 2^32 + digit[2] 2^64 + ... in units of 2^LOWEST. Digits add up over
tokens and over ranks in any order, and the mean rounds once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

DIGITS, LOWEST = 67, -1088
LOW = 2**32 - 1
# Copies of the digits that tokens add to in turn: most tokens have the same digits, and adding to
# one address is done one after the other.
COPIES = 256
# Digits from the topmost on that tell a quotient by fewer than 2^31 tokens to 64 bits; of those
# below them the sign is enough.
WINDOW = 4
# Bits of a quotient before it is rounded: the last of them is 1 where anything is below it.
KEPT = 62


def exact_digits(values: Tensor, counted: Tensor) -> Tensor:
    """[m, DIGITS] of float64 [m, n]: sums over the tokens that are counted, which are finite."""
    bits = values.view(torch.int64)
    exponent = bits >> 52 & 0x7FF
    mantissa = bits & (2**52 - 1) | (exponent > 0).long() << 52
    place = exponent.clamp(min=1) - 1075 - LOWEST
    shift = place & 31
    # of up to 85 bits; a product or a shift that overflows keeps its low bits
    parts = torch.stack(
        [mantissa << shift & LOW, mantissa >> 32 - shift & LOW, mantissa >> 32 >> 32 - shift]
    ) * (torch.where(bits < 0, -1, 1) * counted)
    m, n = values.shape
    token, row, part = (torch.arange(k, device=values.device) for k in (n, m, 3))
    own = (token % COPIES * m + row[:, None]) * DIGITS + (place >> 5)
    index = own + part[:, None, None]
    digits = parts.new_zeros(COPIES * m * DIGITS)
    digits.scatter_add_(0, index.view(-1), parts.view(-1))
    return digits.view(COPIES, m, DIGITS).sum(0)


def means_of(digits: Tensor, count: Tensor) -> Tensor:
    """[m] float64: digits [m, DIGITS] / count, each rounded once; 0 of no tokens. What float64
    cannot hold is infinite."""
    # between -2^31 - 1 and 2^31 + 1: what is below a digit is less than one unit of it
    digits = _carried(_carried(digits))
    top = _topmost(digits)
    sign = _at(digits, top).sign()
    quotient, left = _divided(digits * sign, top, count.clamp(min=1))
    kept, exponent = _rounded(quotient, left, 32 * (top[:, 0] - WINDOW) + LOWEST)
    # by two factors, each a normal number; only the last product may leave the range of those
    half = exponent >> 1
    value = kept.double() * _power(half) * _power(exponent - half)
    return torch.where((top[:, 0] >= 0) & (count > 0), sign[:, 0] * value, 0.0)


def _carried(digits: Tensor) -> Tensor:
    over = digits[:, :-1] + 2**31 >> 32
    return digits - pad(over << 32, (0, 1)) + pad(over, (1, 0))


def _topmost(digits: Tensor) -> Tensor:
    """[m, 1]: the place of the first digit from the top that is not 0; -1: all are."""
    place = torch.arange(DIGITS, device=digits.device)
    return torch.where(digits != 0, place, -1).amax(1, keepdim=True)


def _at(digits: Tensor, places: Tensor) -> Tensor:
    """[m, k] of places [m, k]; those below 0 are taken for 0."""
    return digits.gather(1, places.clamp(min=0))


def _divided(digits: Tensor, top: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The quotient of a positive sum by long division, WINDOW + 1 digits of 32 bits from the
    topmost on, and what is left over."""
    place = torch.arange(DIGITS, device=digits.device)
    below = torch.where(place <= top - WINDOW, digits, 0)
    window = pad(digits, (WINDOW, 0))
    parts = _at(window, top + WINDOW - place[:WINDOW]).unbind(1)
    quotient, left = [], torch.zeros_like(parts[0])
    for part in (*parts, _at(below, _topmost(below))[:, 0].sign()):
        left = (left << 32) + part
        quotient.append(torch.div(left, count, rounding_mode="floor"))
        left = left - quotient[-1] * count
    # a digit of the sum may be negative, and then one of the quotient
    over = torch.zeros_like(left)
    for i in reversed(range(WINDOW + 1)):
        part = quotient[i] + over
        quotient[i], over = part & LOW, part >> 32
    return torch.stack(quotient, 1), left


def _rounded(q: Tensor, left: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Of digits in units of 2^unit: at most 53 bits, and the exponent of their unit."""
    # the first digit that is not 0 is one of the first three
    lead = torch.where(q[:, 0] > 0, 0, torch.where(q[:, 1] > 0, 1, 2))
    place = torch.arange(WINDOW + 1, device=q.device)
    first, second, third = _at(q, lead[:, None] + place[:3]).unbind(1)
    more = torch.where(place > (lead + 2)[:, None], q, 0).amax(1) | left
    # first has 32 - spare bits, as the exponent of float64 tells
    spare = 32 - ((first.double().view(torch.int64) >> 52) - 1022)
    high, low = first << 30 | second >> 2, (second & 3) << 32 | third
    kept = high << spare | low >> 34 - spare
    more = more | low & (1 << 34 - spare) - 1
    kept = kept | (more != 0).long()
    exponent = unit + 32 * (WINDOW - lead) + (32 - spare) - KEPT
    # to the nearest, and to an even one of two; the least number is 2^-1074
    lowest = (exponent + KEPT - 53).clamp(min=-1074)
    cut = (lowest - exponent).clamp(max=63)
    whole = kept >> cut
    rest, half = kept - (whole << cut), 1 << cut - 1
    up = (rest > half) | ((rest == half) & (whole & 1 != 0))
    return whole + up, lowest


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, a normal number."""
    return (exponent + 1023 << 52).view(torch.float64)
