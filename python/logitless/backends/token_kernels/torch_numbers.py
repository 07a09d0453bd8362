"""Numbers that choose tokens, bit for bit those of the compiled core, in torch's operations.

Each operation is a kernel of its own, so that no multiplication fuses with an addition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends.row_kernels.philox import philox_words

# The lowest int64: the sign bit alone.
SIGN = -(2**63)

# ---- exp and expm1, as csrc/core/exp.h has them

LIMIT = 700.0
_ROUND = 1.5 * 2**52 + 1023
_LN2_HIGH = float.fromhex("0x1.62e42fefa0000p-1")
_LN2_LOW = float.fromhex("0x1.cf79abc9e3b3ap-40")


def exp_of(x: Tensor) -> Tensor:
    """exp of float64, by the additions and multiplications of the core."""
    e = _exp_parts(x)
    return torch.where(x.abs() < LIMIT, (e.curve + e.f + 1) * e.power, x.exp())


def expm1_of(x: Tensor) -> Tensor:
    """exp(x) - 1 of float64 in the same way."""
    e = _exp_parts(x)
    whole, part = e.power - 1, e.power * e.f
    total = whole + part
    lost = part - (total - whole)
    low = e.high - e.f - e.rest
    inside = total + (e.power * (e.curve + (low + low * e.f)) + lost)
    return torch.where(x.abs() < LIMIT, inside, x.expm1())


class _ExpParts(NamedTuple):
    """exp(x) = (1 + high - rest + curve) * power, and f is high - rest rounded."""

    f: Tensor
    high: Tensor
    rest: Tensor
    curve: Tensor
    power: Tensor


def _exp_parts(x: Tensor) -> _ExpParts:
    shifted = x * 1.4426950408889634074 + _ROUND
    k = shifted - _ROUND
    high, rest = x - k * _LN2_HIGH, k * _LN2_LOW
    f = high - rest
    f2 = f * f
    f4 = f2 * f2
    q0 = (0.5 + f * (1.0 / 6)) + f2 * (1.0 / 24 + f * (1.0 / 120))
    q4 = (1.0 / 720 + f * (1.0 / 5040)) + f2 * (1.0 / 40320 + f * (1.0 / 362880))
    q8 = (1.0 / 3628800 + f * (1.0 / 39916800)) + f2 * (1.0 / 479001600 + f * (1.0 / 6227020800))
    q = q0 + f4 * (q4 + f4 * q8)
    power = (shifted.view(torch.int64) << 52).view(torch.float64)
    return _ExpParts(f, high, rest, f2 * q, power)


# ---- scores: 64 unsigned bits in an int64


def ordered_bits(values: Tensor) -> Tensor:
    """Of float64, in the order of the numbers; -0 and +0 are the same."""
    bits = (values + 0.0).view(torch.int64)
    return torch.where(bits < 0, ~bits, bits ^ SIGN)


def from_ordered_bits(bits: Tensor) -> Tensor:
    """The numbers whose ordered_bits these are."""
    return torch.where(bits < 0, bits ^ SIGN, ~bits).view(torch.float64)


def random_keys(ids: Tensor, seed: int, step: int) -> Tensor:
    """Of (seed, step, id), and 0 where there is no id."""
    low, high, *_ = philox_words(seed, ids, step)
    return torch.where(ids < 0, 0, low | high << 32)


def covariance(advantages: Tensor, logp: Tensor, means: tuple[Any, Any]) -> Tensor:
    """(A - mean A) * (logp - mean logp) in float64, unfused."""
    # a mean without dimensions would not widen float32
    product: Tensor = (advantages.double() - means[0]) * (logp.double() - means[1])
    return product
